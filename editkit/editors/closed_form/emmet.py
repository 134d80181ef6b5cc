"""EMMET: batched edits under an equality constraint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor
from typing_extensions import override

from editkit.editors.closed_form.editor import Editor
from editkit.functional import FactoredSecondMoment, LowRankDelta, emmet_update


class EMMET(Editor):
    """Equality-constrained Mass Model Editing in a Transformer (Gupta et al. 2024, eq. 10).

    Args:
        ridge: α added to the diagonal of D = Kᵀ(wC)⁻¹K, in its units; 0 meets every fact exactly. "auto" chooses by
            the score S on as many other facts, along the whole path of ridges (``closed_form.tuning``).
        preservation_weight: w on the second moment C; only ridge · preservation_weight matters.
        kwargs: see ``Editor``.
    """

    def __init__(
        self,
        ridge: NonNegativeFloat | Literal["auto"] = 0.0,
        preservation_weight: PositiveFloat = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ridge = math.nan if ridge == "auto" else float(ridge)
        self.preservation_weight = preservation_weight

    @property
    @override
    def rho(self) -> float:
        return self.ridge * self.preservation_weight

    @override
    def choose_rho(self, rho: float) -> None:
        self.ridge = rho / self.preservation_weight

    @override
    def solve(
        self, keys: Tensor, residuals: Tensor, moment: FactoredSecondMoment, names: Sequence[str]
    ) -> LowRankDelta:
        return emmet_update(keys, residuals, moment, self.ridge, self.preservation_weight, names)
