"""A gradient step on any parameter, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from editkit import Editor, Fact, WeightEdit
from editkit.functional import DenseDelta


class GradientStep(Editor):
    """One step down the gradient of the facts' mean NLL.

    Args:
        parameter: its name in the model.
        lr: length of the step.
        kwargs: see ``editkit.Editor``.
    """

    def __init__(self, parameter: str = "transformer.h.1.mlp.c_fc.bias", lr: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parameter, self.lr = parameter, lr

    def edit(self, batch: Sequence[Fact]) -> WeightEdit:
        gradient = self.gradients(batch, [self.parameter])[self.parameter]
        return WeightEdit(deltas={self.parameter: DenseDelta(-self.lr * gradient)})
