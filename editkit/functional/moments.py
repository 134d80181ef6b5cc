"""Second moments E[k kᵀ] as sums that add up over batches, chunks and processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class MomentSum:
    """Running Σ k kᵀ and count: the sum of two is that of their tokens together.

    Attributes:
        total: (d_in, d_in) float64.
        count: number of keys (tokens) summed.
    """

    total: Tensor
    count: int = 0

    @classmethod
    def zeros(cls, d_in: int, device: torch.device | str = "cpu") -> MomentSum:
        """An empty sum for keys of ``d_in`` dimensions."""
        return cls(torch.zeros(d_in, d_in, dtype=torch.float64, device=device))

    def add(self, keys: Tensor) -> None:
        """Add keys of shape (..., d_in), any dtype: float32 products per call, float64 accumulation across calls."""
        rows = keys.reshape(-1, keys.shape[-1]).to(torch.float32)
        self.total += (rows.T @ rows).to(self.total)
        self.count += len(rows)

    def mean(self) -> Tensor:
        """The uncentred second moment E[k kᵀ], (d_in, d_in) float64.

        >>> moment = MomentSum.zeros(2)
        >>> moment.add(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        >>> moment.mean()
        tensor([[1., 1.],
                [1., 2.]], dtype=torch.float64)
        """
        return self.total / max(self.count, 1)


def effective_rank(second_moment: Tensor) -> float:
    """Exp of the entropy of the normalised eigenvalues (Roy & Vetterli 2007): 1 … d_in, the directions really used.

    >>> round(effective_rank(torch.eye(4)), 6)
    4.0
    """
    values = torch.linalg.eigvalsh(second_moment.to(torch.float64)).clamp(min=0)
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())
