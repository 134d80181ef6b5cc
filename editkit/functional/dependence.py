"""Facts whose keys depend on other facts' keys, found before anything is edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.functional.columns import TINY, dependent_columns
from editkit.functional.factored import FactoredSecondMoment
from editkit.functional.second_moment import condition_number, effective_rank
from editkit.functional.solve import check_keys, gram, whiten


@dataclass(frozen=True)
class Dependence:
    """How far the keys of a batch of facts are independent of one another.

    Attributes:
        facts: columns of the keys, ascending, without which the rest is independent: a later fact that depends on
            earlier ones is named, the earlier ones are kept.
        involved: groups of columns whose keys are equal or combinations of one another; every one of ``facts`` is in
            exactly one of them, with those that it depends on.
        eigenvalues: (E,) float64, ascending: the spectrum of D = KᵀC⁻¹K scaled to unit diagonal. All 1 for keys that
            do not feel one another; a 2 and a 0 for two equal ones.
        condition_number: largest over smallest eigenvalue; infinite where facts depend on others.
        effective_rank: number of directions that the keys really use (``functional.effective_rank``).
    """

    facts: tuple[int, ...]
    involved: tuple[tuple[int, ...], ...]
    eigenvalues: Tensor
    condition_number: float
    effective_rank: float


def key_dependence(
    keys: Tensor, second_moment: Tensor | FactoredSecondMoment | None, names: Sequence[str] | None = None
) -> Dependence:
    """Find the facts whose keys depend on others' (Gupta et al. 2024, section 5.1), and the conditioning of the rest.

    What is found is what the exact solve would refuse: keys are told apart down to 32 units of rounding of their own
    dtype, in the metric of C⁻¹. Without the columns ``facts``, a ridge of 0 can be solved.

    Args:
        keys: (d_in, E), in the dtype in which they were measured.
        second_moment: (d_in, d_in) C = E[k kᵀ], or its factor; None for the identity.
        names: E names of the facts for error messages.

    Returns:
        The dependence. Of more than d_in facts, those beyond the rank depend on the others.

    Raises:
        InputError: shapes that do not fit, or non-finite entries.

    >>> keys = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> found = key_dependence(keys, torch.eye(3))
    >>> found.facts, found.involved, found.condition_number
    ((2,), ((0, 2),), inf)
    >>> found.eigenvalues.round(decimals=6).abs()
    tensor([0., 1., 2.], dtype=torch.float64)
    """
    check_keys(keys, second_moment, names)
    whitened = keys.to(torch.float64) if second_moment is None else whiten(keys, second_moment)
    facts, involved = dependent_columns(whitened, keys.dtype)
    unit = whitened / whitened.norm(dim=0).clamp(min=TINY)
    # of AᵀA and AAᵀ, which have the same spectrum but for zeros, the smaller
    values = torch.linalg.eigvalsh(gram(unit.T if keys.shape[1] <= keys.shape[0] else unit)).clamp(min=0)
    values = torch.cat([values.new_zeros(keys.shape[1] - len(values)), values])
    conditioning = float("inf") if facts else condition_number(values)
    return Dependence(facts, involved, values, conditioning, effective_rank(values))
