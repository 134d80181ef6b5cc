"""ROME: one fact at a time, met exactly."""

from __future__ import annotations

from typing_extensions import override

from editkit.editors.closed_form.editor import ClosedFormEditor
from editkit.editors.closed_form.layers import LayerProblem
from editkit.functional import LowRankDelta, rome_update


class ROME(ClosedFormEditor):
    """Rank-One Model Editing (Meng et al. 2022, eq. 2), with one averaged key throughout (r-ROME)."""

    max_batch_size = 1

    @override
    def solve(self, problem: LayerProblem) -> LowRankDelta:
        return rome_update(problem.keys, problem.residuals, problem.second_moment)
