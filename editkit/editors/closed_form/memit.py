"""MEMIT: batched edits in least squares."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat
from typing_extensions import override

from editkit.editors.closed_form.editor import ClosedFormEditor
from editkit.editors.closed_form.layers import LayerProblem
from editkit.functional import LowRankDelta, memit_update


class MEMIT(ClosedFormEditor):
    """Mass-Editing Memory in a Transformer (Meng et al. 2023, eq. 14).

    Args:
        preservation_weight: λ on the second moment C, against one for each fact; 0 meets every fact exactly. "auto"
            chooses by the score S on as many other facts, along the whole path of ridges (``closed_form.tuning``).
        kwargs: see ``ClosedFormEditor``.
    """

    def __init__(self, preservation_weight: NonNegativeFloat | Literal["auto"] = 15000.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.preservation_weight = preservation_weight

    @property
    @override
    def ridge_setting(self) -> float | Literal["auto"]:
        return self.preservation_weight

    @override
    def solve(self, problem: LayerProblem) -> LowRankDelta:
        return memit_update(problem.keys, problem.residuals, problem.second_moment, self.rho, problem.names)
