"""The virtual queue by which LyapLock (arXiv 2505.15702) weighs text against edits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from editkit.functional.factored import FactoredSecondMoment


def damage(change: Tensor, second_moment: FactoredSecondMoment) -> float:
    """tr(ΔCΔᵀ) = E‖Δk‖² over the keys that C stands for, of Δ (d_out, d_in).

    >>> import torch
    >>> damage(torch.tensor([[1.0, 2.0]]), FactoredSecondMoment(torch.eye(2, dtype=torch.float64)))
    5.0
    """
    return float((change.to(second_moment.factor) @ second_moment.factor).square().sum())


@dataclass(frozen=True)
class DamageQueue:
    """Z: how much more damage was done, over all batches, than is allowed.

    Attributes:
        allowed: αD₀, of the first batch's damage D₀.
        length: Z.
    """

    allowed: float
    length: float

    @classmethod
    def begin(cls, first: float, tolerance: float) -> DamageQueue:
        """The queue before the first batch's damage is put in.

        >>> DamageQueue.begin(4.0, tolerance=4.0).after(4.0).after(32.0)
        DamageQueue(allowed=16.0, length=8.0)
        """
        allowed = tolerance * first
        return cls(allowed, math.sqrt(allowed))

    @property
    def gain(self) -> float:
        """A = 1/√(αD₀), and 1/a is the least that Z can be."""
        return 1 / math.sqrt(self.allowed) if self.allowed else 0.0

    @property
    def factor(self) -> float:
        """μₜ/λ = aZ: the next batch's weight of C as a multiple of the first one's; 1 at least."""
        return self.gain * self.length if self.allowed else 1.0

    def after(self, done: float) -> DamageQueue:
        """The queue once a batch leaves this much damage."""
        least = math.sqrt(self.allowed)
        return replace(self, length=max(self.length + self.gain * (done - self.allowed), least))
