"""Choosing the ridge ρ: the whole path from one eigendecomposition, scored on what is not reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from rich.progress import Progress

from editkit.data.facts import Fact
from editkit.data.module import group_by_key
from editkit.data.plan import RunPlan, Tuning
from editkit.editors.closed_form.layers import Goal, LayerSolver
from editkit.editors.closed_form.problem import LayerProblem
from editkit.editors.closed_form.search import Group, SearchTotals
from editkit.editors.closed_form.searcher import Progress as SearchProgress
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.edits import AppliedEdits
from editkit.functional import Delta
from editkit.functional.scores import harmonic_mean
from editkit.utils.distributed import broadcast_object, gather, rank_and_size
from editkit.utils.errors import InputError
from editkit.utils.progress import progress_bar

#: from groups, the totals so far and what is told of the progress, to value vectors and the totals after them
FindValues = Callable[[Sequence[Group], SearchTotals, SearchProgress], tuple[ValueVectors, SearchTotals]]

RIDGES, FINER = 10, 4  # on the whole path, and then between the neighbours of the best of these
STEP = 256  # facts handed to the search at a time


@dataclass(frozen=True)
class PathPoint:
    """One ridge and what it does.

    Attributes:
        rho: ρ.
        scores: ES, PS and NS (those that can be measured) and their harmonic mean S, 0-100.
        norm: Frobenius norm of the weight change, over all layers.
    """

    rho: float
    scores: dict[str, float]
    norm: float

    def row(self) -> dict[str, float]:
        """As one row of a table."""
        return {"rho": self.rho, **self.scores, "norm": self.norm}


class UpdatePath(Protocol):
    """The changes of one layer for every ridge."""

    def delta(self, rho: float) -> Delta:
        """The change at one."""

    def grid(self, count: int) -> list[float]:
        """Ridges, ascending, over the range in which they matter."""


class Method(Protocol):
    """What a method does at a ridge."""

    def reach(self, vectors: ValueVectors) -> Goal:
        """What is asked for these value vectors."""

    def path(self, problem: LayerProblem) -> UpdatePath:
        """For every ridge, of the first layer."""

    def solve_at(self, problem: LayerProblem, rho: float) -> Delta:
        """At one, of a later layer."""

    def restrain(self, delta: Delta, problem: LayerProblem) -> Delta:
        """The change as it is made."""


def choose_ridge(find: FindValues, solver: LayerSolver, plan: RunPlan, method: Method) -> dict[str, Any]:
    """Choose ρ by the score S on the plan's tuning facts, or take the one that an interrupted run has chosen.

    Args:
        find: finds value vectors.
        solver: goes through the edited layers of the unedited model.
        plan: the run's.
        method: what is done at a ridge.

    Returns:
        "rho", and "ridge_path": a row for each ridge that was tried (JSON values).
    """
    if "ridge_path" in plan.findings:
        return {name: plan.findings[name] for name in ("rho", "ridge_path")}
    points = score_path(find, solver, plan.tuning, method, plan.progress and rank_and_size()[0] == 0)
    return {"rho": best(points).rho, "ridge_path": [point.row() for point in points]}


@torch.no_grad()
def score_path(
    find: FindValues, solver: LayerSolver, tuning: Tuning | None, method: Method, progress: bool = False
) -> list[PathPoint]:
    """Edit the tuning facts with every ridge of the path, score each, and put the weights back.

    The value vectors are found once. The first layer's updates come from one eigendecomposition; the later layers' of
    a spread depend on those before them and are solved one by one.

    Args:
        find: finds value vectors.
        solver: goes through the edited layers of the unedited model.
        tuning: facts, as many as a batch of edits has, and the rows to score by; of several processes, each searches
            its share of the facts.
        method: what is done at a ridge.
        progress: show a progress bar.

    Raises:
        InputError: there are no rows to score by, or nothing that scores them.
    """
    check_tuning(tuning)
    assert tuning is not None and tuning.score is not None
    points: list[PathPoint] = []
    applied = AppliedEdits(solver.model)
    with progress_bar(shown=progress) as bar:
        goal = method.reach(find_all(find, tuning.facts, bar, "ridge: values").to(solver.model.device))
        first = solver.problem(goal, 0)
        path = method.path(first)

        def solve(problem: LayerProblem, rho: float) -> Delta:
            delta = path.delta(rho) if problem is first else method.solve_at(problem, rho)
            return method.restrain(delta, problem)

        task = bar.add_task("ridge: scores", total=RIDGES + FINER)
        waiting = path.grid(RIDGES)
        while waiting:
            rho = waiting.pop(0)
            solved = solver.solve(goal, partial(solve, rho=rho), first)
            try:
                applied.apply(solved.edit(solver.model))
                scores = tuning.score(tuning.rows)
            finally:
                applied.restore()
            norm = sum(delta.norm() ** 2 for delta in solved.deltas.values()) ** 0.5
            points.append(PathPoint(rho, {**scores, "S": _harmonic(scores)}, norm))
            bar.advance(task)
            if len(points) == RIDGES:
                waiting = _between_neighbors([point.rho for point in points], best(points).rho)
    return broadcast_object(sorted(points, key=lambda point: point.rho))


def check_tuning(tuning: Tuning | None) -> None:
    """Raise an ``InputError`` unless there are rows to score by, and something that scores them."""
    if tuning is None or not tuning.rows or tuning.score is None:
        raise InputError(
            "ridge: 'auto' chooses by scores, but none of the tuning facts has a target_true and prompts that are not "
            "reported; give a number, or more facts"
        )


def best(points: Sequence[PathPoint]) -> PathPoint:
    """The point of the highest S; of several, that of the largest ρ, which changes the weights least."""
    return max(points, key=lambda point: (round(point.scores["S"], 6), point.rho))


def _between_neighbors(grid: Sequence[float], chosen: float) -> list[float]:
    """``FINER`` ridges in equal ratios between those beside one of an ascending grid, that one left out."""
    at = grid.index(chosen)
    low, high = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
    middle = FINER // 2 + 1 if low < chosen < high else None
    steps = FINER + 1 + (middle is not None)
    return [low * (high / low) ** (i / steps) for i in range(1, steps) if i != middle]


def find_all(find: FindValues, facts: Sequence[Fact], bar: Progress, told: str) -> ValueVectors:
    """Value vectors of all these facts, on every process; each searches its share.

    Args:
        find: finds value vectors.
        facts: the facts.
        bar: shows how far it is.
        told: what it is called there.
    """
    rank, world = rank_and_size()
    mine = group_by_key(facts)[rank::world]
    task = bar.add_task(told, total=sum(len(group) for group in mine))
    parts: list[ValueVectors] = []
    totals = SearchTotals()
    for start in range(0, len(mine), STEP):
        found, totals = find(
            mine[start : start + STEP], totals, lambda done, loss, probability: bar.update(task, completed=done)
        )
        parts.append(found)
    together = ValueVectors.cat(parts) if parts else None
    if world == 1 and together is not None:
        return together
    return ValueVectors.deal_in(gather(together and together.to("cpu")))


def _harmonic(scores: Mapping[str, float]) -> float:
    return float(harmonic_mean(torch.tensor(list(scores.values()))))
