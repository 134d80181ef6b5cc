"""Edits as a LoRA adapter that PEFT loads: a low-rank weight change is one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from editkit.atlas.builtin import resolve
from editkit.edits import Edits
from editkit.export.card import model_card
from editkit.export.changes import changes_of
from editkit.functional.delta import Delta
from editkit.functional.truncation import truncated_svd
from editkit.models.editable import EditableModel
from editkit.models.fingerprint import fingerprint
from editkit.models.soundness import check_model
from editkit.utils.errors import InputError
from editkit.utils.files import atomic_write_folder, check_new_folder, user_path

LOAD = """from peft import PeftModel
{imported}

{loaded}
model = PeftModel.from_pretrained(model, "THIS FOLDER")"""


def _how_to_load(lm: str, dtype: str) -> str:
    if resolve(lm) is not None:
        return LOAD.format(
            imported="from editkit import load_language_model",
            loaded=f'model, tokenizer = load_language_model("{lm}", "{dtype}")',
        )
    return LOAD.format(
        imported="from transformers import AutoModelForCausalLM",
        loaded=f'model = AutoModelForCausalLM.from_pretrained({json.dumps(lm)}, dtype="{dtype}")',
    )


@dataclass(frozen=True)
class AdapterLayer:
    """What an adapter has for one linear map.

    Attributes:
        module: its name in the model.
        rank: columns kept.
        full_rank: rank of the edit.
        error: what was cut off, ‖Δ_r − Δ‖_F / ‖Δ‖_F.
    """

    module: str
    rank: int
    full_rank: int
    error: float


def export_adapter(
    edits: Edits,
    model: PreTrainedModel,
    output: str | Path,
    lm: str = "",
    batch: int | None = None,
    rank: int | None = None,
    at_layer: Callable[[int, int], None] = lambda done, layers: None,
) -> list[AdapterLayer]:
    """Write a LoRA adapter (``adapter_config.json``, ``adapter_model.safetensors``) and a model card.

    W + ΔW = W + B A with B = U √S, A = √S Vᵀ of the sum of the batches' changes, float32, scaling 1. Only the edited
    linear maps are named as targets. At full rank the adapter says what the edited model says, to rounding.

    Args:
        edits: the ledger.
        model: the unedited model; it is edited for as long as it takes, and then as before, bit for bit.
        output: folder to make; it appears only once it is whole.
        lm: name of the unedited model for the config and the card; default the one under which it was loaded.
        batch: of independent batches, the one to apply; of sequential ones, the last.
        rank: most columns per linear map; default as many as the edit has, at most min(facts, d_in, d_out).
        at_layer: called with the number of linear maps done, and of all, at each.

    Returns:
        What was written, by linear map.

    Raises:
        InputError: a rank that none has, edits that change no weights or others than those of linear maps, a folder
            with something in it or that cannot be written, or what ``Edits.apply`` raises.
    """
    check_model(model)
    folder = check_new_folder(user_path(output, "output"), "output")
    changes = changes_of(edits, batch, rank)
    name = lm or model.config.name_or_path or type(model).__name__
    edits.apply(model, batch)  # which checks model, shapes and hashes
    edited = fingerprint(model)
    edits.undo(model)
    editable = EditableModel(model)
    changes = _of_linear_maps(editable, changes)
    layers: list[AdapterLayer] = []
    tensors: dict[str, Tensor] = {}
    for done, (module, deltas) in enumerate(changes.items(), 1):
        delta, full, error = truncated_svd(deltas, rank)
        assert delta.right is not None
        if columns := delta.right.shape[1]:
            layers.append(AdapterLayer(module, columns, full, error))
            tensors[f"base_model.model.{module}.lora_A.weight"] = delta.right.T.float().contiguous()
            tensors[f"base_model.model.{module}.lora_B.weight"] = delta.left.float().contiguous()
        at_layer(done, len(changes))
    if not layers:
        raise InputError("edits: expected a change of some weight, but all of them are 0; there is nothing to export")
    transposed = isinstance(editable.submodule(layers[0].module), Conv1D)
    config = _config(name, layers, transposed)
    card = model_card(
        edits,
        name,
        batch,
        edited,
        "peft",
        f"a LoRA adapter for {name}",
        _how_to_load(name, str(model.dtype).removeprefix("torch.")),
        _ranks(layers),
    )

    def write(part: Path) -> None:
        (part / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, part / "adapter_model.safetensors", {"format": "pt"})
        (part / "README.md").write_text(card, encoding="utf-8")

    atomic_write_folder(folder, write, "output")
    return layers


def _of_linear_maps(editable: EditableModel, changes: dict[str, list[Delta]]) -> dict[str, list[Delta]]:
    """Changes by the names of the linear maps whose weights they are of, in the model's order."""
    found: dict[str, list[Delta]] = {}
    for name, deltas in changes.items():
        module, _, parameter = editable.canonical(name).rpartition(".")
        if parameter != "weight" or not isinstance(editable.submodule(module), (nn.Linear, Conv1D)):
            raise InputError(
                f"format: a LoRA adapter holds changes of the weights of linear maps, but these edits change {name}; "
                "expected --format=checkpoint for them"
            )
        found.setdefault(module, []).extend(deltas)
    order = [name for name, _ in editable.model.named_modules()]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def _config(base: str, layers: list[AdapterLayer], transposed: bool) -> dict[str, Any]:
    """``adapter_config.json``, alpha equal to the rank everywhere, so that B A is added as it is."""
    most = max(layer.rank for layer in layers)
    ranks = {re.escape(layer.module): layer.rank for layer in layers if layer.rank != most}  # PEFT reads patterns
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": [layer.module for layer in layers],
        "fan_in_fan_out": transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def _ranks(layers: list[AdapterLayer]) -> str:
    rows = [f"| `{layer.module}` | {layer.rank} | {layer.full_rank} | {shown(layer.error)} |" for layer in layers]
    return "\n".join(
        [
            "## Ranks",
            "",
            "Error: what was cut off of the weight change, relative Frobenius norm.",
            "",
            "| module | rank | rank of the edit | error |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def shown(error: float) -> str:
    """An error for people: nothing cut off leaves the rounding of float32."""
    return f"{error:.2e}" if error else "float32 rounding"
