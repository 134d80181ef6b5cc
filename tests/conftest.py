"""Shared fixtures: the public data beside the repository where it is, and tiny models built here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from editkit.models.load import ATLAS, load_language_model

SHARED = Path(os.environ.get("EDITKIT_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"no public data at {SHARED} (set EDITKIT_SHARED)")
    return SHARED


@pytest.fixture
def atlas() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_language_model("atlas")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ATLAS)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests keep what they work out in a folder of their own, never in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDITKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)
