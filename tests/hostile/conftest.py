"""What rows of the table may use."""

from __future__ import annotations

import pytest
import torch
from editing import facts
from hostile import Places
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import editkit
from editkit.atlas.builtin import BuiltIn
from editkit.models.loading import load_language_model


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    root = tmp_path_factory.mktemp("places")
    tokenizer = AutoTokenizer.from_pretrained(BuiltIn.model)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=3, n_head=4, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(root / "tiny")
    tokenizer.save_pretrained(root / "tiny")
    editor = editkit.EMMET(layers=[0])
    editor.second_moment.num_tokens = 8000
    options = {"second_moment": root / "moments", "batch_size": 2, "evaluate": False, "progress": False}
    editkit.edit(*load_language_model("atlas"), facts(4), editor, **options).save(root / "edits")  # type: ignore[arg-type]
    return Places(root / "moments", root / "tiny", root / "edits")
