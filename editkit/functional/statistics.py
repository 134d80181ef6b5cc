"""Running mean and spread of features, and residuals standardised by them: all that UltraEdit knows of a fact.

UltraEdit (arXiv 2505.14679) searches for no value. With k the input of a projection at a token of the answer, g the
gradient of the answer's loss by what the projection gives there, and [k̂; ĝ] the standardised [k; g],

    R column = −η ‖k̂‖² ĝ,        Δ = R (KᵀK + I)⁻¹ Kᵀ        (``preservation.identity``, ridge 1).

The statistics of all edits so far, this batch's included, are the method's only memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from editkit.utils.errors import InputError


@dataclass(frozen=True)
class RunningStatistics:
    """Count, mean and sum of squared deviations of n features; an update gives new ones.

    Attributes:
        count: rows so far.
        mean: (n,) float64.
        sum_squares: (n,) float64, S = Σ(x − mean)².
    """

    count: int
    mean: Tensor
    sum_squares: Tensor

    @classmethod
    def zeros(cls, n: int, device: torch.device | str = "cpu") -> RunningStatistics:
        """Those of no row yet, of ``n`` features."""
        mean, sum_squares = torch.zeros(2, n, dtype=torch.float64, device=device)
        return cls(0, mean, sum_squares)

    def updated(self, rows: Tensor, variance: Literal["paper", "code"] = "paper") -> RunningStatistics:
        """With further rows.

        Args:
            rows: (m, n), any dtype.
            variance: what m rows add to S beside n m δ² / (n + m), δ the difference of the means. "paper": Σ(x − mean
                of the rows)², so that how rows are grouped does not matter; "code": UltraEdit's public code, m times
                the unbiased variance, which is m / (m − 1) times that.

        Raises:
            InputError: rows of another width, entries that are not finite, an unknown ``variance``, or a single row
                under "code", which has no unbiased variance and would make the statistics NaN for good.

        >>> some = RunningStatistics.zeros(1).updated(torch.tensor([[1.0], [2.0]])).updated(torch.tensor([[6.0]]))
        >>> some.count, float(some.mean), float(some.sum_squares)
        (3, 3.0, 14.0)
        """
        rows = self._checked(rows).to(self.mean)
        if variance not in ("paper", "code"):
            raise InputError(f"variance: expected 'paper' or 'code', but got {variance!r}; choose one of them")
        added = len(rows)
        if not added:
            return self
        if variance == "code" and added == 1:
            raise InputError(
                "variance: expected at least 2 rows in each group under 'code', as one has no unbiased variance, but "
                "got 1; give more facts at a time, or set it to 'paper'"
            )
        center = rows.mean(0)
        spread = (rows - center).square().sum(0)
        if variance == "code":
            spread *= added / (added - 1)
        total = self.count + added
        difference = center - self.mean
        return RunningStatistics(
            total,
            self.mean + added * difference / total,
            self.sum_squares + spread + self.count * added * difference.square() / total,
        )

    @property
    def std(self) -> Tensor:
        """(n,) float64, √(S / (count − 1)).

        Raises:
            InputError: fewer than two rows so far.
        """
        if self.count < 2:
            raise InputError(
                f"statistics: expected at least 2 rows to standardise by, but got {self.count}; give more facts, or "
                "targets of more tokens, in the first batch"
            )
        return (self.sum_squares / (self.count - 1)).sqrt()

    def standardise(self, rows: Tensor) -> Tensor:
        """(x − mean) / (std + float64's machine epsilon), (m, n) float64 on the device of ``rows`` (m, n).

        A feature that was always the same gives 0 there, not NaN.

        Raises:
            InputError: rows of another width or with entries that are not finite, or fewer than two rows so far.
        """
        rows, scale = self._checked(rows).to(torch.float64), self.std + torch.finfo(torch.float64).eps
        return (rows - self.mean.to(rows.device)) / scale.to(rows.device)

    def tensors(self) -> dict[str, Tensor]:
        """What is to be kept, by name; ``read`` gives the same statistics bit for bit."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "sum_squares": self.sum_squares}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor]) -> RunningStatistics:
        """The statistics that ``tensors`` gave.

        >>> same = RunningStatistics.read(RunningStatistics.zeros(3).tensors())
        >>> same.count, same.mean
        (0, tensor([0., 0., 0.], dtype=torch.float64))
        """
        return cls(int(tensors["count"]), tensors["mean"], tensors["sum_squares"])

    def _checked(self, rows: Tensor) -> Tensor:
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise InputError(
                f"rows: expected shape (m, {len(self.mean)}), a feature per column, but got {tuple(rows.shape)}"
            )
        if not bool(rows.isfinite().all()):
            raise InputError(
                "rows: expected finite keys and gradients, but got NaN or infinity; run the model in float32"
            )
        return rows


def ultraedit_residuals(keys: Tensor, gradients: Tensor, statistics: RunningStatistics, lr: float) -> Tensor:
    """What UltraEdit asks of a projection's output: −η ‖k̂‖² ĝ per column.

    Args:
        keys: (d_in, N) input of the projection at the tokens that predict the answers.
        gradients: (d_out, N) gradient of the loss by the projection's output there.
        statistics: of [k; g], d_in + d_out features, these columns included.
        lr: η > 0.

    Returns:
        (d_out, N) float64.

    Raises:
        InputError: shapes that do not fit, entries that are not finite, fewer than two rows in the statistics, or an η
            that is no positive number.

    >>> rows = torch.tensor([[1.0, 0.0], [-1.0, 2.0]])  # a key and a gradient of one dimension each, twice
    >>> statistics = RunningStatistics.zeros(2).updated(rows)
    >>> ultraedit_residuals(rows[:, :1].T, rows[:, 1:].T, statistics, lr=0.5)
    tensor([[ 0.1768, -0.1768]], dtype=torch.float64)
    """
    if keys.ndim != 2 or gradients.ndim != 2 or keys.shape[1] != gradients.shape[1]:
        raise InputError(
            f"gradients: expected (d_out, N) for keys (d_in, N), but got {tuple(gradients.shape)} and "
            f"{tuple(keys.shape)}"
        )
    if not 0 < lr < math.inf:
        raise InputError(f"lr: expected a finite number > 0, but got {lr}")
    rows = torch.cat([keys.to(torch.float64), gradients.to(keys.device, torch.float64)]).T
    standard = statistics.standardise(rows).T
    return -lr * standard[: len(keys)].square().sum(0) * standard[len(keys) :]
