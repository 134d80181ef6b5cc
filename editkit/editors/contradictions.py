"""Facts that ask for different targets after the same text, of which a model can hold only one."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

from editkit.data.facts import Fact
from editkit.data.plan import RunPlan
from editkit.utils.errors import InputError, shorten
from editkit.utils.words import listed

SHOWN = 5


@dataclass(frozen=True)
class Contradiction:
    """Two facts with one text and two targets.

    Attributes:
        first: the one that comes first.
        later: the other.
        batch: the batch of edits that the later one is in.
    """

    first: Fact
    later: Fact
    batch: int


def contradictions(plan: RunPlan) -> list[Contradiction]:
    """The facts that contradict an earlier one which acts on the model when they do.

    That is one of their own batch and, where batches stay, of any batch before it. Prompts that give the same text
    count as the same, whatever is the subject in them.

    >>> facts = [Fact("Lyon", "{} is in", "Peru"), Fact("Lyon is", "{} in", "Chile"), Fact("Lyon", "{} is in", "Peru")]
    >>> [c.later.target_new for c in contradictions(RunPlan(tuple(facts), 3))]
    ['Chile']
    >>> contradictions(RunPlan(tuple(facts), 1)), len(contradictions(RunPlan(tuple(facts), 1, sequential=True)))
    ([], 1)
    """
    found: list[Contradiction] = []
    first: dict[str, Fact] = {}
    for batch in range(plan.num_batches):
        if not plan.sequential:
            first = {}
        for fact in plan.batch(batch):
            before = first.setdefault(" ".join(fact.text().split()), fact)
            if before.target_new != fact.target_new:
                found.append(Contradiction(before, fact, batch))
    return found


def check_contradictions(plan: RunPlan, choice: Literal["keep", "drop", "fail"]) -> None:
    """Report the facts that contradict others.

    Args:
        plan: the run's.
        choice: "fail" where there are any; else a warning says whether they are kept or dropped.

    Raises:
        InputError: there are some, and the choice is "fail".
    """
    found = contradictions(plan)
    if not found:
        return
    pairs = [
        f"{shorten(c.later.text(), 48)}: {shorten(c.first.target_new, 24)} (fact {c.first.fact_id}) and "
        f"{shorten(c.later.target_new, 24)} (fact {c.later.fact_id})"
        for c in found
    ]
    count = f"{len(found)} fact{'s ask' if len(found) > 1 else ' asks'}"
    which = f"{count} for another target than an earlier one with the same text ({listed(pairs, SHOWN, '; ')})"
    if choice == "fail":
        raise InputError(
            f"model.dependent: expected facts that agree, but {which}; correct them, or drop the later ones "
            "(model.dependent=drop)"
        )
    done = "the later ones are dropped" if choice == "drop" else "kept, though the model can hold only one of each"
    warnings.warn(f"data.facts: {which}: {done}", stacklevel=2)
