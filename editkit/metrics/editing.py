"""Editing metrics of CounterFact: ES, EM, PS, PM, NS, NM and their harmonic mean S.

State around :mod:`editkit.functional.scores`, where the formulas, ranges and sources stand. The state is the rows
themselves, gathered over ranks, so that a fact whose prompts came in several updates, or on several ranks, is still
one fact, and so that the interval over facts is available.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from editkit.functional.scores import (
    Prefer,
    bootstrap_interval,
    fact_means,
    harmonic_mean,
    magnitude_rows,
    score,
    score_rows,
)
from editkit.metrics.base import FactMetric

PROMPT_KINDS = ("rewrite", "paraphrase", "neighborhood")
"""The kinds of prompt; a kind's position is its number in :class:`HarmonicScore`."""


class EditingMetric(FactMetric):
    """Base of the metrics that compare two targets after a prompt.

    A subclass sets ``short``, and ``prefer`` or ``is_magnitude`` where they differ from an efficacy score.

    Args:
        kwargs: Those of :class:`torchmetrics.Metric`.
    """

    prefer: ClassVar[Prefer] = "new"
    is_magnitude: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ("nll_new", "nll_true", "fact")

    def update(self, nll_new: Tensor, nll_true: Tensor, fact: Tensor) -> None:  # type: ignore[override]
        """Add rows, one for each prompt.

        Args:
            nll_new: (rows,), mean token negative log-likelihood of ``target_new`` after the prompt, nats.
            nll_true: (rows,), the same of ``target_true``.
            fact: (rows,), integer fact ids; the rows of one fact may come in several updates.

        Raises:
            ValueError: if the shapes differ or are not (rows,), or ``fact`` is not integer.
        """
        self._append(nll_new=nll_new, nll_true=nll_true, fact=fact)

    def _per_fact(self) -> Tensor:
        rows = magnitude_rows if self.is_magnitude else score_rows
        return fact_means(rows(self._column("nll_new"), self._column("nll_true"), self.prefer), self._column("fact"))


class EfficacyScore(EditingMetric):
    """ES: share of edited facts, in per cent, whose new target beats the true one on the fact's own prompt.

    Example:
        >>> from torch import tensor
        >>> metric = EfficacyScore()
        >>> metric.update(nll_new=tensor([1.0, 3.0]), nll_true=tensor([2.0, 2.0]), fact=tensor([0, 1]))
        >>> metric.compute()
        tensor(50.)
    """

    short = "ES"


class EfficacyMagnitude(EditingMetric):
    """EM: mean lead of the new target's probability on the fact's own prompt, in points from -100 to 100."""

    short = "EM"
    is_magnitude = True
    plot_lower_bound = -100.0


class ParaphraseScore(EfficacyScore):
    """PS: as ES, on paraphrases of the prompt (generalisation)."""

    short = "PS"


class ParaphraseMagnitude(EfficacyMagnitude):
    """PM: as EM, on paraphrases of the prompt."""

    short = "PM"


class NeighborhoodScore(EditingMetric):
    """NS: share, in per cent, of prompts about neighbouring subjects whose *true* target still wins (specificity)."""

    short = "NS"
    prefer = "true"


class NeighborhoodMagnitude(EfficacyMagnitude):
    """NM: mean lead of the *true* target's probability on prompts about neighbouring subjects, in points."""

    short = "NM"
    prefer = "true"


class HarmonicScore(EditingMetric):
    """S: harmonic mean of ES, PS and NS, from rows of all three kinds.

    Example:
        >>> from torch import tensor
        >>> metric = HarmonicScore()
        >>> metric.update(
        ...     nll_new=tensor([1.0, 1.0, 3.0, 1.0]),
        ...     nll_true=tensor([2.0, 2.0, 2.0, 2.0]),
        ...     fact=tensor([0, 0, 0, 0]),
        ...     kind=tensor([0, 1, 2, 2]),
        ... )
        >>> metric.compute()  # of 100, 100 and 50
        tensor(75.)
    """

    short = "S"
    columns = ("nll_new", "nll_true", "fact", "kind")
    preferred: ClassVar[tuple[Prefer, ...]] = ("new", "new", "true")

    def update(self, nll_new: Tensor, nll_true: Tensor, fact: Tensor, kind: Tensor) -> None:  # type: ignore[override]
        """Add rows, one for each prompt.

        Args:
            nll_new: (rows,), mean token negative log-likelihood of ``target_new`` after the prompt, nats.
            nll_true: (rows,), the same of ``target_true``.
            fact: (rows,), integer fact ids.
            kind: (rows,), integer: 0 rewrite, 1 paraphrase, 2 neighborhood.

        Raises:
            ValueError: if the shapes differ or are not (rows,), ``fact`` or ``kind`` is not integer, or a kind is
                none of the three.
        """
        if ((kind < 0) | (kind >= len(PROMPT_KINDS))).any():
            raise ValueError(
                "Argument `kind` expected to hold 0 (rewrite), 1 (paraphrase) or 2 (neighborhood), "
                f"but got {torch.unique(kind).tolist()}"
            )
        self._append(nll_new=nll_new, nll_true=nll_true, fact=fact, kind=kind)

    def compute(self) -> Tensor:
        """Harmonic mean of the three scores.

        Returns:
            0-dim float32, in [0, 100]; 0 if a score is 0; NaN if a kind has no rows or a likelihood is NaN.
        """
        nll_new, nll_true, fact, kind = (self._column(column) for column in self.columns)
        masks = [kind == number for number in range(len(PROMPT_KINDS))]
        scores = [score(nll_new[m], nll_true[m], fact[m], p) for m, p in zip(masks, self.preferred, strict=True)]
        return harmonic_mean(torch.stack(scores)).float()

    def interval(self, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Percentile bootstrap interval of S over facts; NaN twice where S is NaN. Collective, like :meth:`per_fact`.

        Args:
            level: Coverage, in (0, 1).
            resamples: Number of bootstrap samples.
            seed: Seed of a generator of its own.

        Returns:
            Low and high end, on the 0-100 scale.
        """
        if self.compute().isnan():
            return float("nan"), float("nan")
        return bootstrap_interval(
            self.per_fact(), level, resamples, seed, statistic=lambda table: harmonic_mean(table.nanmean(0))
        )

    def _per_fact(self) -> Tensor:
        """(facts, 3): ES, PS and NS of each fact, NaN where the fact has no prompt of that kind."""
        nll_new, nll_true, fact, kind = (self._column(column) for column in self.columns)
        ids = torch.unique(fact)
        table = nll_new.new_full((len(ids), len(PROMPT_KINDS)), float("nan"))
        for number, prefer in enumerate(self.preferred):
            mask = kind == number
            wins = score_rows(nll_new[mask], nll_true[mask], prefer)
            table[torch.searchsorted(ids, torch.unique(fact[mask])), number] = fact_means(wins, fact[mask])
        return table
