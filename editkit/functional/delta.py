"""A weight change Δ in the smallest form or the one that its editor made: a union, which the ledger stores as it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRankDelta:
    """A weight change Δ = left · rightᵀ, of rank at most E.

    Attributes:
        left: (d_out, r) float64.
        right: (d_in, r) float64, or None for the identity (then ``left`` is Δ itself, which is the smaller form when
            there are more facts than input dimensions).
    """

    left: Tensor
    right: Tensor | None

    def __post_init__(self) -> None:
        shapes = [tuple(factor.shape) for factor in (self.left, self.right) if factor is not None]
        if any(len(shape) != 2 for shape in shapes) or len({shape[1] for shape in shapes}) != 1:
            raise ValueError(f"Arguments `left` and `right` expected to be (d_out, r) and (d_in, r), but got {shapes}")

    @property
    def rank(self) -> int:
        """The number of columns kept, an upper bound of the rank."""
        return min(self.left.shape) if self.right is None else min(self.left.shape[1], *self.shape)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in), whatever the orientation of the module's weight."""
        return self.left.shape[0], self.left.shape[1] if self.right is None else self.right.shape[0]

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The (d_out, d_in) matrix, in ``dtype`` (default: the factors' own)."""
        matrix = self.left if self.right is None else self.left @ self.right.T
        return matrix if dtype is None else matrix.to(dtype)

    def norm(self) -> float:
        """Frobenius norm of Δ, from the r × r Gram matrices."""
        if self.right is None:
            return float(self.left.norm())
        gram = (self.left.T @ self.left) * (self.right.T @ self.right)
        return float(gram.sum().clamp(min=0).sqrt())

    def tensors(self) -> dict[str, Tensor]:
        """What is to be kept, by name."""
        return {"left": self.left} if self.right is None else {"left": self.left, "right": self.right}


@dataclass(frozen=True)
class DenseDelta:
    """A weight change as the matrix that it is, or that of a parameter of another shape, such as a bias.

    Attributes:
        matrix: (d_out, d_in), or the parameter's own shape.
    """

    matrix: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(d_out, d_in), or the parameter's own."""
        return tuple(self.matrix.shape)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The (d_out, d_in) matrix, in ``dtype`` (default: its own)."""
        return self.matrix if dtype is None else self.matrix.to(dtype)

    def norm(self) -> float:
        """Frobenius norm of Δ."""
        return float(self.matrix.norm())

    def tensors(self) -> dict[str, Tensor]:
        """What is to be kept, by name."""
        return {"matrix": self.matrix}


@dataclass(frozen=True)
class SparseDelta:
    """A weight change of a few entries.

    Attributes:
        indices: (n,) int64 positions in the matrix, row by row; none twice.
        values: (n,) the changes there.
        shape: (d_out, d_in), or the parameter's own.
    """

    indices: Tensor
    values: Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.indices.shape != self.values.shape or self.indices.dim() != 1:
            raise ValueError(
                f"Arguments `indices` and `values` expected to be (n,), but got {tuple(self.indices.shape)} and "
                f"{tuple(self.values.shape)}"
            )
        if len(self.indices) and not 0 <= int(self.indices.min()) <= int(self.indices.max()) < math.prod(self.shape):
            raise ValueError(f"Argument `indices` expected to lie in a matrix of shape {self.shape}, but some do not")

    @classmethod
    def of(cls, matrix: Tensor) -> SparseDelta:
        """The entries of a (d_out, d_in) matrix that are not 0.

        >>> SparseDelta.of(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).indices
        tensor([1])
        """
        indices = matrix.flatten().nonzero().flatten()
        return cls(indices, matrix.flatten()[indices], tuple(matrix.shape))

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The (d_out, d_in) matrix, in ``dtype`` (default: the values' own)."""
        flat = torch.zeros(math.prod(self.shape), dtype=dtype or self.values.dtype, device=self.values.device)
        flat[self.indices] = self.values.to(flat.dtype)
        return flat.view(self.shape)

    def norm(self) -> float:
        """Frobenius norm of Δ."""
        return float(self.values.norm())

    def tensors(self) -> dict[str, Tensor]:
        """What is to be kept, by name."""
        return {"indices": self.indices, "values": self.values}


@dataclass(frozen=True)
class ZeroDelta:
    """A weight that its edit leaves as it is.

    Attributes:
        shape: (d_out, d_in), or the parameter's own.
    """

    shape: tuple[int, ...]

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros (d_out, d_in), in ``dtype`` (default: float32)."""
        return torch.zeros(self.shape, dtype=dtype)

    def norm(self) -> float:
        """0.0."""
        return 0.0

    def tensors(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}


Delta = LowRankDelta | DenseDelta | SparseDelta | ZeroDelta


def added(first: Delta, second: Delta) -> Delta:
    """The change that two make together, with the factors of both where both have them.

    >>> one = LowRankDelta(torch.ones(2, 1), torch.ones(3, 1))
    >>> added(one, one).rank, added(one, DenseDelta(torch.ones(2, 3))).dense()
    (2, tensor([[2., 2., 2.],
            [2., 2., 2.]]))
    """
    if isinstance(first, ZeroDelta):
        return second
    if isinstance(second, ZeroDelta):
        return first
    both = [delta for delta in (first, second) if isinstance(delta, LowRankDelta)]
    rights = [delta.right for delta in both if delta.right is not None]
    if len(rights) == 2:
        return LowRankDelta(torch.cat([delta.left for delta in both], 1), torch.cat(rights, 1))
    return DenseDelta(first.dense() + second.dense())


def smallest(delta: Delta) -> Delta:
    """The same change in the form that takes the least room.

    Factors of rank r take r(d_out + d_in) numbers, a matrix d_out · d_in, and n entries with their int64 positions 3n
    in units of float32. The matrix of low-rank factors is not looked at for zeros: it has none but by chance.

    >>> type(smallest(LowRankDelta(torch.ones(2, 3), torch.ones(2, 3)))).__name__
    'DenseDelta'
    >>> type(smallest(DenseDelta(torch.eye(9)))).__name__
    'SparseDelta'
    >>> type(smallest(DenseDelta(torch.zeros(2, 2)))).__name__
    'ZeroDelta'
    """
    numbers = math.prod(delta.shape)
    if isinstance(delta, LowRankDelta):
        if delta.right is not None and delta.right.shape[1] * sum(delta.shape) < numbers:
            return delta if bool(delta.left.any()) else ZeroDelta(delta.shape)
        delta = DenseDelta(delta.dense(torch.float64))
    if isinstance(delta, DenseDelta) and 3 * (count := int(delta.matrix.count_nonzero())) < numbers:
        return SparseDelta.of(delta.matrix) if count else ZeroDelta(delta.shape)
    return delta
