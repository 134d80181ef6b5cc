"""ENCORE: sequential MEMIT with a damped preservation, and a search that stops early."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jsonargparse.typing import NonNegativeFloat, PositiveFloat

from editkit.editors.closed_form.closed_form import ClosedForm
from editkit.editors.closed_form.preservations import SecondMoment
from editkit.editors.closed_form.search import ValueSearch


class ENCORE(ClosedForm):
    """ENCORE (Gupta et al. 2025, arXiv 2502.01636): H = (λC + μI + M)⁻¹, ρ = 1.

    The other half of the method is where the search ends: ``values.stop_after_first`` steps after the target has become
    the likeliest (its most-probable early stopping), here 3 unless the search says otherwise.

    Args:
        preservation_weight: λ on the second moment C.
        damping: μ, the norm constraint.
        kwargs: see ``ClosedForm``.
    """

    def __init__(
        self,
        preservation_weight: PositiveFloat = 15000.0,
        damping: NonNegativeFloat = 10.0,
        values: ValueSearch | None = None,
        **kwargs: Any,
    ) -> None:
        values = values or ValueSearch()
        if values.stop_after_first is None:
            values = replace(values, stop_after_first=3)
        super().__init__(preservation=SecondMoment(preservation_weight, damping), values=values, **kwargs)
