"""What a closed form must leave as it is, as parts that a config can choose: H of the one solve.

Each makes a ``functional.preservation`` for a layer's problem. M = ΣKKᵀ of earlier batches is part of it in sequential
runs (weighted by the editor's ``earlier_keys``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor
from typing_extensions import override

from editkit.covariance import SecondMomentFolder
from editkit.covariance.summand import KEYS
from editkit.data.plan import RunPlan
from editkit.editors.closed_form.parts import PreservationRule, Share
from editkit.editors.closed_form.problem import LayerProblem
from editkit.functional import FactoredSecondMoment, preservation
from editkit.functional.preservation import Preservation
from editkit.utils.errors import InputError

if TYPE_CHECKING:
    from editkit.editors.closed_form.editor import ClosedFormEditor


@dataclass
class SecondMoment(PreservationRule):
    """H = (wC + μI + M)⁻¹. With M it is sequential MEMIT's, with μ too ENCORE's (arXiv 2502.01636).

    Args:
        weight: w on the second moment C; λ of MEMIT at a ridge of 1.
        damping: μ, in the units of C.
    """

    weight: PositiveFloat = 1.0
    damping: NonNegativeFloat = 0.0

    @override
    def of(self, problem: LayerProblem) -> Preservation:
        return preservation.second_moment(problem.second_moment, self.weight, self.damping, problem.past_sum)


@dataclass
class NullSpace(PreservationRule):
    """H = P(PMP + L₂I)⁻¹P, P the projector onto what text hardly uses (AlphaEdit, arXiv 2410.02355).

    Args:
        threshold: eigenvectors of C with an eigenvalue below this span the null space, in the units of C.
        damping: L₂, against the squared length of keys in the null space.
    """

    threshold: PositiveFloat = 2e-2
    damping: PositiveFloat = 10.0

    def __post_init__(self) -> None:
        self._checked: tuple[SecondMomentFolder | None, float] | None = None  # what a threshold was found good for
        self.begin()

    @override
    def begin(self) -> None:
        #: block to the second moment that its null space was made of, and the null space
        self._bases: dict[int, tuple[FactoredSecondMoment, Tensor]] = {}

    @override
    def check(self, editor: ClosedFormEditor, plan: RunPlan) -> None:
        folder, asked = editor.kept_second_moments, (editor.kept_second_moments, self.threshold)
        if folder is None or asked == self._checked:  # a plan is made twice
            return
        for layer in editor.edited_layers:
            preservation.check_threshold(folder.read(layer), self.threshold)
        self._checked = asked

    @override
    def prepare(self, editor: ClosedFormEditor, plan: RunPlan) -> None:
        for layer, moment in editor.second_moments.items():  # a threshold that does not fit is told before any search
            self._basis(layer, moment)

    @override
    def of(self, problem: LayerProblem) -> Preservation:
        return preservation.in_basis(self._basis(problem.layer, problem.second_moment), self.damping, problem.past_sum)

    def _basis(self, layer: int, moment: FactoredSecondMoment) -> Tensor:
        known, basis = self._bases.get(layer, (None, None))
        if basis is None or known is not moment:
            basis = preservation.null_space_basis(moment, self.threshold)
            self._bases[layer] = (moment, basis)
        return basis


@dataclass
class Neurons(PreservationRule):
    """H = S(Sᵀ(wC + M)S)⁻¹Sᵀ, S the neurons that the batch's keys use most (NSE, arXiv 2410.04045).

    Args:
        weight: w on the second moment C.
        share: p: of all that the keys sum up to in absolute value, the share that the chosen neurons have together; as
            many as stay within it are chosen, those that are used most first.
    """

    weight: PositiveFloat = 15000.0
    share: Share = 0.8  # type: ignore[valid-type]

    @override
    def check(self, editor: ClosedFormEditor, plan: RunPlan) -> None:
        d_in = min(KEYS.width(editor.editable, layer) for layer in editor.edited_layers)
        if self.share * d_in < 1:
            raise InputError(
                f"share: expected a share of the keys' sum that leaves a neuron, but the first alone has at least 1 of "
                f"{d_in}, and {self.share:g} is less; raise it"
            )

    @override
    def of(self, problem: LayerProblem) -> Preservation:
        use = problem.keys.to(torch.float64).abs().sum(1)
        order = use.argsort(descending=True, stable=True)
        # at 1 all that are used are in, which rounding of the sum would decide in the public code
        within = use[order].cumsum(0) <= self.share * use.sum() if self.share < 1 else use[order] > 0
        if not within.any():
            raise InputError(
                f"share: expected a share of the keys' sum that leaves a neuron, but the first alone has "
                f"{float(use.max() / use.sum()):.3g} of it and {self.share:g} is less; raise it"
            )
        return preservation.neurons(problem.second_moment, order[within].sort().values, self.weight, problem.past_sum)


@dataclass
class Identity(PreservationRule):
    """H = (wI + M)⁻¹: every direction alike, whatever text uses it (MALMEN, UltraEdit; with M SimIE).

    Args:
        weight: w on the identity.
    """

    weight: PositiveFloat = 1.0
    needs_second_moment = False

    @override
    def of(self, problem: LayerProblem) -> Preservation:
        return preservation.identity(len(problem.keys), problem.past_sum, self.weight)
