"""The one solve with parts of the user's choice."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat
from typing_extensions import override

from editkit.editors.closed_form.editor import ClosedFormEditor
from editkit.editors.closed_form.parts import Part, PreservationRule, checked_part
from editkit.editors.closed_form.preservations import SecondMoment
from editkit.editors.closed_form.problem import LayerProblem
from editkit.editors.closed_form.tuning import UpdatePath
from editkit.functional import Delta, closed_form_update, ridge_path
from editkit.utils.errors import InputError


class ClosedForm(ClosedFormEditor):
    """Δ = Π[R (KᵀHK + ρI)⁻¹KᵀH] with parts by name: EMMET's exactness in AlphaEdit's null space, RECT on anything.

    The methods of this family are subclasses that choose parts, with their published settings as defaults.

    Args:
        preservation: H, what must not change. Default: ``SecondMoment()``, C⁻¹.
        ridge: ρ on KᵀHK; 0 meets every fact exactly. "auto" chooses by the score S on as many other facts, along the
            whole path of ridges.
        earlier_keys: weight of the keys of earlier batches, in sequential mode: M = βΣKKᵀ is part of H. "auto" is 1/ρ
            (1 at ρ = 0), which at ρ = 1 is M as published. 0: forget them. Default: "auto", or as the method has it.
        kwargs: see ``ClosedFormEditor``: residual, spread, restraints, and how values are found.
    """

    sums_earlier_keys = True
    #: whether ``solve_at`` makes the change that a preservation asks for whatever the facts are
    restores = True
    own_earlier_keys: float | Literal["auto"] = "auto"

    def __init__(
        self,
        preservation: PreservationRule | None = None,
        ridge: NonNegativeFloat | Literal["auto"] = 1.0,
        earlier_keys: NonNegativeFloat | Literal["auto"] | None = None,
        **kwargs: Any,
    ) -> None:
        self.preservation = checked_part(preservation or SecondMoment(), PreservationRule, "model.preservation")
        super().__init__(earlier_keys=earlier_keys, **kwargs)
        self.ridge = ridge

    @property
    @override
    def parts(self) -> dict[str, Part]:
        return {"preservation": self.preservation, **super().parts}

    @property
    @override
    def needs_second_moment(self) -> bool:
        return self.preservation.needs_second_moment

    @property
    @override
    def ridge_setting(self) -> float | Literal["auto"]:
        return self.ridge

    @override
    def check_settings(self) -> None:
        super().check_settings()
        if not self.restores and type(self.preservation).restoring is not PreservationRule.restoring:
            raise InputError(
                f"model.preservation: expected one that only preserves, as {type(self).__name__} solves for facts "
                f"alone, but {type(self.preservation).__name__} pulls back what earlier batches changed, too; choose "
                "another"
            )

    @override
    def solve(self, problem: LayerProblem) -> Delta:
        return self.solve_at(problem, self.rho)

    @override
    def solve_at(self, problem: LayerProblem, rho: float) -> Delta:
        preservation = self.preservation.of(problem)
        restoring = self.preservation.restoring(problem, preservation)
        return closed_form_update(problem.keys, problem.residuals, preservation, rho, problem.names, restoring)

    @override
    def path(self, problem: LayerProblem) -> UpdatePath:
        return ridge_path(problem.keys, problem.residuals, self.preservation.of(problem), problem.names)
