"""Curvature-weighted editing: what a change costs depends on the direction of the output, too."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat
from typing_extensions import override

from editkit.covariance import check_ready, output_gradient_moments
from editkit.covariance.summand import OUTPUT_GRADIENTS
from editkit.data.plan import RunPlan
from editkit.editors.closed_form.closed_form import ClosedForm
from editkit.editors.closed_form.problem import LayerProblem
from editkit.functional import Curvature, Delta, curvature_path, curvature_update
from editkit.functional.curvature import CurvaturePath
from editkit.utils.errors import InputError


class CurvatureWeighted(ClosedForm):
    """ΔKKᵀ + λBᵖΔH⁻¹ = RKᵀ with B = E[g gᵀ] of output gradients over text; B = I is MEMIT (editkit).

    λ tr(BΔCΔᵀ) is what Kronecker-factored curvature (Martens and Grosse 2015) says that Δ costs on text. B is estimated
    as ``editkit covariance --of=output_gradients`` does, kept where the second moments are, and scaled to a mean
    eigenvalue of 1, so that λ means what it does in MEMIT.

    Args:
        preservation_weight: λ.
        power: p; 0 is MEMIT, 1/2 halves the spread of B's spectrum in logarithms.
        damping: added to the spectrum of Bᵖ, as a share of its mean, for directions that text's loss does not feel.
        kwargs: see ``ClosedForm``; no ``ridge``, which λB takes the place of.
    """

    restores = False

    def __init__(
        self,
        preservation_weight: NonNegativeFloat | Literal["auto"] = 15000.0,
        power: ClosedUnitInterval = 1.0,
        damping: NonNegativeFloat = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(ridge=preservation_weight, **kwargs)
        self.power, self.damping = power, damping
        self._curvatures: dict[int, Curvature] = {}

    def weigh(self, curvatures: dict[int, Curvature]) -> None:
        """Take these B, block by block."""
        self._curvatures = curvatures

    @override
    def check(self, plan: RunPlan) -> None:
        super().check(plan)
        check_ready(self.editable, self.tokenizer, self.edited_layers, self.source, OUTPUT_GRADIENTS)

    @override
    def prepare(self, plan: RunPlan) -> None:
        moments = output_gradient_moments(
            self.editable, self.tokenizer, self.edited_layers, self.source, plan.progress, plan.announce
        )
        self.weigh({layer: Curvature.of(moment, self.power, damping=self.damping) for layer, moment in moments.items()})
        super().prepare(plan)

    def _curvature(self, problem: LayerProblem) -> Curvature:
        if problem.layer not in self._curvatures:
            raise InputError(f"curvature: expected that of block {problem.layer}, but got none; call weigh, or prepare")
        return self._curvatures[problem.layer]

    @override
    def solve_at(self, problem: LayerProblem, rho: float) -> Delta:
        preservation = self.preservation.of(problem)
        return curvature_update(
            problem.keys, problem.residuals, preservation, self._curvature(problem), rho, problem.names
        )

    @override
    def path(self, problem: LayerProblem) -> CurvaturePath:
        preservation = self.preservation.of(problem)
        return curvature_path(problem.keys, problem.residuals, preservation, self._curvature(problem), problem.names)
