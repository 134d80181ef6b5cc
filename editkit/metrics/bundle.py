"""All editing metrics of CounterFact side by side, fed by evaluation rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editkit.data.module import EvaluationRow
from editkit.metrics.editing import (
    EditingMetric,
    EfficacyMagnitude,
    EfficacyScore,
    HarmonicScore,
    NeighborhoodMagnitude,
    NeighborhoodScore,
    ParaphraseMagnitude,
    ParaphraseScore,
)


class EditingScores:
    """ES EM PS PM NS NM S over the rows seen since ``reset``, which are those of all processes: nothing is synced."""

    def __init__(self) -> None:
        alone = {"sync_on_compute": False}
        self.by_kind: tuple[tuple[EditingMetric, EditingMetric], ...] = (
            (EfficacyScore(**alone), EfficacyMagnitude(**alone)),
            (ParaphraseScore(**alone), ParaphraseMagnitude(**alone)),
            (NeighborhoodScore(**alone), NeighborhoodMagnitude(**alone)),
        )
        self.harmonic = HarmonicScore(**alone)

    def metrics(self) -> dict[str, EditingMetric]:
        """The metrics by their short names, in the order of the papers' tables."""
        return {m.short: m for m in (*(m for pair in self.by_kind for m in pair), self.harmonic)}

    def update(self, rows: Sequence[EvaluationRow], nll_new: Tensor, nll_true: Tensor) -> None:
        """Add rows with the (rows,) mean token NLLs of both targets, in nats."""
        fact = torch.tensor([row.fact for row in rows])
        kind = torch.tensor([row.kind for row in rows])
        nll_new, nll_true = nll_new.cpu(), nll_true.cpu()
        for number, pair in enumerate(self.by_kind):
            chosen = kind == number
            if chosen.any():
                for metric in pair:
                    metric.update(nll_new[chosen], nll_true[chosen], fact[chosen])
        self.harmonic.update(nll_new, nll_true, fact, kind)

    def reset(self) -> None:
        """Forget all rows."""
        for metric in self.metrics().values():
            metric.reset()

    def results(self, intervals: bool = True) -> dict[str, dict[str, float]]:
        """Each measured metric's mean over facts, and its 95% bootstrap interval; a metric without rows is absent."""
        found: dict[str, dict[str, float]] = {}
        for name, metric in self.metrics().items():
            if not metric.update_called:
                continue
            value = float(metric.compute())
            if value != value:  # S without paraphrase or neighbourhood prompts
                continue
            found[name] = {"mean": value}
            if intervals:
                found[name]["low"], found[name]["high"] = metric.interval()
        return found
