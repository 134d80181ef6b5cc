"""ROME: one fact at a time, met exactly."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from typing_extensions import override

from editkit.editors.closed_form.editor import ClosedFormEditor
from editkit.editors.closed_form.problem import LayerProblem
from editkit.functional import LowRankDelta, rome_update


class ROME(ClosedFormEditor):
    """Rank-One Model Editing (Meng et al. 2022, eq. 2), by default with one averaged key throughout (r-ROME).

    Args:
        key: which key of the fact is used: "averaged" over the templates (r-ROME, Gupta et al. 2024, arXiv 2403.07175);
            "prompt", that of the bare prompt (p-ROME); "both" as first published, the averaged one for the direction
            and that of the prompt for the length.
        kwargs: see ``ClosedFormEditor``.
    """

    max_batch_size = 1

    def __init__(self, key: Literal["averaged", "prompt", "both"] = "averaged", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.key = key
        self.wants_prompt_keys = key != "averaged"

    @override
    def solve(self, problem: LayerProblem) -> LowRankDelta:
        prompt: Tensor | None = problem.prompt_keys
        key = prompt if self.key == "prompt" and prompt is not None else problem.keys
        return rome_update(key, problem.residuals, problem.second_moment, prompt if self.key == "both" else None)
