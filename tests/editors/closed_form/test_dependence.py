"""Facts whose keys depend on those of others: kept, dropped or refused, and named in any case."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from editing import Loaded, facts, weights

import editkit
from editkit.data.facts import Fact
from editkit.data.plan import RunPlan
from editkit.editors import EMMET, ValueSearch
from editkit.editors.closed_form.dependence import check_dependence
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.edits import AppliedEdits, EditBatch
from editkit.functional import factor_second_moment
from editkit.utils.errors import InputError


def prepared(atlas: Loaded, moments: Path, **options: object) -> EMMET:
    source = editkit.SecondMomentSource(path=str(moments), num_tokens=8000)
    editor = EMMET(layers=[1], values=ValueSearch(num_steps=6), second_moment=source, **options)  # type: ignore[arg-type]
    editor.attach(*atlas)
    editor.prepare(RunPlan(tuple(facts(4)), 4))
    return editor


@pytest.mark.parametrize("choice", ["keep", "drop", "fail"])
def test_facts_whose_keys_depend_on_others(atlas: Loaded, moments: Path, choice: str) -> None:
    editor = prepared(atlas, moments, ridge=0.0 if choice == "drop" else 1.0, dependent=choice)
    given = facts(4)
    found = editor.find_values([[fact] for fact in given])
    # a fifth fact whose key is a combination of two others
    extra = Fact("Zzyzx", "{} is", "Peru", fact_id="extra")
    vectors = ValueVectors(
        (*found.groups, [extra]),
        torch.cat([found.keys, found.keys[:, :1] + 2 * found.keys[:, 2:3]], 1),
        torch.cat([found.values, found.values[:, :1]], 1),
    )
    before = weights(atlas[0])
    if choice == "fail":
        with pytest.raises(InputError, match=r"model.dependent: .* of 1 fact \(Zzyzx\)"):
            editor.edit_for(vectors)
        assert all(torch.equal(p, before[name]) for name, p in atlas[0].named_parameters())
        return
    with pytest.warns(UserWarning, match=f"Zzyzx.*{'dropped' if choice == 'drop' else 'kept'}"):
        edit = editor.edit_for(vectors).rounded()
    if choice == "drop":  # the others' edit is the one that they have alone
        alone = editor.edit_for(found).rounded()
        assert all(torch.equal(delta.dense(), alone.deltas[name].dense()) for name, delta in edit.deltas.items())
    AppliedEdits(editor.editable).apply(edit)
    batch = EditBatch.of([*given, extra], edit, editor.editable)
    involved = [given[0].fact_id, given[2].fact_id, "extra"]
    assert batch.edit.notes["dependent"] == [involved]
    assert batch.edit.notes["condition_number"] is None
    assert batch.edit.notes.get("dropped") == (["extra"] if choice == "drop" else None)
    assert batch.facts == (given if choice == "drop" else [*given, extra])


def test_what_is_dropped_in_a_run_is_no_fact_of_its_batch(atlas: Loaded, moments: Path) -> None:
    given = facts(3)

    class Doubling(EMMET):
        """The last fact's key is the first one's, as if they had been equal."""

        def edit_for(self, vectors: ValueVectors) -> editkit.WeightEdit:
            keys = vectors.keys.clone()
            keys[:, -1] = keys[:, 0]
            return super().edit_for(ValueVectors(vectors.groups, keys, vectors.values))

    source = editkit.SecondMomentSource(num_tokens=8000)
    editor = Doubling(layers=[1], values=ValueSearch(num_steps=3), second_moment=source, dependent="drop")
    with pytest.warns(UserWarning, match=f"{given[2].subject}.*dropped"):
        edited = editkit.edit(*atlas, given, editor, second_moment=moments, progress=False, evaluate=False)
    (batch,) = edited.edits.batches
    assert batch.facts == given[:2]
    assert batch.edit.notes["dropped"] == [given[2].fact_id]


def test_nan_keys_are_named_and_nothing_is_changed(atlas: Loaded, moments: Path) -> None:
    editor = prepared(atlas, moments)
    vectors = editor.find_values([[fact] for fact in facts(2)])
    vectors.keys[3, 1] = torch.nan
    before = weights(atlas[0])
    with pytest.raises(InputError, match=f"keys: expected finite numbers.*{facts(2)[1].subject}"):
        editor.edit_for(vectors)
    assert all(torch.equal(p, before[name]) for name, p in atlas[0].named_parameters())


def test_one_fact_depends_on_none_and_independent_keys_are_noted() -> None:
    second_moment = factor_second_moment(torch.eye(4, dtype=torch.float64))
    groups = tuple([Fact(f"S{n}", "{} is", "x", fact_id=str(n))] for n in range(3))
    vectors = ValueVectors(groups, torch.eye(4)[:, :3], torch.ones(2, 3))
    alone, notes = check_dependence(vectors.select([0]), second_moment, "fail")
    assert alone.names == ["S0"]
    assert notes == {}
    same, notes = check_dependence(vectors, second_moment, "fail")
    assert same is vectors
    assert notes == {"condition_number": pytest.approx(1.0), "effective_rank": pytest.approx(3.0)}
