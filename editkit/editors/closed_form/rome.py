"""ROME: one fact at a time, met exactly."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from editkit.editors.closed_form.editor import Editor
from editkit.functional import FactoredSecondMoment, LowRankDelta, rome_update


class ROME(Editor):
    """Rank-One Model Editing (Meng et al. 2022, eq. 2), with one averaged key throughout (r-ROME)."""

    max_batch_size = 1

    @override
    def solve(
        self, keys: Tensor, residuals: Tensor, moment: FactoredSecondMoment, names: Sequence[str]
    ) -> LowRankDelta:
        return rome_update(keys, residuals, moment)
