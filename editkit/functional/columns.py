"""Which columns of a matrix are combinations of those before them, to within the rounding of what they came from."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = torch.finfo(torch.float64).tiny
CARRIES = 1e-2  # of a dependent column's length: what a column must contribute to be called involved


def tolerance(dtype: torch.dtype) -> float:
    """The share of a column's length that must lie outside the columns before it for it to count as independent.

    Columns cannot be told apart below the rounding of the dtype in which they were measured: 32 units of it.
    """
    return 32 * float(torch.finfo(dtype).eps)


def shares(triangular: Tensor, lengths: Tensor) -> Tensor:
    """Of each column's length, what lies outside the columns before it, from the triangle T of a QR factorisation.

    Args:
        triangular: (n, m) upper triangular (m ≤ n or trapezoidal), float64.
        lengths: (m,) norms of the columns.

    Returns:
        (min(n, m),).
    """
    diagonal = triangular.diagonal().abs()
    return diagonal / lengths[: len(diagonal)].clamp(min=TINY)


def dependent_columns(matrix: Tensor, dtype: torch.dtype) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Columns to drop so that the rest is independent, and the groups of columns that depend on one another.

    From left to right: a column that is a combination of kept columns before it is dropped. Dropping exactly the
    columns returned leaves columns that a QR factorisation finds independent by the same tolerance.

    Args:
        matrix: (n, m) float64.
        dtype: in which the columns were measured; see ``tolerance``.

    Returns:
        The columns to drop, ascending, and groups of columns, each ascending: a dropped column together with the kept
        ones that carry at least a hundredth of its length, and with whatever shares such a column with it.

    >>> a = torch.tensor([[1.0, 1.0, 0.0, 2.0], [0.0, 0.0, 1.0, 3.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    >>> dependent_columns(a, torch.float32)
    ((1, 3), ((0, 1, 2, 3),))
    """
    lengths = matrix.norm(dim=0)
    independent = torch.arange(matrix.shape[1], device=matrix.device)
    _, triangle = torch.linalg.qr(matrix, mode="r")  # has the columns' lengths and angles, in fewer rows
    orthonormal, triangular = triangle, triangle
    while len(drop := _dropped(triangular, lengths[independent], tolerance(dtype))):
        left = torch.ones(len(independent), dtype=torch.bool, device=matrix.device)
        left[drop] = False
        independent = independent[left]
        orthonormal, triangular = torch.linalg.qr(triangle[:, independent])
    gone = torch.ones_like(lengths, dtype=torch.bool)
    gone[independent] = False
    dropped = gone.nonzero().flatten()
    if not len(dropped):
        return (), ()
    weights = torch.linalg.solve_triangular(triangular, orthonormal.T @ triangle[:, dropped], upper=True)
    carried = weights.abs() * lengths[independent][:, None] >= CARRIES * lengths[dropped].clamp(min=TINY)
    return tuple(dropped.tolist()), _groups(dropped, independent, carried)


def _dropped(triangular: Tensor, lengths: Tensor, limit: float) -> Tensor:
    """Columns of A = QT that depend on kept columns before them.

    A column with a diagonal entry at rounding level depends on those before it, but its own column of Q is then an
    arbitrary direction, in which a later, independent column may lie. So what counts is what is left of each doubtful
    column once the columns without doubt have cleared their own directions: that is a small matrix over the doubtful
    directions, whose columns are orthogonalised in order, passing over those that vanish.
    """
    doubtful = torch.ones_like(lengths, dtype=torch.bool)
    on_diagonal = shares(triangular, lengths)
    doubtful[: len(on_diagonal)] = on_diagonal <= limit
    columns = doubtful.nonzero().flatten()
    if not len(columns):
        return columns
    sure = (~doubtful).nonzero().flatten()
    rows = columns[columns < len(triangular)]
    weights = torch.linalg.solve_triangular(triangular[sure][:, sure], triangular[sure][:, columns], upper=True)
    rest = triangular[rows][:, columns] - triangular[rows][:, sure] @ weights
    basis = rest.new_empty(len(rows), 0)
    drop = []
    for i, column in enumerate(columns.tolist()):
        left = rest[:, i]
        for _ in range(2):  # once more, for what rounding left of the first
            left = left - basis @ (basis.T @ left)
        size = left.norm()
        if basis.shape[1] == len(rows) or size <= limit * lengths[column].clamp(min=TINY):
            drop.append(i)
        else:
            basis = torch.cat([basis, (left / size)[:, None]], 1)
    # the first is dependent whatever rounding makes of it here, so that every round drops one
    return columns[drop] if drop else columns[:1]


def _groups(dropped: Tensor, independent: Tensor, carried: Tensor) -> tuple[tuple[int, ...], ...]:
    """Columns joined by dependence; ``carried`` (kept, dropped) says which kept columns carry which dropped ones."""
    label = torch.arange(len(dropped) + len(independent), device=independent.device)
    for i, column in enumerate(dropped):
        joined = torch.unique(label[torch.cat([independent[carried[:, i]], column[None]])])
        label[torch.isin(label, joined)] = joined[0]
    return tuple(tuple((label == name).nonzero().flatten().tolist()) for name in sorted(set(label[dropped].tolist())))
