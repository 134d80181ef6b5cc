"""Editors: a method is a short subclass of ``Editor``, or of ``ClosedFormEditor`` where it is one solve."""

from editkit.covariance import SecondMomentSource
from editkit.editors.base import Editor
from editkit.editors.closed_form.editor import ClosedFormEditor
from editkit.editors.closed_form.emmet import EMMET
from editkit.editors.closed_form.layers import LayerProblem
from editkit.editors.closed_form.memit import MEMIT
from editkit.editors.closed_form.rome import ROME
from editkit.editors.closed_form.search import ValueSearch
from editkit.editors.closed_form.spread import LastLayer, Spread, SquareRootSpread

__all__ = [
    "EMMET",
    "MEMIT",
    "ROME",
    "ClosedFormEditor",
    "Editor",
    "LastLayer",
    "LayerProblem",
    "SecondMomentSource",
    "Spread",
    "SquareRootSpread",
    "ValueSearch",
]
