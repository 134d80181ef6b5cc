"""The mathematics of editkit: torch in, torch out, nothing else imported."""

from editkit.functional.delta import Delta, DenseDelta, LowRankDelta, NoDelta, SparseDelta
from editkit.functional.moments import MomentSum, condition_number, effective_rank
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
    "DependentKeysError",
    "FactoredMoment",
    "LowRankDelta",
    "MomentSum",
    "NoDelta",
    "SparseDelta",
    "condition_number",
    "effective_rank",
    "emmet_update",
    "factor_second_moment",
    "memit_update",
    "preservation_memorization_update",
    "rome_update",
    "with_keys",
]
