"""The mathematics of editkit: torch in, torch out, nothing else imported."""

from editkit.functional.moments import MomentSum, condition_number, effective_rank
from editkit.functional.solve import (
    DependentKeysError,
    FactoredMoment,
    LowRankDelta,
    emmet_update,
    factor_second_moment,
    memit_update,
    preservation_memorization_update,
    rome_update,
)

__all__ = [
    "DependentKeysError",
    "FactoredMoment",
    "LowRankDelta",
    "MomentSum",
    "condition_number",
    "effective_rank",
    "emmet_update",
    "factor_second_moment",
    "memit_update",
    "preservation_memorization_update",
    "rome_update",
]
