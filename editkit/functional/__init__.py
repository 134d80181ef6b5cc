"""The mathematics of editkit: torch in, torch out, nothing else imported."""

from editkit.functional.delta import Delta, DenseDelta, LowRankDelta, SparseDelta, ZeroDelta
from editkit.functional.dependence import Dependence, key_dependence
from editkit.functional.ridge_path import RidgePath, ridge_path
from editkit.functional.second_moment import SecondMomentSum, condition_number, effective_rank
from editkit.functional.solve import (
    DependentKeysError,
    FactoredSecondMoment,
    emmet_update,
    factor_second_moment,
    memit_update,
    preservation_memorization_update,
    rome_update,
    with_keys,
)

__all__ = [
    "Delta",
    "DenseDelta",
    "Dependence",
    "DependentKeysError",
    "FactoredSecondMoment",
    "LowRankDelta",
    "SecondMomentSum",
    "ZeroDelta",
    "SparseDelta",
    "RidgePath",
    "condition_number",
    "effective_rank",
    "emmet_update",
    "factor_second_moment",
    "key_dependence",
    "memit_update",
    "preservation_memorization_update",
    "ridge_path",
    "rome_update",
    "with_keys",
]
