"""LyapLock: what past edits did to text decides how much it weighs."""

from __future__ import annotations

from typing import Any

from jsonargparse.typing import PositiveFloat

from editkit.editors.closed_form.closed_form import ClosedForm
from editkit.editors.closed_form.lyapunov_queue import LyapunovQueue


class LyapLock(ClosedForm):
    """LyapLock (Wang et al. 2025, arXiv 2505.15702): what past edits did to text decides how much it weighs, ρ = 1.

    The first batch is MEMIT's. D₀, the queue and VKᵀ (what the layers give for past keys) follow from the ledger.

    Args:
        preservation_weight: λ on the second moment C.
        tolerance: α, times the first batch's damage that text may take.
        kwargs: see ``ClosedForm``.
    """

    def __init__(
        self, preservation_weight: PositiveFloat = 1000.0, tolerance: PositiveFloat = 60.0, **kwargs: Any
    ) -> None:
        super().__init__(preservation=LyapunovQueue(preservation_weight, tolerance), **kwargs)
