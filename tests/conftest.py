"""Shared fixtures: the public data beside the repository where it is, and tiny models built here."""

from __future__ import annotations

import os
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


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)
