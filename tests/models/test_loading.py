"""Loading: every family's checkpoint comes back bit for bit, without a word; what is not whole or no decoder does not.

The checkpoints that are refused are in ``tests/hostile/table/checkpoints.py``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from editkit.atlas.builtin import BuiltIn
from editkit.models.editable import EditableModel
from editkit.models.loading import load_language_model
from editkit.models.soundness import check_tokenizer
from editkit.utils.errors import InputError

Build = Callable[..., PreTrainedModel]
ENCODERS = {
    "bert": {}, "roberta": {}, "electra": {"embedding_size": 32}, "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "causal": False},
}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_comes_back_bit_for_bit_and_without_a_word(
    family_name: str, tied: bool, build_model: Build, tokenizer: PreTrainedTokenizerBase, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    saved = build_model(family_name, vocab_size=len(tokenizer), tie_word_embeddings=tied)
    saved.save_pretrained(tmp_path / "lm", max_shard_size="300KB")
    tokenizer.save_pretrained(tmp_path / "lm")
    capfd.readouterr()
    with warnings.catch_warnings(), torch.inference_mode():  # which a caller may be in
        warnings.simplefilter("error")
        loaded, _ = load_language_model(tmp_path / "lm")
    assert capfd.readouterr() == ("", "")
    before = dict(saved.named_parameters())
    assert before.keys() == dict(loaded.named_parameters()).keys()
    assert all(torch.equal(p, before[name]) for name, p in loaded.named_parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_are_seen_as_causal(dtype: str) -> None:
    assert load_language_model("atlas", dtype)[0].dtype == getattr(torch, dtype)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_seen_by_what_it_does(name: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, vocab_size=90, **(ENCODERS[name] or sizes))
    model = AutoModelForCausalLM.from_config(config).train()
    editable, random = EditableModel(model), torch.get_rng_state()
    with pytest.raises(InputError, match="a token sees those after it"):
        editable.check_causal()
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_decoder_of_a_family_of_encoders_is_taken() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = AutoConfig.for_model("bert", vocab_size=90, is_decoder=True, **sizes)
    EditableModel(AutoModelForCausalLM.from_config(config)).check_causal()


def test_special_tokens_beyond_the_embeddings_pass_as_long_as_no_text_has_them(
    atlas: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = atlas
    rows = model.get_input_embeddings().num_embeddings
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<picture {i}>" for i in range(rows)]})
    assert max(tokenizer.get_vocab().values()) >= rows
    check_tokenizer(tokenizer, model)
    tokenizer.add_tokens(["Paris"])
    with pytest.raises(InputError, match="ids up to"):
        check_tokenizer(tokenizer, model)


def test_a_hub_s_snapshot_in_the_cache_is_loaded_and_one_that_is_not_there_told(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--some--atlas"
    shutil.copytree(BuiltIn.model, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    code = """
from editkit import load_language_model, InputError
from editkit.models.content import origin
model, tokenizer = load_language_model("some/atlas")
print(origin(model))
try:
    load_language_model("some/other")
except InputError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    folder, refused = done.stdout.splitlines()
    assert folder == str(repository / "snapshots" / "abc")
    assert refused.startswith("lm: ") and "some/other" in refused
    assert done.stderr == ""
