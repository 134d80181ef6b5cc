"""Metrics of an edit, as :class:`torchmetrics.Metric` classes."""

from __future__ import annotations

from editkit.metrics.editing import (
    KINDS,
    EditingMetric,
    EfficacyMagnitude,
    EfficacyScore,
    HarmonicScore,
    NeighborhoodMagnitude,
    NeighborhoodScore,
    ParaphraseMagnitude,
    ParaphraseScore,
)

__all__ = [
    "KINDS",
    "EditingMetric",
    "EfficacyMagnitude",
    "EfficacyScore",
    "HarmonicScore",
    "NeighborhoodMagnitude",
    "NeighborhoodScore",
    "ParaphraseMagnitude",
    "ParaphraseScore",
]
