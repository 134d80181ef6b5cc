"""What tests that edit models have in common; on the import path by pytest's ``pythonpath``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

import editkit
from editkit import ClosedFormEditor, Fact, FactsDataModule

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def facts(count: int = 6) -> list[Fact]:
    """The atlas's first reported facts."""
    module = FactsDataModule(num_facts=count)
    module.setup()
    return module.selected


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(model: PreTrainedModel, before: dict[str, Tensor]) -> bool:
    """Whether all parameters are, bit for bit, what they were."""
    return all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Copies of all that the model's state has, buffers included."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(model: PreTrainedModel, before: dict[str, Tensor]) -> bool:
    """Whether the state is, bit for bit, what it was."""
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def small_gpt2(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """The option that names a random model of three blocks, written into ``folder``."""
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_inner=64, n_layer=3, n_head=2, n_positions=128)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"--lm={folder}"


def quiet_edit(
    loaded: Loaded, editor: ClosedFormEditor, moments: Path, given: Sequence[Fact] | None = None, **kwargs: Any
) -> editkit.EditedModel:
    """``editkit.edit`` with second moments of few tokens, nothing shown and nothing measured."""
    editor.second_moment.num_tokens = 8000
    options = {"progress": False, "evaluate": False, "second_moment": moments, **kwargs}
    return editkit.edit(*loaded, given or facts(), editor, **options)
