"""Several weight changes of one matrix as one of the lowest rank, or of a given rank as near to it as can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from editkit.functional.delta import Delta, LowRankDelta


class TruncatedSVD(NamedTuple):
    """A sum of weight changes in as few columns as asked for.

    Attributes:
        delta: Δ = left · rightᵀ of rank r, columns by falling singular value, left (d_out, r), right (d_in, r) float64.
        full_rank: rank of the sum: its singular values above rounding.
        error: what was cut off, ‖Δ − sum‖_F / ‖sum‖_F.
    """

    delta: LowRankDelta
    full_rank: int
    error: float


def truncated_svd(deltas: Sequence[Delta], rank: int | None = None) -> TruncatedSVD:
    """The sum of weight changes by its singular value decomposition, in float64, equally shared by its two factors.

    Factors are stacked side by side, L₁R₁ᵀ + L₂R₂ᵀ = [L₁ L₂][R₁ R₂]ᵀ, and orthogonalised by QR, so that the
    decomposition is of a matrix no larger than their ranks together; where that is above d_out or d_in, or a change is
    dense, it is of the sum itself. Cut off after ``rank`` singular values it is the nearest matrix of that rank
    (Eckart & Young 1936).

    Args:
        deltas: changes of one (d_out, d_in) matrix, any floating dtype.
        rank: most columns to keep; default all whose singular value is above rounding.

    Returns:
        The change, the rank of the sum, and what was cut off. Rank 0 for a sum that is 0.

    >>> one = LowRankDelta(torch.eye(3)[:, :1], 4 * torch.eye(2)[:, :1])
    >>> other = LowRankDelta(torch.eye(3)[:, 1:2], 3 * torch.eye(2)[:, 1:])
    >>> both = truncated_svd([one, other, one])
    >>> both.full_rank, both.error, both.delta.dense().round(decimals=6).abs()[:2]
    (2, 0.0, tensor([[8., 0.],
            [0., 3.]], dtype=torch.float64))
    >>> round(truncated_svd([one, other], rank=1).error, 6)
    0.6
    """
    d_out, d_in = deltas[0].shape
    factors = [_factors(delta) for delta in deltas if isinstance(delta, LowRankDelta) and delta.right is not None]
    if len(factors) == len(deltas) and sum(left.shape[1] for left, _ in factors) < min(d_out, d_in):
        left_basis, left_triangle = torch.linalg.qr(torch.cat([left for left, _ in factors], 1))
        right_basis, right_triangle = torch.linalg.qr(torch.cat([right for _, right in factors], 1))
        u, values, vt = torch.linalg.svd(left_triangle @ right_triangle.T, full_matrices=False)
        u, v = left_basis @ u, right_basis @ vt.T
    else:
        total = torch.zeros(d_out, d_in, dtype=torch.float64, device=_device(deltas))
        for delta in deltas:
            if isinstance(delta, LowRankDelta):
                left, right = _factors(delta)
                total.addmm_(left, right.T)
            else:
                total += delta.dense(torch.float64)
        u, values, vt = torch.linalg.svd(total, full_matrices=False)
        v = vt.T
    full = int((values > _rounding(deltas, values)).sum())
    columns = full if rank is None else min(rank, full)
    cut = float(values[columns:full].norm() / values[:full].norm()) if columns < full else 0.0
    root = values[:columns].sqrt()
    return TruncatedSVD(LowRankDelta(u[:, :columns] * root, v[:, :columns] * root), full, cut)


def _rounding(deltas: Sequence[Delta], values: Tensor) -> float:
    """What singular values rounding makes of nothing.

    The decomposition's own; and that of matrices kept in a narrower dtype, which leaves in every entry noise of the
    size eps |entry|: as a matrix, of norm eps · rms · (√d_out + √d_in) at most. Rounded factors keep their rank.
    """
    d_out, d_in = deltas[0].shape
    size = max(d_out, d_in) * torch.finfo(torch.float64).eps * float(values[:1].sum())
    for delta in deltas:
        if not isinstance(delta, LowRankDelta) or delta.right is None:
            dtype = next((t.dtype for t in delta.tensors().values() if t.is_floating_point()), torch.float64)
            size += torch.finfo(dtype).eps * delta.norm() * (d_out**0.5 + d_in**0.5) / (d_out * d_in) ** 0.5
    return size


def rank_bound(deltas: Sequence[Delta]) -> int:
    """The most that the rank of a sum of changes can be: min(ranks together, d_out, d_in).

    >>> rank_bound([LowRankDelta(torch.ones(4, 1), torch.ones(5, 1))] * 3)
    3
    """
    ranks = (d.left.shape[1] if isinstance(d, LowRankDelta) and d.right is not None else min(d.shape) for d in deltas)
    return min(sum(ranks), *deltas[0].shape)


def _factors(delta: LowRankDelta) -> tuple[Tensor, Tensor]:
    left = delta.left.to(torch.float64)
    right = torch.eye(delta.shape[1]).to(left) if delta.right is None else delta.right.to(torch.float64)
    return left, right


def _device(deltas: Sequence[Delta]) -> torch.device:
    return next((tensor.device for delta in deltas for tensor in delta.tensors().values()), torch.device("cpu"))
