"""The plan of a run: every fact in one batch, measured before, after its batch and at the end; and never changed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from itertools import product

import pytest

from editkit.data.facts import Fact
from editkit.data.plan import Measurement, RunPlan

FACTS = tuple(Fact(f"S{n}", "{} is", "x", fact_id=str(n)) for n in range(12))
SIZES = list(product((1, 2, 5, 12), (1, 2, 3, 5, 12, 14)))


@pytest.mark.parametrize(("count", "size"), SIZES)
def test_batches_share_out_the_facts_in_their_order(count: int, size: int) -> None:
    plan = RunPlan(FACTS[:count], size)
    batches = [plan.batch(n) for n in range(plan.num_batches)]
    assert [fact for batch in batches for fact in batch] == list(plan.facts)
    assert all(len(batch) == size for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= size
    for number, batch in enumerate(batches):
        assert [plan.facts[i] for i in plan.positions(number)] == batch
    for beyond in (plan.num_batches, plan.num_batches + 3):
        assert plan.batch(beyond) == []
        assert len(plan.positions(beyond)) == 0
    for most in range(1, plan.num_batches + 2):
        fewer = replace(plan, max_batches=most)
        assert fewer.num_batches == min(most, plan.num_batches)
        assert [fewer.batch(n) for n in range(fewer.num_batches)] == batches[:most]


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize(("count", "size"), SIZES)
def test_each_fact_is_measured_before_after_and_at_the_end(count: int, size: int, sequential: bool) -> None:
    plan = RunPlan(FACTS[:count], size, sequential=sequential)
    assert plan.before() == Measurement({"before": range(count)})
    after = [plan.after(n) for n in range(plan.num_batches)]
    assert [m.batch for m in after] == list(range(plan.num_batches))
    assert [i for m in after for i in m.phases["after"]] == list(range(count))
    # with one batch, what counts as "after" is the end already
    finals = [m.phases["final"] for m in after if "final" in m.phases]
    assert finals == ([range(count)] if sequential and plan.num_batches > 1 else [])
    assert all("final" not in m.phases for m in after[:-1])


def test_the_end_is_that_of_the_batches_that_are_made() -> None:
    plan = RunPlan(FACTS, 5, max_batches=2, sequential=True)
    assert plan.after(1).phases == {"after": range(5, 10), "final": range(10)}
    assert plan.after(1).probes


@pytest.mark.parametrize("sequential", [True, False])
def test_what_counts_twice_is_measured_once(sequential: bool) -> None:
    plan = RunPlan(FACTS, 5, sequential=sequential)
    last = plan.after(2)
    assert list(last.facts) == list(range(12) if sequential else range(10, 12))
    assert set(last.phases["after"]) <= set(last.facts)
    assert list(plan.before().facts) == list(range(12))


@pytest.mark.parametrize(
    ("probe_every", "measured"), [(None, [5]), (1, [0, 1, 2, 3, 4, 5]), (2, [1, 3, 5]), (4, [3, 5]), (9, [5])]
)
def test_probes_are_due_now_and_then_and_after_the_last_batch(probe_every: int | None, measured: list[int]) -> None:
    plan = RunPlan(FACTS, 2, probe_every=probe_every)
    assert [n for n in range(plan.num_batches) if plan.after(n).probes] == measured
    assert plan.before().probes


def test_a_plan_does_not_change() -> None:
    plan = RunPlan(FACTS, 2)
    for part, name, value in ((plan, "batch_size", 3), (plan.before(), "batch", 1)):
        with pytest.raises(FrozenInstanceError):
            setattr(part, name, value)
    assert isinstance(plan.facts, tuple)
