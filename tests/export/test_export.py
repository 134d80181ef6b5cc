"""Exports: checkpoints with the edited bits, adapters that say what the edited model says, and nothing half-written."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from editkit.data.facts import Fact
from editkit.edits import Context, EditBatch, Edits, PromptEdit, WeightEdit, load_edits
from editkit.export import export_adapter, export_checkpoint
from editkit.functional import Delta, DenseDelta, LowRankDelta, ZeroDelta
from editkit.models.editable import EditableModel, orient
from editkit.models.fingerprint import fingerprint
from editkit.utils.errors import InputError
from editkit.utils.hashes import tensor_hash

FACTS = [Fact("Lyon", "{} lies in", "Peru", "France"), Fact("a|b", "{} is", "x")]
WEIGHT = "transformer.h.0.mlp.c_proj.weight"  # of block 0 of GPT-2
IDS = torch.arange(3, 45).view(3, 14)


def change(model: PreTrainedModel, layer: int, rank: int) -> LowRankDelta:
    """A change of the size of the weight."""
    editable = EditableModel(model)
    d_out, d_in = orient(editable.projection(layer), editable.weight(layer)).shape
    size = float(editable.weight(layer).norm()) / (d_out * d_in * rank) ** 0.5
    return LowRankDelta(size**0.5 * torch.randn(d_out, rank), size**0.5 * torch.randn(d_in, rank))


def ledger(model: PreTrainedModel, *batches: dict[int, Delta], sequential: bool = True) -> Edits:
    name = EditableModel(model).parameter_of
    made = [
        EditBatch(FACTS, WeightEdit(deltas={name(layer): delta for layer, delta in batch.items()}).rounded())
        for batch in batches
    ]
    about = {
        "editor": "editkit.EMMET",
        "hyperparameters": {"ridge": 0.5, "dtype": str(model.dtype).removeprefix("torch.")},
        "layers": [0, 2],
        "versions": {"editkit": "0.1.0"},
    }
    return Edits(made, sequential, fingerprint(model), about)


def hashes(model: PreTrainedModel) -> dict[str, str]:
    return {name: tensor_hash(parameter) for name, parameter in model.named_parameters()}


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits
    return found


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns about missing keys and a wrong fan_in_fan_out
        for kind in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=kind)
        return PeftModel.from_pretrained(model, folder).eval()


def test_every_family(
    family_name: str, build_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = build_model(family_name)
    edits = ledger(model, {0: change(model, 0, 2), 2: change(model, 2, 3)}, {0: change(model, 0, 2)})
    way_back = hashes(model)
    export_checkpoint(edits, model, tokenizer, tmp_path / "checkpoint")
    layers = export_adapter(edits, model, tmp_path / "adapter")
    assert hashes(model) == way_back  # the model is as it came

    unedited = logits(model)
    edited = edits.apply(build_model(family_name))
    assert (logits(edited) - unedited).abs().max() > 1e-3  # there is something to tell

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    assert loaded.dtype == torch.float32
    for (name, one), (other_name, other) in zip(edited.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(one, other), name

    names = [EditableModel(model).parameter_of(layer).removesuffix(".weight") for layer in (0, 2)]
    assert [(layer.module, layer.rank, layer.full_rank, layer.error) for layer in layers] == [
        (names[0], 4, 4, 0.0),
        (names[1], 3, 3, 0.0),
    ]
    config = PeftConfig.from_pretrained(tmp_path / "adapter")
    projections = [EditableModel(model).projection(layer) for layer in (0, 2)]
    assert config.fan_in_fan_out == isinstance(projections[0], Conv1D)
    with_adapter = load_adapter(model, tmp_path / "adapter")
    wrapped = [name for name, module in with_adapter.named_modules() if hasattr(module, "lora_A")]
    assert wrapped == [f"base_model.model.{layer.module}" for layer in layers]  # these and nothing else
    assert (logits(with_adapter) - logits(edited)).abs().max() < 1e-4
    merged = with_adapter.merge_and_unload()
    assert (logits(merged) - logits(edited)).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_checkpoints_in_half_precision(
    dtype: torch.dtype, build_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = build_model("llama").to(dtype)
    edits = ledger(model, {1: change(model.float(), 1, 2)})
    model = model.to(dtype)
    edits.model = fingerprint(model)
    export_checkpoint(edits, model, tokenizer, tmp_path / "out")
    edits.apply(model)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_truncated_adapter_states_its_error(
    name: str, build_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    model = build_model(name)
    edits = ledger(
        model, {0: change(model, 0, 6), 1: change(model, 1, 2)}, {0: DenseDelta(change(model, 0, 2).dense())}
    )
    layers = export_adapter(edits, model, tmp_path / "out", rank=3)
    assert [(layer.rank, layer.full_rank) for layer in layers] == [(3, 8), (2, 2)]
    assert layers[1].error == 0.0
    kept = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for layer in layers:
        a, b = (kept[f"base_model.model.{layer.module}.lora_{x}.weight"].double() for x in "AB")
        changes = [batch.edit.weight_changes() for batch in edits.batches]
        deltas = [change[f"{layer.module}.weight"] for change in changes if f"{layer.module}.weight" in change]
        total = torch.stack([delta.dense(torch.float64) for delta in deltas]).sum(0)
        assert float((b @ a - total).norm() / total.norm()) == pytest.approx(layer.error, rel=1e-4, abs=1e-6)
        assert f"{layer.error:.2e}" in (tmp_path / "out" / "README.md").read_text() or layer.error == 0.0
    # the adapter with both ranks loads: rank and alpha patterns agree
    shapes = {
        n: m.scaling["default"]
        for n, m in load_adapter(model, tmp_path / "out").named_modules()
        if hasattr(m, "lora_A")
    }
    assert set(shapes.values()) == {1.0}


def test_batches(build_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    model = build_model("gpt2")
    one, two = change(model, 0, 1), change(model, 0, 2)
    edits = ledger(model, {0: one}, {0: two}, sequential=False)
    with pytest.raises(InputError, match="batch: these are 2 independent batches"):
        export_adapter(edits, model, tmp_path / "out")
    with pytest.raises(InputError, match="batch: expected the number of a batch, 0 to 1, but got 2"):
        export_adapter(edits, model, tmp_path / "out", batch=2)
    assert export_adapter(edits, model, tmp_path / "second", batch=1)[0].full_rank == 2
    assert "batch 1 of 2 independent batches" in (tmp_path / "second" / "README.md").read_text()
    edits.sequential = True
    assert export_adapter(edits, model, tmp_path / "first", batch=0)[0].full_rank == 1
    assert "the first 1 of 2 sequential batches" in (tmp_path / "first" / "README.md").read_text()
    assert export_adapter(edits, model, tmp_path / "both")[0].full_rank == 3


def test_the_card_tells_what_was_edited_and_how(
    build_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = build_model("gpt2")
    edits = ledger(model, {0: change(model, 0, 1)})
    export_checkpoint(edits, model, tokenizer, tmp_path / "out", lm="someone/some-model")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nbase_model: someone/some-model\nlibrary_name: transformers\n")
    assert "| 1 | Lyon lies in | Peru | France |" in card
    assert "| 2 | a\\|b is | x |  |" in card  # a bar in a fact breaks no table
    assert '"ridge": 0.5' in card
    assert "editkit.EMMET" in card
    assert edits.model in card
    assert fingerprint(edits.apply(model)) in card
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == tokenizer.get_vocab()
    export_adapter(edits, build_model("gpt2"), tmp_path / "adapter", lm="atlas")
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "base_model:" not in card
    assert "| `transformer.h.0.mlp.c_proj` | 1 | 1 | float32 rounding |" in card
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "atlas"


def test_what_it_refuses_leaves_nothing(
    build_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_model("gpt2")
    edits = ledger(model, {0: change(model, 0, 3)})
    out = tmp_path / "deep" / "out"
    for rank in (0, -1, 4):
        with pytest.raises(InputError, match=rf"rank: expected a number from 1 to 3.*but got {rank}"):
            export_adapter(edits, model, out, rank=rank)
    nothing, prompted = ledger(model, {0: ZeroDelta((32, 128))}), ledger(model, {0: change(model, 0, 1)})
    prompted.batches.append(EditBatch(FACTS, PromptEdit(contexts=(Context("Lyon lies in Peru. "),))))
    for export in (export_adapter, lambda e, m, o: export_checkpoint(e, m, tokenizer, o)):
        with pytest.raises(InputError, match="edits: expected a ledger with weight changes"):
            export(nothing, model, out)
        with pytest.raises(InputError, match="edits act in the prompt"):
            export(prompted, model, out)
    with pytest.raises(InputError, match="edits: expected a change of some weight"):
        export_adapter(
            Edits([EditBatch(FACTS, WeightEdit(deltas={WEIGHT: DenseDelta(torch.zeros(32, 128))}))], True,
                  fingerprint(model)),
            model, out,
        )  # fmt: skip
    bias = WeightEdit(deltas={"transformer.h.0.mlp.c_proj.bias": DenseDelta(torch.ones(32))})
    with pytest.raises(InputError, match=r"format: a LoRA adapter holds .* change transformer.h.0.mlp.c_proj.bias"):
        export_adapter(Edits([EditBatch(FACTS, bias)], True, fingerprint(model)), model, out)
    other = build_model("gpt2", n_layer=2)
    for export in (export_adapter, lambda e, m, o: export_checkpoint(e, m, tokenizer, o)):
        with pytest.raises(InputError, match=f"fingerprint {fingerprint(model)}, but got {fingerprint(other)}"):
            export(edits, other, out)
    assert not out.parent.exists()

    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    for export in (export_adapter, lambda e, m, o: export_checkpoint(e, m, tokenizer, o)):
        with pytest.raises(InputError, match=r"output: expected a folder that is empty.*has files in it"):
            export(edits, model, out)
    assert [p.name for p in out.iterdir()] == ["notes.txt"]

    # no space in the middle of it
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    before = fingerprint(model)
    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)
    with pytest.raises(InputError, match=r"output: expected to write .*No space left"):
        export_checkpoint(edits, model, tokenizer, tmp_path / "new")
    assert not list(tmp_path.glob("*new*"))
    assert not list(tmp_path.glob(".*"))
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_other_linear_maps_than_projections(
    name: str, build_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """An edit of any parameter goes into a checkpoint; one of any linear map into an adapter."""
    model = build_model(name)
    editable = EditableModel(model)
    last = editable.parameter_of(2)
    attention = "transformer.h.1.attn.c_attn.weight" if name == "gpt2" else "model.layers.1.self_attn.q_proj.weight"
    shapes = {n: tuple(editable.oriented(n, editable.parameter(n)).shape) for n in (last, attention)}
    deltas: dict[str, Delta] = {
        n: LowRankDelta(torch.randn(rows, 2), torch.randn(columns, 2)) for n, (rows, columns) in shapes.items()
    }
    edits = Edits([EditBatch(FACTS, WeightEdit(deltas=deltas).rounded())], True, fingerprint(model))
    layers = export_adapter(edits, model, tmp_path / "adapter")
    assert [layer.module for layer in layers] == [n.removesuffix(".weight") for n in (attention, last)]  # in order
    edited = edits.apply(build_model(name))
    assert (logits(load_adapter(build_model(name), tmp_path / "adapter")) - logits(edited)).abs().max() < 1e-4

    norm = "transformer.ln_f.weight" if name == "gpt2" else "model.norm.weight"
    other = Edits([EditBatch(FACTS, WeightEdit(deltas={**deltas, norm: DenseDelta(torch.randn(32))}).rounded())], True,
                  fingerprint(model))  # fmt: skip
    export_checkpoint(other, model, tokenizer, tmp_path / "checkpoint")
    loaded, expected = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint"), other.apply(build_model(name))
    assert hashes(loaded) == hashes(expected) != hashes(edited)


def test_an_empty_folder_is_filled(build_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    model = build_model("gpt2")
    edits = ledger(model, {0: change(model, 0, 3)})
    (tmp_path / "out").mkdir()
    export_adapter(edits, model, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    edits.save(tmp_path / "edits")
    kept = load_edits(tmp_path / "edits")
    export_adapter(kept, model, tmp_path / "again")  # as it is from disk
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert all((tmp_path / "again" / n).read_bytes() == (tmp_path / "out" / n).read_bytes() for n in names)
