"""A tiny model, an editor that finds nothing and changes a bias, and a trainer as ``fit`` has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from editkit import Edit, Editor, Fact, WeightEdit
from editkit.data.plan import RunPlan
from editkit.functional import DenseDelta

BIAS = "transformer.h.1.mlp.c_fc.bias"


class Bias(Editor):
    """Adds to a bias what the batches so far, its own state, and the facts' number make of it."""

    def __init__(self, size: float = 0.5) -> None:
        super().__init__()
        self.size = size
        self.made: list[list[str]] = []
        self.observed: list[str] = []
        self.prepared: list[RunPlan] = []

    @override
    def prepare(self, plan: RunPlan) -> None:
        self.prepared.append(plan)
        self.observed = []

    @override
    def edit(self, batch: Sequence[Fact]) -> WeightEdit:
        self.made.append([fact.fact_id for fact in batch])
        change = self.size * torch.linspace(-1, 1, 128).roll(int(batch[0].fact_id)) + 0.01 * len(self.observed)
        return WeightEdit(deltas={BIAS: DenseDelta(change)}, state={"first": torch.tensor([int(batch[0].fact_id)])})

    @override
    def observe(self, edit: Edit) -> None:
        self.observed.append(str(int(edit.state["first"])))


@pytest.fixture
def bias() -> str:
    return BIAS


@pytest.fixture
def make_editor(build_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> Callable[..., Bias]:
    """Each on a model of its own, all with the same weights."""

    def made(kind: type[Bias] = Bias, **options: Any) -> Bias:
        editor = kind(**options)
        editor.attach(build_model("gpt2", vocab_size=len(tokenizer), n_positions=128), tokenizer)
        return editor

    return made


@pytest.fixture
def facts() -> list[Fact]:
    return [
        Fact(
            f"Town {n}", "{} lies in", "Spain", "Italy", paraphrase_prompts=(f"People of Town {n} live in",),
            neighborhood_prompts=(f"Village {n} lies in", f"Port {n} is in"), fact_id=str(n),
        )
        for n in range(5)
    ]  # fmt: skip


@pytest.fixture
def make_trainer() -> Callable[..., L.Trainer]:
    def made(*callbacks: L.Callback, **options: Any) -> L.Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu", "devices": 1, "max_epochs": -1, "reload_dataloaders_every_n_epochs": 1,
            "num_sanity_val_steps": 0, "logger": False, "enable_checkpointing": False, "log_every_n_steps": 1,
            "enable_progress_bar": False, "enable_model_summary": False, "callbacks": list(callbacks),
        }  # fmt: skip
        return L.Trainer(**defaults | options)

    return made
