"""Edits on a model and the way back: whole or not at all, the last one alone, all of them, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from editing import same_state as same
from editing import state
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from editkit import Edits, Fact
from editkit.edits import AppliedEdits, Edit, WeightEdit, WeightSnapshot
from editkit.edits.applied import matches_record
from editkit.edits.edit import Undo
from editkit.functional import Delta, DenseDelta, LowRankDelta
from editkit.models.editable import EditableModel
from editkit.utils.errors import InputError

Build = Callable[..., PreTrainedModel]
MakeLedger = Callable[..., Edits]
FIRST, SECOND, NORM = "transformer.h.0.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj.weight", "transformer.ln_f.bias"
SHAPE = (32, 128)


def change(*names: str) -> WeightEdit:
    """A change of the size of the weights, which no second rounding gives back."""
    return WeightEdit(deltas={n: DenseDelta(torch.randn(SHAPE if n != NORM else (32,))) for n in names})


@dataclass
class Noted(Edit):
    """Changes the first parameter and hooks the model; notes what happens to it."""

    kind = "noted"
    acts = "in a test"

    name: str = ""
    log: list[str] = field(default_factory=list)
    fails: bool = False

    @property
    @override
    def parameters(self) -> tuple[str, ...]:
        return (FIRST,)

    @override
    def apply(self, model: EditableModel) -> Undo:
        model.parameter(FIRST).data.mul_(1.5)
        if self.fails:
            raise RuntimeError("half way")
        handle = model.submodule("transformer.ln_f").register_forward_hook(lambda m, i, output: 2 * output)

        def remove() -> None:
            self.log.append(self.name)
            handle.remove()

        return remove

    @override
    def tensors(self) -> dict[str, Tensor]:
        return {}

    @override
    def header(self) -> dict[str, Any]:
        return {}

    @classmethod
    @override
    def read(cls, header: dict[str, Any], tensors: dict[str, Tensor]) -> Noted:
        return cls()


def said(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.arange(3, 12)[None]).logits
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_undo_takes_back_the_last_edit_and_restore_all_of_them(build_model: Build, dtype: torch.dtype) -> None:
    model = build_model("gpt2").to(dtype)
    applied, states, undos = AppliedEdits(EditableModel(model)), [state(model)], []
    for names in ((FIRST,), (FIRST, SECOND), (NORM,), (SECOND, NORM)):
        undos.append(applied.apply(change(*names)))
        states.append(state(model))
    assert not any(same(model, before) for before in states[:-1])
    for undo, before in zip(undos[:1:-1], states[-2:1:-1], strict=True):  # the last two
        undo()
        assert same(model, before)
    applied.apply(change(NORM))
    applied.restore()
    assert same(model, states[0])
    applied.restore()  # nothing is left to take back
    assert same(model, states[0])


def test_an_edit_that_fails_leaves_the_model_as_it_found_it(build_model: Build) -> None:
    model = build_model("gpt2")
    applied, before, words = AppliedEdits(EditableModel(model)), state(model), said(model)
    applied.apply(change(SECOND))
    edited, edited_words = state(model), said(model)
    wrong: dict[str, Delta] = {FIRST: DenseDelta(torch.ones(SHAPE)), SECOND: DenseDelta(torch.ones(3, 5))}
    log: list[str] = []
    for failing in (WeightEdit(deltas=wrong), Noted(fails=True, log=log), change(FIRST, "no such parameter")):
        with pytest.raises((RuntimeError, InputError)):
            applied.apply(failing)
        assert same(model, edited)
        assert torch.equal(said(model), edited_words)
    applied.restore()
    assert same(model, before)
    assert torch.equal(said(model), words)
    assert not log  # what never acted is not taken off


def test_hooks_go_in_the_opposite_order_and_once(build_model: Build) -> None:
    model = build_model("gpt2")
    applied, before, words = AppliedEdits(EditableModel(model)), state(model), said(model)
    log: list[str] = []
    applied.apply(Noted("first", log))
    between = said(model)
    applied.apply(change(FIRST))
    applied.apply(Noted("second", log))
    undo = applied.apply(Noted("third", log))
    undo()
    assert log == ["third"]
    applied.restore()
    assert log == ["third", "second", "first"]
    assert same(model, before)
    assert torch.equal(said(model), words)
    assert not torch.equal(between, words)


def test_a_block_and_its_parameter_are_one(build_model: Build) -> None:
    """Ledgers before schema 3 name blocks: they and newer batches share the way back."""
    model = build_model("gpt2")
    applied, before = AppliedEdits(EditableModel(model)), state(model)
    applied.apply(change(FIRST))
    middle = state(model)
    undo = applied.apply(change("block 0"))
    assert not same(model, middle)
    undo()
    assert same(model, middle)
    applied.apply(change("block 0"))
    applied.restore()
    assert same(model, before)


def test_a_snapshot_remembers_what_was_first(build_model: Build) -> None:
    model = build_model("llama").to(torch.bfloat16)
    editable, before = EditableModel(model), state(model)
    one, two = (editable.parameter_of(layer) for layer in (0, 1))
    snapshot = WeightSnapshot(editable, [one])
    for name in (one, two):
        editable.parameter(name).data.add_(1.0)
    snapshot.extend([one, two])  # the first as it was, the second as it is
    moved = state(model)
    for name in (one, two):
        editable.parameter(name).data.add_(1.0)
    snapshot.restore()
    assert torch.equal(editable.parameter(one), before[one])
    assert torch.equal(editable.parameter(two), moved[two])
    assert not torch.equal(editable.parameter(two), before[two])


def test_weights_are_compared_with_the_record(build_model: Build, make_ledger: MakeLedger, facts: list[Fact]) -> None:
    model = build_model("gpt2")
    edits = make_ledger(model, [{0: LowRankDelta(torch.randn(32, 1), torch.randn(128, 1))}])
    editable, batch = EditableModel(model), edits.batches[0]
    assert matches_record(editable, batch)
    weight = editable.parameter(FIRST).data
    exact = weight.clone()
    weight.mul_(1 + 1e-7)  # rounding
    assert not matches_record(editable, batch)
    weight.mul_(1 + 1e-4)
    with pytest.raises(InputError, match=f"expected {FIRST} to have the weights that the run recorded"):
        matches_record(editable, batch)
    batch.samples = {}  # as in schema 1: no more than the hash is known
    assert not matches_record(editable, batch)
    weight.copy_(exact)
    assert matches_record(editable, batch)
