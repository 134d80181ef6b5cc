"""Curvature-weighted editing: what a change of the weight costs depends on the direction of the output, too.

    minimise  ‖ΔK − R‖² + λ tr(B Δ H⁻¹ Δᵀ)      ⇔      ΔKKᵀ + λ B Δ H⁻¹ = R Kᵀ,     B = E[g gᵀ]

over output gradients g of the model's own loss: with H = C⁻¹ the second term is what Kronecker-factored curvature
(Martens and Grosse 2015) says that Δ costs on text. In B's eigenbasis the rows are apart: row i is the solve with
ρ = λ sᵢ. B = I is MEMIT, and λ → 0 is EMMET, whatever B is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.functional.delta import LowRankDelta
from editkit.functional.preservation import Preservation
from editkit.functional.ridge_path import RidgePath
from editkit.functional.solve import check_shapes
from editkit.utils.errors import InputError


@dataclass(frozen=True)
class Curvature:
    """B = QSQᵀ, by its eigendecomposition.

    Attributes:
        values: S, (d_out,) float64, not negative.
        vectors: Q, (d_out, d_out) float64.
    """

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, matrix: Tensor, power: float = 1.0, normalise: bool = True, damping: float = 0.0) -> Curvature:
        """The curvature B^p of a second moment of output gradients.

        Args:
            matrix: B, (d_out, d_out), symmetric and positive semidefinite.
            power: p; 0 gives the identity, 1/2 half of the spread of its spectrum in logarithms.
            normalise: scale the mean eigenvalue to 1, so that λ means what it does in MEMIT.
            damping: added to the spectrum of B^p, as a share of its mean: directions of which text knows nothing.

        >>> Curvature.of(torch.diag(torch.tensor([1.0, 3.0]))).values
        tensor([0.5000, 1.5000], dtype=torch.float64)
        """
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.isfinite().all():
            raise InputError(f"curvature: expected a finite matrix (d_out, d_out), but got {tuple(matrix.shape)}")
        values, vectors = torch.linalg.eigh(matrix.to(torch.float64))
        if float(values[0]) < -1e-8 * float(values[-1].abs()):
            raise InputError("curvature: expected a positive semidefinite matrix, but it has negative eigenvalues")
        values = values.clamp(min=0) ** power
        values = values + damping * values.mean()
        return cls(values / values.mean() if normalise else values, vectors)


def curvature_update(
    keys: Tensor,
    residuals: Tensor,
    preservation: Preservation,
    curvature: Curvature | Tensor,
    weight: float = 1.0,
    names: Sequence[str] | None = None,
) -> LowRankDelta:
    """The Δ of ΔKKᵀ + λBΔH⁻¹ = RKᵀ, exactly, from one eigendecomposition of KᵀHK.

    Args:
        keys: (d_in, E).
        residuals: (d_out, E).
        preservation: H.
        curvature: B; a tensor (d_out, d_out) is taken as it is.
        weight: λ ≥ 0. Every output direction has the ridge λ times its eigenvalue of B.
        names: E names of the facts for error messages.

    Returns:
        Δ of rank at most E, float64.

    Raises:
        InputError: shapes that do not fit, non-finite entries, a negative λ, or ridges of 0 where keys are dependent.

    >>> from editkit.functional.preservation import identity
    >>> curvature_update(torch.eye(2), torch.ones(2, 2), identity(2), torch.diag(torch.tensor([1.0, 3.0]))).dense()
    tensor([[0.5000, 0.5000],
            [0.2500, 0.2500]], dtype=torch.float64)
    """
    return curvature_path(keys, residuals, preservation, curvature, names).delta(weight)


@dataclass(frozen=True)
class CurvaturePath:
    """Δ(λ) = Q [T / (Λ + λ s)] · rightᵀ for every λ, of one eigendecomposition each of B = QSQᵀ and KᵀHK.

    Attributes:
        values: (r,) Λ, the spectrum of KᵀHK, descending.
        turned: T, (d_out, r).
        directions: (d_in, r), shared by all λ.
        curvature: B.
    """

    values: Tensor
    turned: Tensor
    directions: Tensor
    curvature: Curvature

    def delta(self, weight: float) -> LowRankDelta:
        """The update at λ = ``weight``.

        Raises:
            InputError: λ is negative or infinite, or leaves no ridge where keys are dependent.
        """
        if not 0.0 <= weight < float("inf"):
            raise InputError(f"weight: expected a finite number >= 0, but got {weight}")
        system = self.values + weight * self.curvature.values.to(self.values.device)[:, None]
        if float(system.min()) <= 1e-14 * float(system.max()):
            raise InputError(
                f"weight: expected a ridge in every output direction, as some keys depend on others, but {weight:g} "
                "leaves none in some; raise it, or add to the curvature's diagonal"
            )
        return LowRankDelta(self.curvature.vectors.to(self.turned.device) @ (self.turned / system), self.directions)

    def grid(self, count: int = 10) -> list[float]:
        """Weights in equal ratios over the range in which they matter to the mean output direction."""
        return RidgePath(self.values.flip(0), self.turned, self.directions).grid(count)


def curvature_path(
    keys: Tensor,
    residuals: Tensor,
    preservation: Preservation,
    curvature: Curvature | Tensor,
    names: Sequence[str] | None = None,
) -> CurvaturePath:
    """``curvature_update`` for every λ, from one eigendecomposition each of B and KᵀHK."""
    check_shapes(keys, residuals, preservation, names)
    if not isinstance(curvature, Curvature):
        curvature = Curvature.of(curvature, normalise=False)
    if len(curvature.values) != len(residuals):
        raise InputError(
            f"curvature: expected {len(residuals)} output dimensions, as the residuals have, but got "
            f"{len(curvature.values)}"
        )
    left, roots, right = torch.linalg.svd(preservation.whiten(keys), full_matrices=False)  # A = U √Λ Vᵀ
    turned = curvature.vectors.to(keys.device).T @ (residuals.to(torch.float64) @ right.T) * roots
    return CurvaturePath(roots.square(), turned, preservation.half_times(left), curvature)
