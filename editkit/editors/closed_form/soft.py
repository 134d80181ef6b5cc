"""A ridge for each fact: exact where its key is its own, soft where others share it."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse.typing import PositiveFloat
from typing_extensions import override

from editkit.editors.closed_form.closed_form import ClosedForm
from editkit.editors.closed_form.problem import LayerProblem
from editkit.functional import Delta, RidgePath, closed_form_update
from editkit.functional.crowding import crowded_path, crowding


class SoftEMMET(ClosedForm):
    """EMMET with a ridge per fact, ρᵢ = ρ sᵢ, sᵢ the share of the fact's key that other facts' keys explain.

    In the metric of H: sᵢ = 1 − 1 / (Dᵢᵢ (D⁻¹)ᵢᵢ), from the spectrum of D = KᵀHK. A fact whose key is independent of
    all others is met exactly, and a dependent one as softly as in MEMIT with λ = ρ. (editkit)

    Args:
        ridge: ρ.
        kwargs: see ``ClosedForm``.
    """

    restores = False

    def __init__(self, ridge: PositiveFloat | Literal["auto"] = 1.0, **kwargs: Any) -> None:
        super().__init__(ridge=ridge, **kwargs)

    @override
    def solve_at(self, problem: LayerProblem, rho: float) -> Delta:
        preservation = self.preservation.of(problem)
        shares = crowding(problem.keys, preservation, problem.names)
        return closed_form_update(problem.keys, problem.residuals, preservation, rho * shares, problem.names)

    @override
    def path(self, problem: LayerProblem) -> RidgePath:
        return crowded_path(problem.keys, problem.residuals, self.preservation.of(problem), problem.names)
