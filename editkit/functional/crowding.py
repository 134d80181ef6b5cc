"""How far a fact's key is its own: what decides where a ridge is needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editkit.functional.preservation import Preservation
from editkit.functional.ridge_path import RidgePath, ridge_path
from editkit.functional.solve import check_keys

FLOOR = 1e-12  # of the spectrum of D at unit diagonal: what float32 keys can tell apart, squared
LEAST = 1e-4  # share at which a fact's ridge no longer matters to what a path of ridges is looked at for


def crowding(keys: Tensor, preservation: Preservation, names: Sequence[str] | None = None) -> Tensor:
    """The share of each key that the other facts' keys explain, in the metric of H.

    sᵢ = 1 − 1 / (Dᵢᵢ (D⁻¹)ᵢᵢ) with D = KᵀHK = UΛUᵀ scaled to unit diagonal, (D⁻¹)ᵢᵢ = Σⱼ Uᵢⱼ² / Λⱼ: the coefficient of
    determination of fact i's whitened key on all others. 0 for a key at right angles to them, 1 for one that is their
    combination, or that H does not see.

    Args:
        keys: (d_in, E).
        preservation: H.
        names: E names of the facts for error messages.

    Returns:
        (E,) float64, 0 to 1.

    >>> from editkit.functional.preservation import identity
    >>> crowding(torch.tensor([[1.0, 0.0, 0.6], [0.0, 1.0, 0.8], [1.0, 0.0, 0.0]]), identity(3)).round(decimals=3)
    tensor([0.5000, 0.7800, 0.8200], dtype=torch.float64)
    """
    check_keys(keys, None, names)
    whitened = preservation.whiten(keys)
    lengths = whitened.norm(dim=0)
    unit = whitened / lengths.clamp(min=torch.finfo(torch.float64).tiny)
    values, vectors = torch.linalg.eigh(unit.T @ unit)
    inverse = (vectors.square() / values.clamp(min=FLOOR)).sum(1)
    return torch.where(lengths > 0, 1 - 1 / inverse.clamp(min=1), torch.ones_like(inverse))


def crowded_path(
    keys: Tensor, residuals: Tensor, preservation: Preservation, names: Sequence[str] | None = None
) -> RidgePath:
    """Δ(ρ) = R (KᵀHK + ρ diag s)⁻¹ KᵀH for all ρ > 0 at once, s from ``crowding`` and at least 1e-4.

    A fact of ridge ρs is one of ridge ρ that is 1/√s as long.
    """
    scale = crowding(keys, preservation, names).clamp(min=LEAST).rsqrt()
    return ridge_path(keys.to(torch.float64) * scale, residuals.to(torch.float64) * scale, preservation, names)
