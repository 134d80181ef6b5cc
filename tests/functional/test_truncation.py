"""Sums of weight changes by their singular values: equal, of the lowest rank, and the nearest of a given one."""

import pytest
import torch
from torch import Tensor

from editkit.functional import Delta, DenseDelta, LowRankDelta, SparseDelta, ZeroDelta
from editkit.functional.truncation import rank_bound, truncated_svd


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def low(rank: int, d_out: int = 12, d_in: int = 20) -> LowRankDelta:
    return LowRankDelta(draw(d_out, rank), draw(d_in, rank))


SUMS: list[list[Delta]] = [
    [low(1)],
    [low(3), low(4)],
    [low(7), low(8)],  # more columns than rows
    [low(2), DenseDelta(draw(12, 20))],
    [low(2), SparseDelta.of(torch.eye(12, 20).double()), ZeroDelta((12, 20))],
    [LowRankDelta(draw(12, 20), None), low(1)],
]


@pytest.mark.parametrize("deltas", SUMS)
def test_the_sum_in_no_more_columns_than_needed(deltas: list[Delta]) -> None:
    total = sum((d.dense(torch.float64) for d in deltas), torch.zeros(12, 20, dtype=torch.float64))
    found = truncated_svd(deltas)
    assert (found.delta.dense() - total).norm() < 1e-12 * total.norm()
    assert found.error == 0.0
    assert found.full_rank == found.delta.left.shape[1] == torch.linalg.matrix_rank(total) <= rank_bound(deltas)


@pytest.mark.parametrize("deltas", SUMS)
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_truncated_is_the_nearest_and_the_error_is_true(deltas: list[Delta], rank: int) -> None:
    total = sum((d.dense(torch.float64) for d in deltas), torch.zeros(12, 20, dtype=torch.float64))
    found = truncated_svd(deltas, rank)
    assert found.delta.left.shape[1] == min(rank, found.full_rank)
    assert found.error == pytest.approx(float((found.delta.dense() - total).norm() / total.norm()), abs=1e-12)
    values = torch.linalg.svdvals(total)
    assert found.error == pytest.approx(float(values[rank:].norm() / values.norm()), abs=1e-12)


def test_rounding_to_float32_adds_no_rank() -> None:
    rounded = DenseDelta(low(3, 64, 90).dense().float())
    assert truncated_svd([rounded]).full_rank == 3
    assert torch.linalg.matrix_rank(rounded.matrix.double()) == 64
    found = truncated_svd([rounded, low(2, 64, 90)])
    assert found.full_rank == 5
    assert found.error == 0.0


def test_what_cancels_leaves_nothing() -> None:
    one = low(3)
    found = truncated_svd([one, LowRankDelta(-one.left, one.right), low(2)])
    assert found.full_rank == 2
    assert truncated_svd([ZeroDelta((4, 5))]).full_rank == 0


def test_the_factors_share_the_size() -> None:
    found = truncated_svd([low(3), low(4)]).delta
    assert found.right is not None
    assert torch.allclose(found.left.norm(dim=0), found.right.norm(dim=0))
