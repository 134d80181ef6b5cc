"""EMMET: batched edits under an equality constraint."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from typing_extensions import override

from editkit.editors.closed_form.editor import ClosedFormEditor
from editkit.editors.closed_form.layers import LayerProblem
from editkit.functional import LowRankDelta, emmet_update


class EMMET(ClosedFormEditor):
    """Equality-constrained Mass Model Editing in a Transformer (Gupta et al. 2024, eq. 10).

    Args:
        ridge: α added to the diagonal of D = Kᵀ(wC)⁻¹K, in its units; 0 meets every fact exactly. "auto" chooses by
            the score S on as many other facts, along the whole path of ridges (``closed_form.tuning``).
        preservation_weight: w on the second moment C; only ridge · preservation_weight matters.
        kwargs: see ``ClosedFormEditor``.
    """

    def __init__(
        self,
        ridge: NonNegativeFloat | Literal["auto"] = 0.0,
        preservation_weight: PositiveFloat = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ridge, self.preservation_weight = ridge, preservation_weight

    @property
    @override
    def ridge_setting(self) -> float | Literal["auto"]:
        return "auto" if self.ridge == "auto" else self.ridge * self.preservation_weight

    @override
    def solve(self, problem: LayerProblem) -> LowRankDelta:
        ridge = self.rho / self.preservation_weight if self.ridge == "auto" else self.ridge
        return emmet_update(
            problem.keys, problem.residuals, problem.second_moment, ridge, self.preservation_weight, problem.names
        )
