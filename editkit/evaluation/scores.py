"""The metrics of a run side by side, fed by what was measured: of facts, and of the model's other abilities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from editkit.data.probes import ProbeSet
from editkit.evaluation.evaluator import EditResult, GenerationResult, ProbeResult, Result, TextResult
from editkit.evaluation.protocol import words
from editkit.metrics.accuracy import ExactMatch, TokenAccuracy
from editkit.metrics.base import FactMetric
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
from editkit.metrics.generation import GenerationEntropy, ReferenceScore, TextPerplexity
from editkit.metrics.probes import PROBE_METRICS, ProbeMetric

Figure = dict[str, float]
"""A metric's ``mean`` and, where intervals were asked for and there is one, ``low`` and ``high``."""


class FactScores:
    """ES EM PS PM NS NM S, accuracies, GE and RS over the results seen since ``reset``.

    These are taken to be those of all processes: nothing is synced. A metric without rows is absent from ``results``.
    """

    def __init__(self) -> None:
        alone: dict[str, Any] = {"sync_on_compute": False}
        self.by_kind: tuple[tuple[EditingMetric, EditingMetric], ...] = (
            (EfficacyScore(**alone), EfficacyMagnitude(**alone)),
            (ParaphraseScore(**alone), ParaphraseMagnitude(**alone)),
            (NeighborhoodScore(**alone), NeighborhoodMagnitude(**alone)),
        )
        self.harmonic = HarmonicScore(**alone)
        self.accuracies = [
            (ExactMatch(short, **alone), TokenAccuracy(f"{short}_token", **alone)) for short in ("EA", "PA", "NA", "UA")
        ]
        self.entropy, self.reference = GenerationEntropy(**alone), ReferenceScore(**alone)
        self.skipped = 0

    def metrics(self) -> dict[str, FactMetric]:
        """The metrics by their short names, in the order of the papers' tables."""
        every: list[FactMetric] = [m for pair in self.by_kind for m in pair]
        every += [self.harmonic, *(m for pair in self.accuracies for m in pair), self.entropy, self.reference]
        return {m.short: m for m in every}

    def update(self, results: Iterable[Result]) -> None:
        """Add results; those of probes and text are passed over, those that were not run are counted."""
        results = [r for r in results if isinstance(r, EditResult | GenerationResult)]
        self.skipped += sum(not r.fits for r in results)
        self._edits([r for r in results if isinstance(r, EditResult) and r.fits])
        self._texts([r for r in results if isinstance(r, GenerationResult) and r.fits])

    def _edits(self, results: Sequence[EditResult]) -> None:
        compared = [r for r in results if r.row.target_true is not None]
        kinds = torch.tensor([r.row.kind for r in compared], dtype=torch.long)
        facts = torch.tensor([r.row.fact for r in compared], dtype=torch.long)
        new, true = (torch.tensor([getattr(r, name) for r in compared]) for name in ("nll_new", "nll_true"))
        for number, pair in enumerate(self.by_kind):
            if (chosen := kinds == number).any():
                for metric in pair:
                    metric.update(new[chosen], true[chosen], facts[chosen])
        if compared:
            self.harmonic.update(new, true, facts, kinds)
        for number, both in enumerate(self.accuracies):
            if mine := [r for r in results if r.row.kind == number]:
                shares, fact = torch.tensor([r.share for r in mine]), torch.tensor([r.row.fact for r in mine])
                for accuracy in both:
                    accuracy.update(shares, fact)

    def _texts(self, results: Sequence[GenerationResult]) -> None:
        if results:
            fact = torch.tensor([r.row.fact for r in results])
            self.entropy.update(torch.tensor([r.entropy for r in results]), fact)
        if with_text := [r for r in results if r.row.reference]:
            fact = torch.tensor([r.row.fact for r in with_text])
            self.reference.update([words(r.text) for r in with_text], [words(r.row.reference) for r in with_text], fact)

    def reset(self) -> None:
        """Forget all rows."""
        self.skipped = 0
        for metric in self.metrics().values():
            metric.reset()

    def results(self, intervals: bool = True) -> dict[str, Figure]:
        """Each measured metric's mean over facts, and its 95% bootstrap interval; a metric without rows is absent."""
        return _figures(self.metrics(), intervals)


class AbilityScores:
    """Metrics of each probe, and perplexity of held-out text, over the results of one validation.

    Args:
        probes: the run's probes.

    Attributes:
        skipped: by a probe's name in reports (answers by likelihood and by generation are two), the questions that did
            not fit into the context window.
    """

    def __init__(self, probes: Sequence[ProbeSet]) -> None:
        self.probes = probes
        self.answered: dict[str, dict[str, ProbeMetric]] = {}
        self.skipped: dict[str, int] = {}
        self.perplexity = TextPerplexity(sync_on_compute=False)

    def update(self, results: Iterable[Result]) -> None:
        """Add results; those of facts are passed over."""
        results = list(results)
        for number, probe in enumerate(self.probes):
            mine = [r for r in results if isinstance(r, ProbeResult) and r.row.probe == number]
            if mine:
                title = probe.probe.title
                for name in probe.probe.titles:
                    self.skipped[name] = self.skipped.get(name, 0) + sum(not r.fits for r in mine)
                run = [r for r in mine if r.fits]
                self._answers(title, probe, [(r.predicted, r) for r in run if r.predicted is not None])
                self._answers(probe.probe.titles[-1], probe, [(r.answer, r) for r in run if r.answer is not None])
        if texts := [r for r in results if isinstance(r, TextResult)]:
            self.perplexity.update(
                torch.tensor([r.nll for r in texts]),
                torch.tensor([r.tokens for r in texts]),
                torch.tensor([r.row.window for r in texts]),
            )

    def _answers(self, title: str, probe: ProbeSet, answers: Sequence[tuple[int, ProbeResult]]) -> None:
        if not answers:
            return
        metrics = self.answered.setdefault(
            title, {c.short: c(classes=probe.task.classes, sync_on_compute=False) for c in PROBE_METRICS}
        )
        columns = [(answer, r.row.label, r.row.example) for answer, r in answers]
        predicted, label, example = torch.tensor(columns, dtype=torch.long).T
        for metric in metrics.values():
            metric.update(predicted, label, example)

    def results(self, intervals: bool = True) -> dict[str, dict[str, Figure]]:
        """Per probe its metrics, and under "text" the perplexity; what was not measured is absent."""
        found = {title: _figures(metrics, intervals) for title, metrics in self.answered.items()}
        if self.perplexity.update_called:
            found["text"] = _figures({"perplexity": self.perplexity}, intervals)
        return found


def _figures(metrics: Any, intervals: bool) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for name, metric in metrics.items():
        if not metric.update_called:
            continue
        value = float(metric.compute())
        if value != value:  # S without paraphrase or neighbourhood prompts
            continue
        found[name] = {"mean": value}
        if intervals:
            low, high = metric.interval()
            if low == low:  # of S with few facts, a resample may lack a kind of prompt
                found[name].update(low=low, high=high)
    return found
