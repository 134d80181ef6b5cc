"""Facts that ask for two targets after one text: what drop leaves of them, in the weights and in the ledger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from editing import Loaded, facts, quiet_edit, same, weights

from editkit import MEMIT, ROME, Fact, load_edits
from editkit.editors.closed_form.editor import ClosedFormEditor
from editkit.editors.closed_form.search import ValueSearch

QUICK = ValueSearch(num_steps=3, context_templates=[["{}"]])


def _contradicting() -> tuple[list[Fact], Fact]:
    """Three facts, and a fourth with the text of the first one."""
    agreed = facts(3)
    return agreed, replace(agreed[0], target_new="Atlantis", fact_id="again")


def test_a_dropped_fact_leaves_the_edit_as_if_it_had_not_been_given(atlas: Loaded, moments: Path) -> None:
    agreed, again = _contradicting()
    editor = MEMIT(layers=[0], values=QUICK, dependent="drop")
    alone = quiet_edit(atlas, editor, moments, agreed)
    there = weights(atlas[0])
    alone.undo()
    with pytest.warns(UserWarning, match="1 fact asks for another target .* dropped"):
        done = quiet_edit(atlas, MEMIT(layers=[0], values=QUICK, dependent="drop"), moments, [*agreed, again])
    assert same(atlas[0], there)
    (batch,) = done.edits.batches
    assert batch.edit.notes["dropped"] == ["again"]
    assert batch.edit.notes["contradicting"] == [[agreed[0].fact_id, "again"]]
    assert [fact.fact_id for fact in batch.facts] == [fact.fact_id for fact in agreed]


def test_a_batch_of_nothing_but_dropped_facts_changes_nothing(atlas: Loaded, moments: Path, tmp_path: Path) -> None:
    agreed, again = _contradicting()
    before = weights(atlas[0])
    editor = ROME(layers=[0], values=QUICK, dependent="drop")
    with pytest.warns(UserWarning, match="dropped"):
        done = quiet_edit(atlas, editor, moments, [agreed[0], again, agreed[1]], mode="sequential")
    assert [len(batch.facts) for batch in done.edits.batches] == [1, 0, 1]
    assert not done.edits.batches[1].edit.weight_changes()
    there = weights(atlas[0])
    done.save(tmp_path / "edits")
    done.undo()
    assert same(atlas[0], before)
    load_edits(tmp_path / "edits").apply(atlas[0])
    assert same(atlas[0], there)


@pytest.mark.parametrize("mode", ["independent", "sequential"])
def test_in_batches_that_never_meet_nothing_contradicts(atlas: Loaded, moments: Path, mode: str) -> None:
    agreed, again = _contradicting()
    editor: ClosedFormEditor = MEMIT(layers=[0], values=QUICK, dependent="fail")
    given = [agreed[0], again]
    if mode == "independent":
        assert len(quiet_edit(atlas, editor, moments, given, mode=mode, batch_size=1).edits.batches) == 2
        return
    before = weights(atlas[0])
    with pytest.raises(ValueError, match=r"model\.dependent: .*Atlantis"):
        quiet_edit(atlas, editor, moments, given, mode=mode, batch_size=1)
    assert same(atlas[0], before)
