"""What editkit's metrics share: their state is the rows themselves, so that means and intervals are over facts.

The rows are gathered over ranks, so that a fact whose prompts came in several updates, or on several ranks, is still
one fact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from editkit.functional.scores import bootstrap_interval, check_rows, fact_means


class RowMetric(Metric):
    """A metric whose state is columns of rows, (rows,) each; columns named ``nll…`` or ``values`` are real.

    Args:
        kwargs: Those of :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 100.0

    columns: ClassVar[tuple[str, ...]]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for column in self.columns:
            self.add_state(column, default=[], dist_reduce_fx="cat")

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all ranks, see :meth:`torchmetrics.Metric.sync`."""
        # For a rank without rows (one fact on two ranks) torchmetrics would gather an empty float tensor against the
        # other ranks' integer ids; an empty tensor of the right dtype keeps the collective consistent.
        for column in self.columns:
            state = getattr(self, column)
            if isinstance(state, list) and not state:
                setattr(self, column, [self._column(column)])
        super().sync(*args, **kwargs)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot one value or several, see :meth:`torchmetrics.Metric.plot`.

        Args:
            val: Results of ``compute`` or ``forward``; default: ``compute()`` now.
            ax: A matplotlib axis to draw into.

        Returns:
            Figure and axis.
        """
        return self._plot(val, ax)

    def _append(self, **rows: Tensor) -> None:
        check_rows(**rows)
        for column, values in rows.items():
            getattr(self, column).append(values.detach().to(self._column_dtype(column)))

    def _column_dtype(self, column: str) -> torch.dtype:
        return self.dtype if column.startswith(("nll", "values")) else torch.long

    def _column(self, column: str) -> Tensor:
        state: list[Tensor] | Tensor = getattr(self, column)
        if isinstance(state, list) and not state:
            return torch.empty(0, dtype=self._column_dtype(column), device=self.device)
        return dim_zero_cat(state).to(self._column_dtype(column))

    def _gathered(self) -> Any:
        """A context in which the columns hold the rows of all ranks. Collective."""
        return self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        )


class FactMetric(RowMetric):
    """Mean over facts of the mean over each fact's rows; the rows' values are already on the 0-100 scale.

    Args:
        short: Name in tables and files.
        kwargs: Those of :class:`torchmetrics.Metric`.

    Example:
        >>> from torch import tensor
        >>> metric = FactMetric(short="x")
        >>> metric.update(values=tensor([100.0, 0.0, 100.0]), fact=tensor([0, 0, 1]))
        >>> metric.compute()
        tensor(75.)
    """

    short: str = ""
    columns: ClassVar[tuple[str, ...]] = ("values", "fact")

    def __init__(self, short: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.short = short or type(self).short

    def update(self, values: Tensor, fact: Tensor) -> None:
        """Add rows.

        Args:
            values: (rows,), real.
            fact: (rows,), integer fact ids; the rows of one fact may come in several updates.

        Raises:
            ValueError: if the shapes differ or are not (rows,), or ``fact`` is not integer.
        """
        self._append(values=values, fact=fact)

    def compute(self) -> Tensor:
        """Mean over facts of the mean over each fact's rows.

        Returns:
            0-dim float32, on the papers' 0-100 scale; NaN when there are no rows or a value is NaN.
        """
        return self._per_fact().mean().float()

    def per_fact(self) -> Tensor:
        """Each fact's own value, over all ranks. Collective: call it on every rank or on none.

        Returns:
            (facts,), on the 0-100 scale, in ascending order of fact id.
        """
        with self._gathered():
            return self._per_fact()

    def interval(self, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Percentile bootstrap interval over facts. Collective, like :meth:`per_fact`.

        Args:
            level: Coverage, in (0, 1).
            resamples: Number of bootstrap samples.
            seed: Seed of a generator of its own.

        Returns:
            Low and high end, on the 0-100 scale.
        """
        return bootstrap_interval(self.per_fact(), level, resamples, seed)

    def _per_fact(self) -> Tensor:
        return fact_means(self._column("values"), self._column("fact"))
