"""PMET: values of the edited module itself, and larger shares to the early layers."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from typing_extensions import override

from editkit.editors.closed_form.closed_form import ClosedForm
from editkit.editors.closed_form.preservations import SecondMoment
from editkit.editors.closed_form.spread import Spread, SquareRootSpread


class PMET(ClosedForm):
    """PMET (Li et al. 2023, arXiv 2308.08742): H = (λC)⁻¹, ρ = 1, R/√(L − l + 1) at each layer.

    v* is what the MLP of the last edited block must give, not what the block must; what is missing is measured there.
    (The attention's output, which PMET optimises beside it and does not edit, is left as it is.)

    Args:
        preservation_weight: λ on the second moment C (GPT-J: 6,000).
        spread: default ``SquareRootSpread()``.
        earlier_keys: as for ``ClosedForm``; batches do not know of one another's keys as published.
        kwargs: see ``ClosedForm``.
    """

    def __init__(
        self,
        preservation_weight: PositiveFloat = 15000.0,
        spread: Spread | None = None,
        earlier_keys: NonNegativeFloat | Literal["auto"] = 0.0,  # in the signature, or the command line has another
        **kwargs: Any,
    ) -> None:
        super().__init__(
            preservation=SecondMoment(preservation_weight),
            spread=spread or SquareRootSpread(),
            earlier_keys=earlier_keys,
            **kwargs,
        )

    @property
    @override
    def at_projection(self) -> bool:
        return True
