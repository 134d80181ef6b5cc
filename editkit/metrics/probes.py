"""Metrics of labelled tasks: accuracy, F1, Matthews correlation, and the share of answers that are no label.

Formulas in :mod:`editkit.functional.probes`. All are on the 0-100 scale (the correlation from -100).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from editkit.functional.probes import accuracy, confusion, f1, invalid_share, matthews
from editkit.functional.scores import bootstrap_interval
from editkit.metrics.base import RowMetric


class ProbeMetric(RowMetric):
    """Base: a score of the table of labels and answers.

    Args:
        classes: Number of classes.
        kwargs: Those of :class:`torchmetrics.Metric`.
    """

    columns: ClassVar[tuple[str, ...]] = ("predicted", "label", "example")
    short: ClassVar[str]

    def __init__(self, classes: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = classes

    def update(self, predicted: Tensor, label: Tensor, example: Tensor) -> None:
        """Add answers; an example that came before, on this rank or another, counts once.

        Args:
            predicted: (rows,), integer, the class answered, -1 where the answer is none.
            label: (rows,), integer.
            example: (rows,), integer ids of the examples.

        Raises:
            ValueError: if the shapes differ or are not (rows,), a column is not integer or out of range.
        """
        confusion(predicted, label, self.classes)
        self._append(predicted=predicted, label=label, example=example)

    def compute(self) -> Tensor:
        """0-dim float32; NaN when there are no rows."""
        return self._score(self._rows()).float()

    def interval(self, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Percentile bootstrap interval over examples. Collective: call it on every rank or on none.

        Args:
            level: Coverage, in (0, 1).
            resamples: Number of bootstrap samples.
            seed: Seed of a generator of its own.

        Returns:
            Low and high end; NaN twice where a resample has no score.
        """
        with self._gathered():
            rows = self._rows()
        return bootstrap_interval(rows, level, resamples, seed, statistic=lambda table: self._score(table.long()))

    def _rows(self) -> Tensor:
        """(examples, 2): answer and label of each example, once."""
        table = torch.stack([self._column(name) for name in self.columns], 1)
        _, index = torch.unique(table[:, 2], return_inverse=True)
        first = torch.full((int(index.max()) + 1 if len(index) else 0,), len(table), device=table.device)
        first = first.scatter_reduce(0, index, torch.arange(len(table), device=table.device), "amin")
        return table[first, :2]

    @staticmethod
    def of_table(table: Tensor) -> Tensor:
        """The score of a (classes, classes + 1) table of labels and answers, see :mod:`editkit.functional.probes`."""
        raise NotImplementedError

    def _score(self, rows: Tensor) -> Tensor:
        return self.of_table(confusion(rows[:, 0], rows[:, 1], self.classes))


class ProbeAccuracy(ProbeMetric):
    """Share of right answers, in per cent.

    Example:
        >>> from torch import tensor
        >>> metric = ProbeAccuracy()
        >>> metric.update(predicted=tensor([1, 0, -1, 1]), label=tensor([1, 0, 1, 0]), example=tensor([0, 1, 2, 3]))
        >>> metric.compute()
        tensor(50.)
    """

    short = "accuracy"

    @staticmethod
    def of_table(table: Tensor) -> Tensor:
        """See :func:`editkit.functional.probes.accuracy`."""
        return accuracy(table)


class ProbeF1(ProbeMetric):
    """F1 of class 1 (two classes) or macro F1, in per cent."""

    short = "f1"

    @staticmethod
    def of_table(table: Tensor) -> Tensor:
        """See :func:`editkit.functional.probes.f1`."""
        return f1(table)


class ProbeMatthews(ProbeMetric):
    """Matthews correlation of the valid answers with their labels, times 100."""

    short = "mcc"
    plot_lower_bound = -100.0

    @staticmethod
    def of_table(table: Tensor) -> Tensor:
        """See :func:`editkit.functional.probes.matthews`."""
        return matthews(table)


class InvalidShare(ProbeMetric):
    """Share of answers that name no label, in per cent; lower is better."""

    short = "invalid"
    higher_is_better = False

    @staticmethod
    def of_table(table: Tensor) -> Tensor:
        """See :func:`editkit.functional.probes.invalid_share`."""
        return invalid_share(table)


PROBE_METRICS: tuple[type[ProbeMetric], ...] = (ProbeAccuracy, ProbeF1, ProbeMatthews, InvalidShare)
