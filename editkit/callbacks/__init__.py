"""Callbacks that change the model, measure it, and write down what came of it."""

from editkit.callbacks.evaluation import Evaluation
from editkit.callbacks.report import Report
from editkit.callbacks.weight_update import WeightUpdate

__all__ = ["Evaluation", "Report", "WeightUpdate"]
