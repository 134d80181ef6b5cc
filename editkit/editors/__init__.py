"""Editors: a method is a short subclass of ``Editor``, or of ``ClosedFormEditor`` where it is one solve."""

from editkit.covariance import SecondMomentSource
from editkit.editors.base import Editor
from editkit.editors.closed_form.alphaedit import AlphaEdit
from editkit.editors.closed_form.closed_form import ClosedForm
from editkit.editors.closed_form.curvature_weighted import CurvatureWeighted
from editkit.editors.closed_form.editor import ClosedFormEditor
from editkit.editors.closed_form.emmet import EMMET
from editkit.editors.closed_form.encore import ENCORE
from editkit.editors.closed_form.lyaplock import LyapLock
from editkit.editors.closed_form.lyapunov_queue import LyapunovQueue
from editkit.editors.closed_form.memit import MEMIT
from editkit.editors.closed_form.nse import NSE
from editkit.editors.closed_form.of_editor import OfEditor
from editkit.editors.closed_form.parts import EditedLayer, Part, PreservationRule, ResidualRule, RestraintRule
from editkit.editors.closed_form.pmet import PMET
from editkit.editors.closed_form.preservations import Identity, Neurons, NullSpace, SecondMoment
from editkit.editors.closed_form.problem import LayerProblem
from editkit.editors.closed_form.residuals import RescaledValues, SearchedValues
from editkit.editors.closed_form.restraints import PRUNE, RECT, SPHERE
from editkit.editors.closed_form.rome import ROME
from editkit.editors.closed_form.search import ValueSearch
from editkit.editors.closed_form.sequential_memit import SequentialMEMIT
from editkit.editors.closed_form.simie import SimIE
from editkit.editors.closed_form.soft import SoftEMMET
from editkit.editors.closed_form.spread import LastLayer, Spread, SquareRootSpread
from editkit.editors.closed_form.standardised_gradient import StandardisedGradient
from editkit.editors.closed_form.ultraedit import UltraEdit
from editkit.editors.closed_form.value_editor import ValueEditor

__all__ = [
    "AlphaEdit",
    "ClosedForm",
    "ClosedFormEditor",
    "CurvatureWeighted",
    "EMMET",
    "ENCORE",
    "EditedLayer",
    "Editor",
    "Identity",
    "LastLayer",
    "LayerProblem",
    "LyapLock",
    "LyapunovQueue",
    "MEMIT",
    "NSE",
    "Neurons",
    "NullSpace",
    "OfEditor",
    "PMET",
    "PRUNE",
    "Part",
    "PreservationRule",
    "RECT",
    "ROME",
    "RescaledValues",
    "ResidualRule",
    "RestraintRule",
    "SPHERE",
    "SearchedValues",
    "SecondMoment",
    "SecondMomentSource",
    "SequentialMEMIT",
    "SimIE",
    "SoftEMMET",
    "Spread",
    "SquareRootSpread",
    "StandardisedGradient",
    "UltraEdit",
    "ValueEditor",
    "ValueSearch",
]
