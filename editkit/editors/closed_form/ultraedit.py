"""UltraEdit: no search, no subject, no second moment."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse.typing import PositiveFloat, PositiveInt

from editkit.editors.closed_form.closed_form import ClosedForm
from editkit.editors.closed_form.parts import PreservationRule, ResidualRule
from editkit.editors.closed_form.preservations import Identity
from editkit.editors.closed_form.standardised_gradient import StandardisedGradient


class UltraEdit(ClosedForm):
    """UltraEdit (Gu et al. 2025, arXiv 2505.14679): R = −η ‖k̂‖² ĝ at each token of the targets, H = I, ρ = 1.

    One forward and one backward pass per fact. Each edited layer takes its own gradient, whatever the others do.

    Args:
        lr: η.
        variance: "paper" or "code", see ``StandardisedGradient``.
        micro_batch: facts in each group that the statistics take up, see there.
        preservation: default ``Identity()``; with ``SecondMoment()`` the same residual preserves what text uses.
        residual: default that of ``lr``, ``variance`` and ``micro_batch``.
        kwargs: see ``ClosedForm``; how values are found has no effect, and M is kept only where ``earlier_keys`` says
            so.
    """

    own_earlier_keys = 0.0

    def __init__(
        self,
        lr: PositiveFloat = 1e-6,
        variance: Literal["paper", "code"] = "paper",
        micro_batch: PositiveInt | None = None,
        preservation: PreservationRule | None = None,
        residual: ResidualRule | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            preservation=preservation or Identity(),
            residual=residual or StandardisedGradient(lr, variance, micro_batch),
            **kwargs,
        )
