"""MEMIT that preserves what earlier batches memorized."""

from __future__ import annotations

from typing import Any

from jsonargparse.typing import PositiveFloat

from editkit.editors.closed_form.closed_form import ClosedForm
from editkit.editors.closed_form.preservations import SecondMoment


class SequentialMEMIT(ClosedForm):
    """MEMIT with the keys of earlier batches (AlphaEdit's comparison, arXiv 2410.02355): H = (λC + M)⁻¹, ρ = 1.

    For the same keys and values, batches one after the other are one MEMIT update of all their facts. It is
    ``MEMIT(earlier_keys="auto")``, too.

    Args:
        preservation_weight: λ on the second moment C, against one for each fact, earlier or not.
        kwargs: see ``ClosedForm``.
    """

    def __init__(self, preservation_weight: PositiveFloat = 15000.0, **kwargs: Any) -> None:
        super().__init__(preservation=SecondMoment(preservation_weight), **kwargs)
