"""The mathematics of editkit: torch in, torch out, nothing else imported."""

from editkit.functional import preservation, restraint
from editkit.functional.crowding import crowding
from editkit.functional.curvature import Curvature, curvature_path, curvature_update
from editkit.functional.delta import Delta, DenseDelta, LowRankDelta, SparseDelta, ZeroDelta
from editkit.functional.dependence import Dependence, key_dependence
from editkit.functional.factored import FactoredSecondMoment, factor_second_moment, with_keys
from editkit.functional.ridge_path import RidgePath, ridge_path
from editkit.functional.second_moment import SecondMomentSum, condition_number, effective_rank
from editkit.functional.solve import (
    DependentKeysError,
    closed_form_update,
    emmet_update,
    memit_update,
    preservation_memorization_update,
    rome_update,
)
from editkit.functional.statistics import RunningStatistics, ultraedit_residuals

__all__ = [
    "Curvature",
    "Delta",
    "DenseDelta",
    "Dependence",
    "DependentKeysError",
    "FactoredSecondMoment",
    "LowRankDelta",
    "RunningStatistics",
    "SecondMomentSum",
    "ZeroDelta",
    "SparseDelta",
    "RidgePath",
    "closed_form_update",
    "condition_number",
    "crowding",
    "curvature_path",
    "curvature_update",
    "effective_rank",
    "emmet_update",
    "factor_second_moment",
    "key_dependence",
    "memit_update",
    "preservation",
    "preservation_memorization_update",
    "restraint",
    "ridge_path",
    "rome_update",
    "ultraedit_residuals",
    "with_keys",
]
