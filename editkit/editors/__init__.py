"""Editors: a method is a short subclass of ``Editor``."""

from editkit.covariance import MomentSource
from editkit.editors.base import Editor
from editkit.editors.emmet import EMMET
from editkit.editors.memit import MEMIT
from editkit.editors.rome import ROME
from editkit.editors.search import ValueSearch
from editkit.editors.spread import LastLayer, Spread, SquareRootSpread

__all__ = ["EMMET", "MEMIT", "ROME", "Editor", "LastLayer", "MomentSource", "Spread", "SquareRootSpread", "ValueSearch"]
