"""MEMIT: batched edits in least squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat
from torch import Tensor
from typing_extensions import override

from editkit.editors.closed_form.editor import Editor
from editkit.functional import FactoredSecondMoment, LowRankDelta, memit_update


class MEMIT(Editor):
    """Mass-Editing Memory in a Transformer (Meng et al. 2023, eq. 14).

    Args:
        preservation_weight: λ on the second moment C, against one for each fact; 0 meets every fact exactly. "auto"
            chooses by the score S on as many other facts, along the whole path of ridges (``closed_form.tuning``).
        kwargs: see ``Editor``.
    """

    def __init__(self, preservation_weight: NonNegativeFloat | Literal["auto"] = 15000.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.preservation_weight = math.nan if preservation_weight == "auto" else float(preservation_weight)

    @property
    @override
    def rho(self) -> float:
        return self.preservation_weight

    @override
    def choose_rho(self, rho: float) -> None:
        self.preservation_weight = rho

    @override
    def solve(
        self, keys: Tensor, residuals: Tensor, moment: FactoredSecondMoment, names: Sequence[str]
    ) -> LowRankDelta:
        return memit_update(keys, residuals, moment, self.preservation_weight, names)
