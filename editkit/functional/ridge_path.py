"""The whole path of updates over the ridge, from one eigendecomposition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.functional.delta import LowRankDelta
from editkit.functional.factored import FactoredSecondMoment, factor_second_moment
from editkit.functional.preservation import Preservation
from editkit.functional.second_moment import condition_number, effective_rank
from editkit.functional.solve import (
    check_problem,
    check_shapes,
    gram,
    primal_system,
)
from editkit.utils.errors import InputError

FLOOR = 1e-8  # of the largest eigenvalue: the least ridge of a grid, below which float32 weights show no difference


@dataclass(frozen=True)
class RidgePath:
    """Δ(ρ) = left · diag(1 / (λ + ρ)) · rightᵀ for every ρ > 0.

    Attributes:
        eigenvalues: (r,) float64 λ, ascending: the spectrum of D = KᵀC⁻¹K, of which AAᵀ has all that is not 0 where
            E > d_in; r = min(E, d_in).
        left: (d_out, r) float64.
        right: (d_in, r) float64, shared by the updates of all ρ.
    """

    eigenvalues: Tensor
    left: Tensor
    right: Tensor

    def delta(self, rho: float) -> LowRankDelta:
        """The update at ridge ρ > 0, as ``preservation_memorization_update`` gives it; costs d_out × r products.

        Raises:
            InputError: ρ is not a finite number above 0. (At 0, the exact solve keeps digits that D has lost.)
        """
        if not 0.0 < rho < float("inf"):
            raise InputError(f"rho: expected a finite number > 0, but got {rho}; for 0, solve without the path")
        return LowRankDelta(self.left / (self.eigenvalues + rho), self.right)

    def grid(self, count: int = 10) -> list[float]:
        """Ridges in equal ratios from λ_min / 100 to λ_max: the range in which ρ matters.

        Of the exact edit a ridge ρ leaves the share λ / (λ + ρ) in each direction: at λ_min / 100 at least 99% of
        every direction, at λ_max at most half of any. λ_min is taken as at least 1e-8 λ_max, so that dependent keys
        do not stretch the grid to nothing.

        Args:
            count: number of ridges, at least 2.

        Returns:
            Ridges ρ, ascending. MEMIT's preservation_weight is ρ itself; EMMET's ridge is ρ / preservation_weight.
        """
        if count < 2:
            raise InputError(f"count: expected at least 2 ridges for a grid, but got {count}")
        largest = float(self.eigenvalues[-1])
        if not largest > 0:
            raise InputError("keys: expected a key that is not 0, but all are, and no ridge makes a difference")
        smallest = max(float(self.eigenvalues[0]), FLOOR * largest) / 100
        return [smallest * (largest / smallest) ** (i / (count - 1)) for i in range(count)]

    @property
    def condition_number(self) -> float:
        """Largest over smallest eigenvalue; infinite where the smallest is 0."""
        return condition_number(self.eigenvalues)

    @property
    def effective_rank(self) -> float:
        """Number of directions that the keys really use (``functional.effective_rank``)."""
        return effective_rank(self.eigenvalues)


def ridge_path(
    keys: Tensor,
    residuals: Tensor,
    preservation: Tensor | FactoredSecondMoment | Preservation,
    names: Sequence[str] | None = None,
) -> RidgePath:
    """Δ(ρ) = R (KᵀHK + ρI)⁻¹ KᵀH for all ρ > 0 at once.

    With A = FᵀK, H = FFᵀ: AᵀA = UΛUᵀ gives Δ = (RU) (Λ + ρ)⁻¹ (FAU)ᵀ; where E > rank(H) the smaller AAᵀ = UΛUᵀ
    gives Δ = (RAᵀU) (Λ + ρ)⁻¹ (FU)ᵀ.

    Args:
        keys: (d_in, E).
        residuals: (d_out, E), V − W₀K.
        preservation: H; a second moment C (d_in, d_in), or its factor, stands for C⁻¹.
        names: E names of the facts for error messages.

    Returns:
        The path, float64 on the device of ``keys``.

    Raises:
        InputError: shapes that do not fit, or non-finite entries.

    >>> keys, residuals = torch.eye(3)[:, :2], torch.tensor([[1.0, 2.0]])
    >>> path = ridge_path(keys, residuals, torch.eye(3))
    >>> path.delta(1.0).dense().abs(), path.delta(3.0).dense().abs()
    (tensor([[0.5000, 1.0000, 0.0000]], dtype=torch.float64), tensor([[0.2500, 0.5000, 0.0000]], dtype=torch.float64))
    """
    if not isinstance(preservation, Preservation):
        check_problem(keys, residuals, preservation, 1.0, names)
        factor = factor_second_moment(preservation).factor.to(keys.device)
        preservation = Preservation(len(factor), factor)
    check_shapes(keys, residuals, preservation, names)
    if keys.shape[1] > preservation.rank:
        system, left = primal_system(preservation, keys, residuals)
        values, right = torch.linalg.eigh(system)
        left = left @ right
    else:
        whitened = preservation.whiten(keys)
        values, vectors = torch.linalg.eigh(gram(whitened.T))
        left, right = residuals.to(torch.float64) @ vectors, whitened @ vectors
    return RidgePath(values.clamp(min=0), left, preservation.half_times(right))
