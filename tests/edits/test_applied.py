"""Edits on a model and the way back: whole or not at all, the last one alone, all of them, bit for bit."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import warnings
import weakref
from collections.abc import Callable, Sequence
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
from editkit.edits.applied import matches_record, unchecked
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
    for row in range(3):  # another machine's rounding: a few entries, by one step
        weight[row, 2 * row] = torch.nextafter(weight[row, 2 * row], torch.tensor(torch.inf))
    assert not matches_record(editable, batch)
    for entry in ((5, 7), (127, 31)):  # one entry, wherever it is, by what rounding does not do
        weight.copy_(exact)
        weight[entry] += 1e-5 * weight.norm()
        with pytest.raises(InputError, match=f"expected {FIRST} to have the weights that the run recorded"):
            matches_record(editable, batch)
    weight.copy_(1.0001 * exact)
    with pytest.raises(InputError, match="differ by more than rounding"):
        matches_record(editable, batch)
    batch.sketches = {}  # as in schema 1: no more than the hash is known
    assert not matches_record(editable, batch)
    assert "that any entry of its parameters" in unchecked(batch)
    weight.copy_(exact)
    assert matches_record(editable, batch)


# ---------------------------------------------------------------- several handles on one model


def handles(model: PreTrainedModel, log: list[str]) -> list[AppliedEdits]:
    """Four handles whose edits meet in parameters and hooks, one of them with several edits."""
    editable = EditableModel(model)
    made = []
    for number, edits in enumerate(
        ([change(FIRST)], [change(FIRST, SECOND), Noted("b", log)], [change(NORM)], [Noted("d", log), change(SECOND)])
    ):
        made.append(AppliedEdits(editable, "abcd"[number]))
        for edit in edits:
            made[-1].apply(edit)
    return made


@pytest.mark.filterwarnings("ignore:edits. . is taken out")
@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_undone_in_any_order_the_first_bits_come_back(build_model: Build, order: Sequence[int]) -> None:
    model = build_model("gpt2").to(torch.bfloat16)
    before, words = state(model), said(model)
    made = handles(model, [])
    for handle in order:
        assert not same(model, before)
        made[handle].restore()
        made[handle].restore()  # nothing is left of it to take back
    assert same(model, before)
    assert torch.equal(said(model), words)


@pytest.mark.filterwarnings("ignore:edits. . is taken out")
@pytest.mark.parametrize("gone", range(4))
def test_undoing_one_removes_just_that_one(build_model: Build, gone: int) -> None:
    """What stays is what the others make of the model without it, bit for bit."""
    model, other = build_model("gpt2"), build_model("gpt2")
    torch.manual_seed(5)
    made = handles(model, [])
    made[gone].restore()
    torch.manual_seed(5)
    kept = [[edit for edit, _ in handle._layer.edits] for handle in handles(other, [])]
    fresh = build_model("gpt2")
    for number, edits in enumerate(kept):
        for edit in edits if number != gone else []:
            AppliedEdits(EditableModel(fresh)).apply(edit)
    assert same(model, state(fresh))
    assert torch.equal(said(model), said(fresh))


def test_later_edits_are_named(build_model: Build) -> None:
    model = build_model("gpt2")
    first, second, third = (AppliedEdits(EditableModel(model), name) for name in ("one", "two", "three"))
    for handle in (first, second, third):
        handle.apply(change(FIRST))
    assert (first.later, second.later, third.later) == (["two", "three"], ["three"], [])
    edited = state(model)
    with pytest.raises(InputError, match="expected one to be the last edits of this model, but two, three came later"):
        first.apply(change(SECOND))
    assert same(model, edited)
    with pytest.warns(UserWarning, match=r"two is taken out and what came later stays \(three\)"):
        second.restore()
    assert first.later == ["three"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        third.restore()
        first.apply(change(SECOND))  # it is the last again
        first.restore()
    assert same(model, state(build_model("gpt2")))


def test_edits_that_nobody_can_undo_any_more_stay(build_model: Build) -> None:
    """A handle that is thrown away is no way back; what it did is not lost by the undo of an earlier one."""
    model, fresh = build_model("gpt2"), build_model("gpt2")
    first, edit = AppliedEdits(EditableModel(model), "first"), change(FIRST)
    first.apply(change(FIRST))
    AppliedEdits(EditableModel(model), "thrown away").apply(edit)
    gc.collect()
    with pytest.warns(UserWarning, match="thrown away"):
        first.restore()
    AppliedEdits(EditableModel(fresh)).apply(edit)
    assert same(model, state(fresh))
    assert not model.editkit_applied  # and no copies are kept for nobody


def test_neither_a_model_nor_its_copy_is_kept(build_model: Build) -> None:
    model = build_model("gpt2")
    before = state(model)
    applied = AppliedEdits(EditableModel(model))
    applied.apply(change(FIRST))
    copied, again = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert not copied.editkit_applied and not again.editkit_applied
    assert same(copied, state(model))
    on_copy = AppliedEdits(EditableModel(copied))
    on_copy.apply(change(FIRST))
    applied.restore()
    assert same(model, before)
    on_copy.restore()
    assert not same(copied, before)  # the edit that was in it when it was copied
    gone = weakref.ref(model)
    del model, applied
    gc.collect()
    assert gone() is None


def test_an_edit_that_the_dtype_cannot_hold_is_refused(build_model: Build) -> None:
    model = build_model("gpt2").to(torch.float16)
    applied, before = AppliedEdits(EditableModel(model)), state(model)
    for value, told in (
        (1e6, "torch.float16 can hold"),
        (float("nan"), "a finite weight change"),
        (torch.inf, "finite"),
    ):
        with pytest.raises(InputError, match=told):
            applied.apply(WeightEdit(deltas={FIRST: DenseDelta(torch.full(SHAPE, value))}))
        assert same(model, before)
