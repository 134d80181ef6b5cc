"""The papers' hyperparameters run as they ship, on models of the same depth with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editkit import load_edits
from editkit.cli.main import main
from editkit.models.editable import EditableModel

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "model"
SMALL = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
WIDTHS = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24}
MODELS = {
    "gpt2-xl": ("gpt2", {"n_layer": 48, "n_embd": 16, "n_head": 2, "n_positions": 128}),
    "gpt-j-6b": ("gptj", {"n_layer": 28, "n_embd": 16, "n_head": 2, "n_positions": 128, "rotary_dim": 4}),
    "llama-2-7b": ("llama", {"num_hidden_layers": 32, "max_position_embeddings": 128, **WIDTHS}),
    "llama-3-8b": ("llama", {"num_hidden_layers": 32, "max_position_embeddings": 128, **WIDTHS}),
}


@pytest.mark.parametrize("name", MODELS)
def test_single_and_spread(
    name: str, tmp_path: Path, build_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    family, sizes = MODELS[name]
    model = build_model(family, **SMALL, **sizes)
    editable = EditableModel(model)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    single, spread = (CONFIGS / f"{name}{part}.yaml" for part in ("", "-spread"))
    moments = {"path": str(tmp_path / "moments"), "text": "atlas", "num_tokens": 2000, "max_length": 64}
    options = [
        "fit", "--config", str(single), "--data.num_facts=2", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    changes = [
        f"--model.lm={tmp_path / 'model'}",
        "--model.values.num_steps=2",
        f"--model.second_moment={json.dumps(moments)}",
    ]
    for more, run in (([], "single"), (["--config", str(spread)], "spread")):
        assert main([*options, *more, *changes, f"--run_dir={tmp_path / run}"]) == 0
    asked = [yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"] for path in (single, spread)]
    for run, config, editor in (("single", asked[0], "EMMET"), ("spread", asked[1], "MEMIT")):
        edits = load_edits(tmp_path / run / "edits")
        deltas = edits.batches[0].edit.weight_changes()
        assert list(deltas) == [editable.parameter_of(layer) for layer in config["layers"]]
        assert edits.about["editor"].endswith(editor)
        assert edits.about["hyperparameters"]["preservation_weight"] == config["preservation_weight"]
        assert edits.about["hyperparameters"]["values"]["clamp"] == {**asked[0], **config}["values"]["clamp"]
