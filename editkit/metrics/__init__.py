"""Metrics of an edit, as :class:`torchmetrics.Metric` classes."""

from __future__ import annotations

from editkit.metrics.accuracy import ExactMatch, TokenAccuracy
from editkit.metrics.base import FactMetric
from editkit.metrics.editing import (
    PROMPT_KINDS,
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
from editkit.metrics.probes import InvalidShare, ProbeAccuracy, ProbeF1, ProbeMatthews

__all__ = [
    "PROMPT_KINDS",
    "EditingMetric",
    "EfficacyMagnitude",
    "EfficacyScore",
    "ExactMatch",
    "FactMetric",
    "GenerationEntropy",
    "HarmonicScore",
    "InvalidShare",
    "NeighborhoodMagnitude",
    "NeighborhoodScore",
    "ParaphraseMagnitude",
    "ParaphraseScore",
    "ProbeAccuracy",
    "ProbeF1",
    "ProbeMatthews",
    "ReferenceScore",
    "TextPerplexity",
    "TokenAccuracy",
]
