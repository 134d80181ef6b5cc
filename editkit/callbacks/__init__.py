"""Callbacks that change the weights and write down what came of it."""

from editkit.callbacks.report import Report
from editkit.callbacks.weight_update import WeightUpdate

__all__ = ["Report", "WeightUpdate"]
