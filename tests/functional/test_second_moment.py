"""Second moments as sums: batched equals whole, and equal to the sum done directly in float64."""

import pytest
import torch

from editkit.functional import SecondMomentSum, effective_rank


def test_batched_equals_whole_and_direct() -> None:
    keys = torch.randn(60, 8)
    whole, parts = SecondMomentSum.zeros(8), SecondMomentSum.zeros(8)
    whole.add(keys)
    for part in keys.view(4, 5, 3, 8):
        parts.add(part)
    direct = keys.double().T @ keys.double() / 60
    assert parts.count == whole.count == 60
    torch.testing.assert_close(parts.mean(), direct, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(whole.mean(), direct, rtol=1e-6, atol=1e-6)


def test_effective_rank_counts_directions() -> None:
    moment = torch.zeros(6, 6)
    moment[0, 0] = moment[1, 1] = 3.0
    assert effective_rank(moment) == pytest.approx(2.0)
