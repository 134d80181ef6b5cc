"""The scores by which settings are chosen."""

from __future__ import annotations

from collections.abc import Sequence

from editkit.data.plan import Score
from editkit.data.rows import EvaluationRow
from editkit.evaluation.evaluator import Evaluator
from editkit.evaluation.scores import FactScores

ROWS = 512  # measured at a time


def tuning_score(evaluator: Evaluator) -> Score:
    """What measures ES, PS and NS (those that the rows allow), 0-100, of rows on the evaluator's model as it is."""

    def score(rows: Sequence[EvaluationRow]) -> dict[str, float]:
        scores = FactScores()
        for start in range(0, len(rows), ROWS):
            scores.update(evaluator.edits(rows[start : start + ROWS]))
        figures = scores.results(intervals=False)
        return {name: figure["mean"] for name, figure in figures.items() if name in ("ES", "PS", "NS")}

    return score
