"""What the solve is asked, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.functional import FactoredSecondMoment


@dataclass(frozen=True)
class LayerProblem:
    """What ``solve`` is asked: the change of one layer's projection by which its keys give what is missing.

    Attributes:
        layer: the block.
        keys: (d_in, E) float32, its keys with the weights as they are.
        residuals: (d_out, E) float32, the layer's share of what is missing.
        second_moment: factored, of the keys to preserve: C, and βKKᵀ of earlier batches where ``earlier_keys`` is β.
            ``NoSecondMoment`` where the editor needs none.
        earlier_keys: (d_in, N) float32, the keys of earlier batches, where the editor keeps them; N may be 0.
        names: E subjects, for error messages.
        past: M = ΣKKᵀ of earlier batches, (d_in, d_in) float64; None: that of ``earlier_keys``.
        weight: W, (d_out, d_in), as it is; None where there is no model.
        original: W₀, (d_out, d_in), before the run; None where no part needs it.
        prompt_keys: (d_in, E) float32, the keys on the bare prompts, where the editor needs them.
        last: whether this is the last batch of the run; independent batches are each the last of their own.
    """

    layer: int
    keys: Tensor
    residuals: Tensor
    second_moment: FactoredSecondMoment
    earlier_keys: Tensor
    names: Sequence[str]
    past: Tensor | None = None
    weight: Tensor | None = None
    original: Tensor | None = None
    prompt_keys: Tensor | None = None
    last: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return len(self.residuals), len(self.keys)

    @property
    def past_sum(self) -> Tensor | None:
        """M = ΣKKᵀ of earlier batches, (d_in, d_in) float64; None where there are none."""
        if self.past is not None:
            return self.past
        keys = self.earlier_keys.to(torch.float64)
        return keys @ keys.T if keys.shape[1] else None

    @property
    def accumulated(self) -> Tensor:
        """W − W₀, (d_out, d_in) float64: the changes of all earlier batches; zeros where W₀ is not known."""
        assert self.weight is not None
        weight = self.weight.detach().to(torch.float64)
        return torch.zeros_like(weight) if self.original is None else weight - self.original.to(weight)
