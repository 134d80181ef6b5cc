"""Trims of a weight change after it was solved for: Π of the one equation.

Each takes a ``Delta`` or a (d_out, d_in) tensor and the weight (d_out, d_in) that it is added to, and gives a
``Delta``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from editkit.functional.delta import Delta, DenseDelta, LowRankDelta
from editkit.utils.errors import InputError


def top_share(
    delta: Delta | Tensor, weight: Tensor, share: float = 0.4, code: Literal["alphaedit", "rect"] = "alphaedit"
) -> DenseDelta:
    """Keep the entries that change the weight most, relative to it (RECT, arXiv 2401.04700). Low rank is lost.

    Args:
        delta: Δ.
        weight: W, the current one, (d_out, d_in).
        share: of the n entries that are kept, 0 < share ≤ 1.
        code: "alphaedit": those with abs(Δ/(W + 1e-8)) at least the ⌊(1 − share)n⌋-th smallest, as AlphaEdit's code
            has it (share 0.4); "rect": all but the ⌊(1 − share)n⌋ with the smallest abs(Δ/W), as the paper's has it
            (share 0.2).

    Raises:
        InputError: shapes that do not fit, or a share outside (0, 1].

    >>> top_share(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.ones(1, 4), share=0.5, code="rect").dense()
    tensor([[0., 0., 3., 4.]], dtype=torch.float64)
    """
    if not 0 < share <= 1:
        raise InputError(f"share: expected a number above 0 and at most 1, but got {share}")
    change, weight = _dense(delta, weight), weight.to(torch.float64)
    dropped = int(change.numel() * (100 - 100 * share) / 100)
    if not dropped:
        return DenseDelta(change)
    if code == "alphaedit":
        score = (change / (weight + 1e-8)).abs()
        keep = score >= score.flatten().kthvalue(dropped).values
    else:
        order = (change / weight).abs().nan_to_num(0.0).flatten().argsort(stable=True)
        keep = torch.ones_like(order, dtype=torch.bool).index_fill_(0, order[:dropped], False).view(change.shape)
    return DenseDelta(torch.where(keep, change, torch.zeros_like(change)))


def singular_values(delta: Delta | Tensor, weight: Tensor, base: float | Literal["linear"] = 1.2) -> DenseDelta:
    """Pull down singular values of the accumulated change that exceed all of the weight's (PRUNE, arXiv 2405.16821).

    With m the largest singular value of W₀, σ ≥ m becomes m + log_b σ − log_b m, or (σ + m)/2. The slope of the former
    at m is 1/(m ln b): where m < 1/ln b (5.5 at b = 1.2) values just above m are raised.

    Args:
        delta: the accumulated Δ, all that was ever added to ``weight``.
        weight: W₀, before the first edit, (d_out, d_in).
        base: b > 1 of the logarithm, or "linear".

    Raises:
        InputError: shapes that do not fit, or a base that is none.

    >>> singular_values(torch.diag(torch.tensor([8.0, 1.0])), 2 * torch.eye(2), base=2.0).dense()
    tensor([[4., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    if base != "linear" and not (isinstance(base, (int, float)) and 1 < base < math.inf):
        raise InputError(f"base: expected a number above 1 or 'linear', but got {base!r}")
    change = _dense(delta, weight)
    most = torch.linalg.matrix_norm(weight.to(torch.float64), 2)
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    if base == "linear":
        pulled = (values + most) / 2
    else:
        pulled = most + (values.log() - most.log()) / math.log(base)
    values = torch.where(values >= most, pulled, values)
    return DenseDelta((left * values) @ right)


def off_principal(
    delta: Delta | Tensor,
    weight: Tensor,
    ratio: float = 0.5,
    strength: float = 0.5,
    side: Literal["input", "output"] = "input",
) -> Delta:
    """Weaken a change along the weight's own main directions: Δ(I − αUUᵀ) (SPHERE, arXiv 2510.01172).

    U are eigenvectors of the mean outer product of W's rows, each scaled to unit length: the first, and as many more as
    have a cumulated share of the eigenvalues of at most ``ratio``.

    Args:
        delta: Δ; low-rank factors stay low-rank.
        weight: the current W, (d_out, d_in).
        ratio: η, the share of the eigenvalues that U stands for, 0 ≤ η < 1.
        strength: α, 0 to 1.
        side: "input": rows of W, as the paper has it. "output": its columns, (I − αUUᵀ)Δ, which is what the public code
            does where a weight is stored (d_in, d_out), as in GPT-2.

    Raises:
        InputError: shapes that do not fit, or numbers out of range.

    >>> off_principal(torch.ones(1, 2), torch.tensor([[1.0, 0.0]]), strength=1.0).dense()
    tensor([[0., 1.]], dtype=torch.float64)
    """
    if not 0 <= ratio < 1 or not 0 <= strength <= 1:
        raise InputError(
            f"ratio, strength: expected numbers from 0 to below 1 and from 0 to 1, but got {ratio} and {strength}"
        )
    _check_shape(delta, weight)
    principal = principal_directions(weight if side == "input" else weight.T, ratio)

    def weakened(columns: Tensor) -> Tensor:
        columns = columns.to(torch.float64)
        return columns - strength * (principal @ (principal.T @ columns))

    if isinstance(delta, LowRankDelta) and delta.right is not None:
        if side == "input":
            return LowRankDelta(delta.left, weakened(delta.right))
        return LowRankDelta(weakened(delta.left), delta.right)
    change = _dense(delta, weight)
    return DenseDelta(weakened(change.T).T if side == "input" else weakened(change))


def principal_directions(weight: Tensor, ratio: float = 0.5) -> Tensor:
    """U of SPHERE, (d_in, r) float64: the main directions of the unit-length rows of W (d_out, d_in)."""
    rows = weight.to(torch.float64)
    rows = rows / (rows.norm(dim=1, keepdim=True) + 1e-8)  # as the public code has it
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    shares = values.flip(0).clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
    count = min(int((shares <= ratio).sum()) + 1, len(values))
    principal: Tensor = vectors.flip(1)[:, :count].contiguous()
    return principal


def _check_shape(delta: Delta | Tensor, weight: Tensor) -> None:
    if tuple(delta.shape) != tuple(weight.shape) or weight.ndim != 2:
        raise InputError(
            f"weight: expected the shape (d_out, d_in) of the change, {tuple(delta.shape)}, but got "
            f"{tuple(weight.shape)}"
        )


def _dense(delta: Delta | Tensor, weight: Tensor) -> Tensor:
    """Δ as a float64 matrix that fits the weight."""
    _check_shape(delta, weight)
    return (delta if isinstance(delta, Tensor) else delta.dense()).to(weight.device, torch.float64)
