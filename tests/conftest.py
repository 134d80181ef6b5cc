"""Shared fixtures: the public data beside the repository where it is, and tiny models built here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # two workers on two cores; read by torch here and in processes started here
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from editkit.atlas.builtin import BuiltIn
from editkit.models.loading import load_language_model

SHARED = Path(os.environ.get("EDITKIT_SHARED", Path(__file__).resolve().parents[2] / "shared"))


# tiny random configs of every family that editkit is tried on
SMALL = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
WINDOWED = {**GROUPED, "sliding_window": 4}
GPT = {
    "vocab_size": 90,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neox": SMALL,
    "gpt_neo": {
        "vocab_size": 90, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "max_position_embeddings": 64,
        "attention_types": [[["global", "local", "global"], 1]], "window_size": 4, "bos_token_id": 1, "eos_token_id": 2,
    },
    "llama": GROUPED,
    "mistral": WINDOWED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "gemma2": {**WINDOWED, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": WINDOWED,
    "phi": SMALL,
    "phi3": GROUPED,
    "opt": {
        "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 48,
        "max_position_embeddings": 64, "word_embed_proj_dim": 32,
    },
    "falcon": {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    "stablelm": GROUPED,
    "olmo2": GROUPED,
    "granite": GROUPED,
    "cohere": {**GROUPED, "logit_scale": 0.25},
    "bloom": {"vocab_size": 90, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "mpt": {"vocab_size": 90, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64},
}  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "family_name" in metafunc.fixturenames:
        metafunc.parametrize("family_name", FAMILIES)


@pytest.fixture
def build_model() -> Callable[..., PreTrainedModel]:
    """``build_model(family, **changes of its config)``: a tiny model with random weights."""

    def build(name: str, **changes: object) -> PreTrainedModel:
        torch.manual_seed(1)
        config = AutoConfig.for_model(name, **{**FAMILIES[name], **changes})
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return model.eval().requires_grad_(False)

    return build


@pytest.fixture(scope="session")
def shared_file() -> Callable[..., Path]:
    """``shared_file("glue", "rte.jsonl")``: public data, without which a test is skipped."""

    def find(*parts: str, root: Path = SHARED) -> Path:
        file = root.joinpath("data", *parts)
        if not file.is_file():
            pytest.skip(f"no public data at {file} (set EDITKIT_SHARED to its folder)")
        return file

    return find


@pytest.fixture
def atlas() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_language_model("atlas")


@pytest.fixture(scope="session")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the atlas's second moments over 8,000 tokens, estimated where they are first wanted."""
    return tmp_path_factory.mktemp("moments")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(BuiltIn.model)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests keep what they work out in a folder of their own, never in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDITKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)
