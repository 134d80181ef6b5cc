"""Choosing the ridge ρ: the whole path from one eigendecomposition, scored on what is not reported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.progress import Progress

from editkit.data.facts import Fact
from editkit.data.module import group_by_key
from editkit.data.rows import EvaluationRow
from editkit.editors.closed_form.editor import Editor, ValueVectors
from editkit.edits import WeightSnapshot, apply_delta, stored
from editkit.evaluation.evaluator import Evaluator
from editkit.evaluation.scores import FactScores
from editkit.functional import Delta, FactoredSecondMoment, preservation_memorization_update, ridge_path
from editkit.functional.scores import harmonic_mean
from editkit.utils.distributed import broadcast_object, gather, place
from editkit.utils.errors import InputError
from editkit.utils.progress import progress_bar

RIDGES, FINER = 10, 4  # on the whole path, and then between the neighbours of the best of these
STEP = 256  # facts handed to the search at a time
ROWS = 512  # scored at a time


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


@torch.no_grad()
def score_path(
    editor: Editor,
    moments: dict[int, FactoredSecondMoment],
    facts: Sequence[Fact],
    rows: Sequence[EvaluationRow],
    progress: bool = False,
) -> list[PathPoint]:
    """Edit the tuning facts with every ridge of the path, score each, and put the weights back.

    The value vectors are found once. The first layer's updates come from one eigendecomposition; the later layers' of
    a spread depend on those before them and are solved one by one.

    Args:
        editor: configured, on the unedited model.
        moments: block to factored second moment.
        facts: as many as a batch of edits has; of several processes, each searches its share.
        rows: prompts of these facts.
        progress: show a progress bar.

    Raises:
        InputError: there are no rows to score by.
    """
    if not rows:
        raise InputError(
            "ridge: 'auto' chooses by scores, but none of the tuning facts has a target_true and prompts that are not "
            "reported; give a number, or more facts"
        )
    layers = editor.edited_layers
    before = WeightSnapshot(editor.editable, layers)
    points = []
    with shown(progress) as bar:
        _find(editor, facts, bar)
        groups, keys = editor.found.groups, torch.cat(editor.found.keys, 1)
        values = torch.cat(editor.found.values, 1)
        share = [editor.spread.share(len(layers) - i) for i in range(len(layers))]
        first = ridge_path(keys, (values - editor.states(groups)) * share[0], moments[layers[0]])
        task = bar.add_task("ridge: scores", total=RIDGES + FINER)
        waiting = first.grid(RIDGES)
        try:
            while waiting:
                rho = waiting.pop(0)
                deltas: list[Delta] = []
                for i, layer in enumerate(layers):
                    if i == 0:
                        made: Delta = first.delta(rho)
                    else:
                        residuals = (values - editor.states(groups)) * share[i]
                        keys = editor.keys(groups, layer)
                        made = preservation_memorization_update(keys, residuals, moments[layer], rho)
                    deltas.append(stored(made))
                    apply_delta(editor.editable, layer, deltas[-1])
                norm = sum(delta.norm() ** 2 for delta in deltas) ** 0.5
                points.append(PathPoint(rho, _scores(editor, rows), norm))
                before.restore()
                bar.advance(task)
                if len(points) == RIDGES:
                    waiting = _between_neighbors([point.rho for point in points], best(points).rho)
        finally:
            before.restore()
            editor.found = ValueVectors()
    return broadcast_object(sorted(points, key=lambda point: point.rho))


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


def _find(editor: Editor, facts: Sequence[Fact], bar: Progress) -> None:
    """Value vectors of all tuning facts, in ``editor.found``, on every process."""
    rank, world = place()
    groups = group_by_key(facts)
    mine = groups[rank::world]
    task = bar.add_task("ridge: values", total=sum(len(group) for group in mine))
    told, editor.found = editor.progress, ValueVectors()
    editor.progress = lambda done, loss, probability: bar.update(task, completed=done)
    try:
        with torch.enable_grad():
            for start in range(0, len(mine), STEP):
                editor.find_values(mine[start : start + STEP])
    finally:
        editor.progress = told
    if world > 1:
        editor.found = ValueVectors.together(gather(editor.found.on_cpu()), editor.editable.device)


def _scores(editor: Editor, rows: Sequence[EvaluationRow]) -> dict[str, float]:
    bundle, subject = FactScores(), Evaluator(editor.editable, editor.tokenizer, editor.protocol)
    for start in range(0, len(rows), ROWS):
        bundle.update(subject.edits(rows[start : start + ROWS]))
    found = {name: r["mean"] for name, r in bundle.results(intervals=False).items() if name in ("ES", "PS", "NS")}
    found["S"] = float(harmonic_mean(torch.tensor(list(found.values()))))
    return found


@contextmanager
def shown(progress: bool) -> Iterator[Progress]:
    """A progress bar that leaves nothing behind, or lines of a log."""
    with progress_bar(shown=progress) as bar:
        yield bar
