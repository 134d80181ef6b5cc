"""Editors: a method is a short subclass of ``Editor``."""

from editkit.covariance import SecondMomentSource
from editkit.editors.closed_form.editor import Editor
from editkit.editors.closed_form.emmet import EMMET
from editkit.editors.closed_form.memit import MEMIT
from editkit.editors.closed_form.rome import ROME
from editkit.editors.closed_form.search import ValueSearch
from editkit.editors.closed_form.spread import LastLayer, Spread, SquareRootSpread

__all__ = [
    "EMMET",
    "MEMIT",
    "ROME",
    "Editor",
    "LastLayer",
    "SecondMomentSource",
    "Spread",
    "SquareRootSpread",
    "ValueSearch",
]
