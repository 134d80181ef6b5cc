"""Second moments E[k kᵀ] as sums that add up over batches, chunks and processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 512  # columns per product: the smaller, the closer to half of the full product's work; below, it runs slower


@dataclass
class SecondMomentSum:
    """Running Σ k kᵀ and count: the sum of two is that of their tokens together.

    Only the blocks on and below the diagonal are added up, since the sum is symmetric: about half of the work.

    Attributes:
        total: (d_in, d_in) float64; what stands above the diagonal has no meaning.
        count: number of keys (tokens) summed.
    """

    total: Tensor
    count: int = 0

    @classmethod
    def zeros(cls, d_in: int, device: torch.device | str = "cpu") -> SecondMomentSum:
        """An empty sum for keys of ``d_in`` dimensions."""
        return cls(torch.zeros(d_in, d_in, dtype=torch.float64, device=device))

    def add(self, keys: Tensor) -> None:
        """Add keys of shape (..., d_in), any dtype: float32 products per call, float64 accumulation across calls.

        The products are made where the keys are, and added up where ``total`` is.
        """
        rows = keys.reshape(-1, keys.shape[-1]).to(torch.float32)
        for start in range(0, rows.shape[1], BLOCK):
            end = start + BLOCK
            self.total[start:end, :end] += (rows[:, start:end].T @ rows[:, :end]).to(self.total.device)
        self.count += len(rows)

    def mean(self) -> Tensor:
        """The uncentred second moment E[k kᵀ], (d_in, d_in) float64.

        >>> moment = SecondMomentSum.zeros(2)
        >>> moment.add(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        >>> moment.mean()
        tensor([[1., 1.],
                [1., 2.]], dtype=torch.float64)
        """
        mean = self.total.tril()
        for start in range(0, len(mean), BLOCK):
            end = start + BLOCK
            mean[start:end, end:] = mean[end:, start:end].T
            block = mean[start:end, start:end]
            block += block.tril(-1).T
        return mean.div_(max(self.count, 1))


def relative_change(now: Tensor, before: Tensor) -> float:
    """‖now − before‖_F / ‖now‖_F of two symmetric matrices given by their lower triangles.

    >>> now, before = torch.eye(2), torch.tensor([[1.0, 9.0], [1.0, 1.0]])
    >>> relative_change(now, before) == relative_change(2 * now, 2 * before) == 1.0
    True
    """
    squares = [0.0, 0.0]
    for start in range(0, len(now), BLOCK):  # by rows, so that no third matrix is needed
        rows = slice(start, start + BLOCK)
        for i, part in enumerate((now[rows, : start + BLOCK] - before[rows, : start + BLOCK].to(now), now[rows])):
            below = part.tril(start)  # the diagonal counts once, what is below it twice
            on = below.diagonal(start)
            squares[i] += 2 * float(below.square().sum()) - float(on.square().sum())
    return float((squares[0] / max(squares[1], torch.finfo(torch.float64).tiny)) ** 0.5)


def spectrum(second_moment: Tensor) -> Tensor:
    """Eigenvalues of C, ascending, (d_in,) float64."""
    values: Tensor = torch.linalg.eigvalsh(second_moment.to(torch.float64))
    return values


def condition_number(values: Tensor) -> float:
    """Largest over smallest eigenvalue; infinite where the smallest is not positive.

    >>> condition_number(torch.tensor([0.5, 1.0, 2.0]))
    4.0
    """
    smallest = float(values.min())
    return float(values.max()) / smallest if smallest > 0 else float("inf")


def effective_rank(second_moment: Tensor) -> float:
    """Exp of the entropy of the normalised eigenvalues (Roy & Vetterli 2007): 1 … d_in, the directions really used.

    Args:
        second_moment: (d_in, d_in) C, or its eigenvalues (d_in,).

    >>> round(effective_rank(torch.eye(4)), 6)
    4.0
    """
    values = (second_moment if second_moment.ndim == 1 else spectrum(second_moment)).clamp(min=0)
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())
