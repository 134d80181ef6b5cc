"""``editkit.edit``: a model already in memory is edited in place, and taken back bit for bit, batch by batch too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from editing import Loaded, facts, quiet_edit, same, weights
from transformers import AutoModelForCausalLM
from typing_extensions import override

import editkit
from editkit.atlas.world import load_world
from editkit.data.facts import Fact
from editkit.editors import EMMET, MEMIT, LayerProblem, ValueSearch
from editkit.edits import AppliedEdits, WeightEdit
from editkit.functional import DenseDelta, LowRankDelta
from editkit.models.editable import EditableModel
from editkit.models.loading import load_language_model
from editkit.utils.errors import InputError

QUICK = {"num_steps": 6}
BARE = [["{}"]]
WEIGHT = "transformer.h.1.mlp.c_proj.weight"


def batches_of_two(
    atlas: Loaded, moments: Path, given: list[Fact], mode: str = "sequential", **options: Any
) -> editkit.EditedModel:
    editor = EMMET(layers=[1], values=ValueSearch(**QUICK), **options)
    return quiet_edit(atlas, editor, moments, given, batch_size=2, mode=mode)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_undo_is_bit_exact(atlas: Loaded, dtype: torch.dtype) -> None:
    model = atlas[0].to(dtype)
    before = weights(model)
    editor = EMMET(
        layers=[1],
        values=ValueSearch(context_templates=BARE, num_steps=3),
        second_moment=editkit.SecondMomentSource(num_tokens=2000),
    )
    with editkit.edit(model, atlas[1], facts(2), editor, progress=False, evaluate=False) as edited:
        assert not same(edited.model, before)
    assert same(model, before)


def test_ledger_round_trip_is_bit_exact(atlas: Loaded, moments: Path, tmp_path: Path) -> None:
    before = weights(atlas[0])
    edited = batches_of_two(atlas, moments, facts(4))
    after = weights(atlas[0])
    edited.save(tmp_path / "edits")
    edited.undo()
    assert same(atlas[0], before)
    loaded = editkit.load_edits(tmp_path / "edits")
    loaded.apply(atlas[0])
    assert same(atlas[0], after)
    assert loaded.batches[0].facts == edited.edits.batches[0].facts
    again = editkit.load_edits(tmp_path / "edits")
    with pytest.raises(InputError, match="fingerprint"):
        again.apply(atlas[0])  # already edited
    with pytest.raises(InputError, match="act on it already"):
        loaded.apply(atlas[0])


def test_an_exception_leaves_the_model_as_it_was(atlas: Loaded, moments: Path) -> None:
    before = weights(atlas[0])
    third = facts(4)[2].subject
    inside: list[bool] = []

    class Broken(EMMET):
        @override
        def solve(self, problem: LayerProblem) -> LowRankDelta:
            if third in problem.names:
                inside.append(same(atlas[0], before))
                raise KeyboardInterrupt
            return super().solve(problem)

    atlas[0].train()
    with pytest.raises(KeyboardInterrupt):
        quiet_edit(atlas, Broken(layers=[1], values=ValueSearch(**QUICK)), moments, facts(4), batch_size=2)
    assert inside == [False]  # the first batch acted by then
    assert same(atlas[0], before)
    assert atlas[0].training


def test_one_batch_is_undone_and_the_later_ones_made_again(atlas: Loaded, moments: Path) -> None:
    given, before = facts(6), weights(atlas[0])
    batches_of_two(atlas, moments, given[:2] + given[4:])
    never_made = weights(atlas[0])
    for name, parameter in atlas[0].named_parameters():
        parameter.data.copy_(before[name])
    edited = batches_of_two(atlas, moments, given)
    edited.undo(batch=1, recompute=True)
    assert same(atlas[0], never_made)
    assert edited.facts == given[:2] + given[4:]
    assert edited.edits.about["undone"] == [{"batch": 1, "as_if_never_made": True}]
    edited.undo()
    assert same(atlas[0], before)


def test_batches_made_again_preserve_the_keys_of_those_that_stay(atlas: Loaded, moments: Path) -> None:
    """What the editor gathered of the batch that is undone is forgotten; of those before it, it is not."""
    given = facts(8)
    options: dict[str, Any] = {"ridge": 1.0, "earlier_keys": "auto"}
    expected = batches_of_two(atlas, moments, given[:2] + given[4:], **options)
    never_made = weights(atlas[0])
    expected.undo()
    edited = batches_of_two(atlas, moments, given, **options)
    edited.undo(batch=1, recompute=True)
    assert same(atlas[0], never_made)
    assert [b.facts for b in edited.edits.batches] == [b.facts for b in expected.edits.batches]


def test_one_batch_is_taken_out_of_sequential_ones_and_the_difference_told(atlas: Loaded, moments: Path) -> None:
    given = facts(6)
    edited = batches_of_two(atlas, moments, given)
    with pytest.warns(UserWarning, match="not as if it had never been made: the 1 later"):
        edited.undo(batch=1)
    deltas = [b.edit.weight_changes()[WEIGHT].dense().double() for b in edited.edits.batches]
    assert len(deltas) == 2
    now = atlas[0].transformer.h[1].mlp.c_proj.weight.double()
    edited.undo()
    change = (now - atlas[0].transformer.h[1].mlp.c_proj.weight.double()).T
    torch.testing.assert_close(change, deltas[0] + deltas[1], rtol=1e-4, atol=1e-6)


def test_undoing_the_last_batch_is_exact(atlas: Loaded, moments: Path) -> None:
    given, before = facts(4), weights(atlas[0])
    first = batches_of_two(atlas, moments, given[:2])
    after_first = weights(atlas[0])
    first.undo()
    edited = batches_of_two(atlas, moments, given)
    edited.undo(batch=1)
    assert same(atlas[0], after_first)
    edited.undo()
    apart = batches_of_two(atlas, moments, given, mode="independent")
    stands = weights(atlas[0])
    apart.undo(batch=0)  # whose weights are not those that stand
    assert same(atlas[0], stands)
    apart.undo(batch=0)
    assert same(atlas[0], before)
    with pytest.raises(InputError, match="batch"):
        apart.undo(batch=0)


def test_two_editors_on_two_models_do_not_disturb_each_other(atlas: Loaded, moments: Path, tmp_path: Path) -> None:
    other = editkit.load_language_model("atlas")
    alone = batches_of_two(atlas, moments, facts(4))
    expected = weights(atlas[0])
    alone.undo()
    before = weights(other[0])
    one = batches_of_two(atlas, moments, facts(4))
    two = quiet_edit(other, MEMIT(layers=[2], values=ValueSearch(**QUICK)), tmp_path / "two", facts(2))
    assert same(atlas[0], expected)
    one.undo()
    assert not same(other[0], before)
    two.undo()
    assert same(other[0], before)


def test_offloaded_weights_are_refused(atlas: Loaded) -> None:
    model = AutoModelForCausalLM.from_config(atlas[0].config).to("meta")
    with pytest.raises(InputError, match="offloaded"):
        editkit.edit(model, atlas[1], facts(1))


def test_a_model_in_train_mode_is_edited_in_evaluation_mode_and_put_back(atlas: Loaded, moments: Path) -> None:
    atlas[0].train().requires_grad_(True)
    inside: list[bool] = []

    class Watching(EMMET):
        @override
        def solve(self, problem: LayerProblem) -> LowRankDelta:
            inside.append(atlas[0].training)
            return super().solve(problem)

    quiet_edit(atlas, Watching(layers=[1], values=ValueSearch(**QUICK)), moments, facts(1))
    assert inside == [False]
    assert atlas[0].training
    assert all(p.requires_grad for p in atlas[0].parameters())


def test_an_editor_that_preserves_no_keys_takes_no_second_moment(atlas: Loaded, tmp_path: Path) -> None:
    class Bias(editkit.Editor):
        @override
        def edit(self, batch: Sequence[Fact]) -> WeightEdit:
            return WeightEdit(deltas={"transformer.ln_f.bias": DenseDelta(torch.ones(256))})

    before = weights(atlas[0])
    with pytest.raises(InputError, match="second_moment: Bias preserves no keys"):
        editkit.edit(*atlas, facts(1), Bias(), second_moment=tmp_path)
    assert same(atlas[0], before)
    with editkit.edit(*atlas, facts(3), Bias(), progress=False) as edited:
        assert [len(b.facts) for b in edited.edits.batches] == [3]
        assert torch.equal(atlas[0].transformer.ln_f.bias, before["transformer.ln_f.bias"] + 1)
        assert {"before", "after"} <= set(edited.report())
    assert same(atlas[0], before)


def test_the_report_is_of_the_facts_given(atlas: Loaded, moments: Path) -> None:
    edited = quiet_edit(atlas, MEMIT(preservation_weight=30.0, layers=[0]), moments, facts(3), evaluate=True)
    report = edited.report()
    assert {"ES", "PS", "NS", "S", "EA"} <= set(report["before"]) == set(report["after"])
    assert report["after"]["EM"] > report["before"]["EM"]
    assert [sample["target_new"] for sample in report["samples"]] == [fact.target_new for fact in facts(3)]
    edited.undo()
    unmeasured = quiet_edit(atlas, MEMIT(layers=[1], values=ValueSearch(**QUICK)), moments, facts(1)).report()
    assert not {"before", "after"} & set(unmeasured)
    assert unmeasured["samples"] == []


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_unusable_place_for_second_moments_is_found_before_the_work(
    place: str, tmp_path: Path, atlas: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **options: object) -> None:
        raise AssertionError("the model was measured")

    monkeypatch.setattr("lightning.Trainer.validate", never)
    (tmp_path / "file").write_text("in the way")
    before = [parameter.clone() for parameter in atlas[0].parameters()]
    with pytest.raises(editkit.InputError, match=r"^second_moment\.path: ") as told:
        editkit.edit(*atlas, load_world().records("report")[:2], second_moment=tmp_path / place)
    assert str(tmp_path / place) in str(told.value)
    assert all(torch.equal(a, b) for a, b in zip(before, atlas[0].parameters(), strict=True))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


# ---------------------------------------------------------------- several calls on one model


@pytest.fixture
def three(atlas: Loaded, moments: Path) -> tuple[Loaded, dict[str, torch.Tensor], list[editkit.EditedModel]]:
    """Three edits of the atlas, one on top of the other, and its weights before."""
    before, given = weights(atlas[0]), facts(6)
    made = [
        quiet_edit(atlas, EMMET(layers=[1], values=ValueSearch(**QUICK)), moments, given[n : n + 2]) for n in (0, 2, 4)
    ]
    return atlas, before, made


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0), (2, 1, 0)])
@pytest.mark.filterwarnings("ignore:edits. EMMET of")
def test_calls_are_undone_in_any_order(three: Any, order: Sequence[int]) -> None:
    (model, _), before, made = three
    for call in order:
        assert not same(model, before)
        made[call].undo()
    assert same(model, before)


def test_undoing_an_earlier_call_leaves_the_later_ones(three: Any) -> None:
    (model, _), before, (first, second, third) = three
    named = r"EMMET of '.*' and 1 more is taken out and what came later stays \(EMMET of .*, EMMET of .*\)"
    with pytest.warns(UserWarning, match=named):
        first.undo()
    assert same(model, with_edits_of(before, second, third))
    with pytest.warns(UserWarning, match="is taken out"):
        second.undo(batch=0)
    assert same(model, with_edits_of(before, third))
    third.undo()
    assert same(model, before)


def with_edits_of(before: dict[str, torch.Tensor], *made: editkit.EditedModel) -> dict[str, torch.Tensor]:
    """The atlas's weights with the edits of some calls alone."""
    model, _ = load_language_model("atlas")
    assert same(model, before)
    for edited in made:
        for batch in edited.edits.batches:
            AppliedEdits(EditableModel(model)).apply(batch.edit)
    return weights(model)


def test_a_batch_below_later_calls_is_not_made_again(atlas: Loaded, moments: Path) -> None:
    given, before = facts(6), weights(atlas[0])
    edited = batches_of_two(atlas, moments, given[:4])
    later = quiet_edit(atlas, EMMET(layers=[1], values=ValueSearch(**QUICK)), moments, given[4:])
    both = weights(atlas[0])
    with pytest.raises(InputError, match=r"recompute: expected EMMET of .* to be the last edits"):
        edited.undo(batch=0, recompute=True)
    assert same(atlas[0], both)
    later.undo()
    edited.undo(batch=0, recompute=True)
    edited.undo()
    assert same(atlas[0], before)


def test_with_blocks_nest(atlas: Loaded, moments: Path) -> None:
    before, given = weights(atlas[0]), facts(4)
    with quiet_edit(atlas, EMMET(layers=[1], values=ValueSearch(**QUICK)), moments, given[:2]):
        outer = weights(atlas[0])
        with quiet_edit(atlas, EMMET(layers=[1], values=ValueSearch(**QUICK)), moments, given[2:]):
            assert not same(atlas[0], outer)
        assert same(atlas[0], outer)
    assert same(atlas[0], before)
