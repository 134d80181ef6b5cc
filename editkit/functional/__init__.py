"""The mathematics of editkit: torch in, torch out, nothing else imported."""

from editkit.functional.delta import Delta, DenseDelta, LowRankDelta, NoDelta, SparseDelta
from editkit.functional.dependence import Dependence, key_dependence
from editkit.functional.moments import MomentSum, condition_number, effective_rank
from editkit.functional.path import RidgePath, ridge_path
from editkit.functional.solve import (
    DependentKeysError,
    FactoredMoment,
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
    "FactoredMoment",
    "LowRankDelta",
    "MomentSum",
    "NoDelta",
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
