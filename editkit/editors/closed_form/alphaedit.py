"""AlphaEdit: edits in the null space of what text uses."""

from __future__ import annotations

from typing import Any

from jsonargparse.typing import PositiveFloat

from editkit.editors.closed_form.closed_form import ClosedForm
from editkit.editors.closed_form.preservations import NullSpace


class AlphaEdit(ClosedForm):
    """AlphaEdit (Fang et al. 2025, arXiv 2410.02355): H = P(PMP + L₂I)⁻¹P, ρ = 1.

    P projects onto the directions that the keys of text hardly use, M are the keys of earlier batches. In the first
    batch it is least squares within the null space with the ridge L₂. (The public code solves in float32 and drops P
    and M for models whose names it does not know.)

    Args:
        threshold: eigenvectors of C with an eigenvalue below this span the null space; in the units of C.
        damping: L₂, against the squared length of keys in the null space. Both depend on the scale of the model's keys:
            0.02 and 10 are published for GPT2-XL, GPT-J and Llama-3-8B.
        kwargs: see ``ClosedForm``; ``ridge=0`` meets every fact exactly within the null space.
    """

    def __init__(self, threshold: PositiveFloat = 2e-2, damping: PositiveFloat = 10.0, **kwargs: Any) -> None:
        super().__init__(preservation=NullSpace(threshold, damping), **kwargs)
