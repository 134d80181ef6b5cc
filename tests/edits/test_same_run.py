"""Whether a ledger was begun by the run that is to go on with it: versions may differ, anything else is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from editkit import Edits, Fact, InputError
from editkit.data.plan import RunPlan
from editkit.edits import EditBatch, WeightEdit
from editkit.edits.same_run import check_same_run
from editkit.models.fingerprint import SAMPLED, fingerprint, sampled_fingerprint

MODEL, ANOTHER = nn.Linear(2, 2), nn.Linear(2, 2)
FACTS = tuple(Fact(f"S{n}", "{} is", "x", fact_id=str(n)) for n in range(5))
ABOUT: dict[str, Any] = {
    "editor": "editkit.EMMET", "hyperparameters": {"ridge": 1.0, "layers": (0, 1)}, "layers": [0, 1],
    "versions": {"torch": "2.6"},
}  # fmt: skip


def begun(**changes: Any) -> Edits:
    batches = [EditBatch(FACTS[:2], WeightEdit()), EditBatch(FACTS[2:3], WeightEdit(notes={"dropped": ["3"]}))]
    return replace(Edits(batches, True, fingerprint(MODEL), {**ABOUT, "undone": []}), **changes)


PLAN = RunPlan(FACTS, 2, sequential=True)


def test_the_same_run_goes_on() -> None:
    check_same_run(begun(), MODEL, ABOUT, PLAN)
    # as it stands in a file, where tuples are lists and nothing was dropped
    read = {**ABOUT, "hyperparameters": {"layers": [0, 1], "ridge": 1.0}}
    check_same_run(begun(about=read), MODEL, ABOUT, PLAN)
    check_same_run(begun(), MODEL, {**ABOUT, "versions": {"torch": "3.0"}}, PLAN)
    check_same_run(begun(batches=[]), MODEL, ABOUT, PLAN)  # no batch is made yet


def test_an_older_ledger_is_of_the_same_run_by_its_own_fingerprint() -> None:
    check_same_run(begun(model=SAMPLED + sampled_fingerprint(MODEL)), MODEL, ABOUT, PLAN)
    with pytest.raises(InputError, match=r"model\.lm differs"):
        check_same_run(begun(model=SAMPLED + sampled_fingerprint(MODEL)), ANOTHER, ABOUT, PLAN)


def test_facts_count_in_any_order_and_with_those_dropped() -> None:
    order = begun(batches=[EditBatch(FACTS[1::-1], WeightEdit())])
    check_same_run(order, MODEL, ABOUT, PLAN)
    with pytest.raises(InputError, match=r"data \(facts of batch 1\) differs"):
        check_same_run(begun(), MODEL, ABOUT, replace(PLAN, facts=(*FACTS[:3], FACTS[4], FACTS[3])))


@pytest.mark.parametrize(
    ("edits", "model", "about", "plan", "told"),
    [
        (
            {},
            ANOTHER,
            {},
            {},
            "model.lm differs: .* in the ledger, .* now",
        ),
        (
            {"sequential": False},
            MODEL,
            {},
            {},
            "weight_update.mode differs: .*false.* in the ledger, .*true.* now",
        ),
        ({}, MODEL, {"editor": "my.Own"}, {}, r"model \(editor\) differs"),
        ({}, MODEL, {"hyperparameters": {"ridge": 2.0}}, {}, r"model \(hyperparameters\) differs"),
        ({}, MODEL, {"templates": [["{}"]]}, {}, r"model \(templates\) differs: .*null.* in the ledger"),
        ({}, MODEL, {}, {"batch_size": 3}, r"data \(facts of batch 0\) differs"),
        ({}, MODEL, {}, {"facts": FACTS[1:]}, r"data \(facts of batch 0\) differs"),
    ],
)
def test_the_first_difference_is_named(
    edits: dict[str, Any], model: nn.Module, about: dict[str, Any], plan: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told) as caught:
        check_same_run(begun(**edits), model, {**ABOUT, **about}, replace(PLAN, **plan))
    assert str(caught.value).startswith("run_dir: expected a run with the same settings")
    assert "\n" not in str(caught.value)
