"""What a weight change must leave as it is: H of the one solve, Δ = R (KᵀHK + ρI)⁻¹ KᵀH, factored as H = FFᵀ.

Every H here is B S⁻¹ Bᵀ with S = LLᵀ positive definite and B orthonormal columns (or all of the space), so F = B L⁻ᵀ,
and whitened keys are FᵀK = L⁻¹BᵀK. H is singular where B spans less than the space: then keys can change the weight
along B alone.

- ``second_moment``: (wC + μI + M)⁻¹, of ROME, EMMET, MEMIT, PMET; with M sequential MEMIT, ENCORE, LyapLock;
- ``null_space``: P(PMP + L₂I)⁻¹P, of AlphaEdit;
- ``neurons``: S(Sᵀ(wC + M)S)⁻¹Sᵀ, of NSE;
- ``identity``: (wI + M)⁻¹, of MALMEN, RLEdit, UltraEdit; with M SimIE.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.functional.factored import FactoredSecondMoment, factor_second_moment
from editkit.utils.errors import InputError


@dataclass(frozen=True)
class Preservation:
    """A positive semidefinite H = B (LLᵀ)⁻¹ Bᵀ over d_in dimensions.

    Attributes:
        d_in: dimensions of the keys.
        factor: (r, r) float64 lower triangular L; None for the identity.
        basis: B, (d_in, r) float64 with orthonormal columns, or (r,) int64 for those of the identity; None for all.
    """

    d_in: int
    factor: Tensor | None = None
    basis: Tensor | None = None

    @property
    def rank(self) -> int:
        """Of H."""
        return self.d_in if self.basis is None else self.basis.shape[-1]

    def inside(self, keys: Tensor) -> Tensor:
        """BᵀK, (r, E) float64: the part of the keys that H sees."""
        keys = keys.to(torch.float64)
        if self.basis is None:
            return keys
        basis = self.basis.to(keys.device)
        return keys[basis] if basis.ndim == 1 else basis.T @ keys

    def whiten(self, keys: Tensor) -> Tensor:
        """FᵀK, (r, E) float64: keys in coordinates in which H is the identity."""
        inside = self.inside(keys)
        if self.factor is None:
            return inside
        whitened: Tensor = torch.linalg.solve_triangular(self.factor.to(keys.device), inside, upper=False)
        return whitened

    def half_times(self, columns: Tensor) -> Tensor:
        """F X, (d_in, n), of X (r, n)."""
        if self.factor is not None:
            columns = torch.linalg.solve_triangular(self.factor.to(columns.device).T, columns, upper=True)
        if self.basis is None:
            return columns
        basis = self.basis.to(columns.device)
        if basis.ndim == 2:
            return basis @ columns
        whole = columns.new_zeros(self.d_in, columns.shape[1])
        whole[basis] = columns
        return whole

    def times_half(self, rows: Tensor) -> Tensor:
        """X Fᵀ, (n, d_in), of X (n, r)."""
        if self.basis is None and self.factor is not None:
            found: Tensor = torch.linalg.solve_triangular(self.factor.to(rows.device), rows, upper=False, left=False)
            return found
        return self.half_times(rows.T).T

    def times(self, rows: Tensor) -> Tensor:
        """X H, (n, d_in) float64, of X (n, d_in)."""
        return self.times_half(self.whiten(rows.T).T)

    def lost(self, keys: Tensor) -> Tensor:
        """(E,) the share of each key's squared length that lies outside H's range, where no change can reach it."""
        total = keys.to(torch.float64).square().sum(0).clamp(min=torch.finfo(torch.float64).tiny)
        return (1 - self.inside(keys).square().sum(0) / total).clamp(0, 1)

    def dense(self) -> Tensor:
        """H, (d_in, d_in) float64."""
        device = next((t.device for t in (self.factor, self.basis) if t is not None), None)
        half = self.half_times(torch.eye(self.rank, dtype=torch.float64, device=device))
        return half @ half.T


def second_moment(
    second_moment: Tensor | FactoredSecondMoment,
    weight: float = 1.0,
    damping: float = 0.0,
    past: Tensor | None = None,
) -> Preservation:
    """H = (wC + μI + M)⁻¹: what C and the keys of earlier edits stand for.

    Sources: Meng et al. 2022 and 2023 (C alone); the sequential MEMIT of AlphaEdit's code (M); ENCORE, arXiv 2502.01636
    (M and μ).

    Args:
        second_moment: C = E[k kᵀ], (d_in, d_in), or its factor.
        weight: w > 0.
        damping: μ ≥ 0, in the units of C.
        past: M = ΣKKᵀ of earlier batches, (d_in, d_in).

    Raises:
        InputError: shapes that do not fit, a weight that is not positive, a negative μ, or a sum that is singular.

    >>> second_moment(torch.eye(2), weight=2.0, damping=1.0, past=torch.eye(2)).dense()
    tensor([[0.2500, 0.0000],
            [0.0000, 0.2500]], dtype=torch.float64)
    """
    _check_number("weight", weight, positive=True)
    _check_number("damping", damping)
    factored = factor_second_moment(second_moment)
    d_in = len(factored.factor)
    if weight == 1.0 and damping == 0.0 and past is None:
        return Preservation(d_in, factored.factor)
    return Preservation(d_in, _cholesky(_sum(_matrix(second_moment, factored), weight, damping, past)))


def null_space(
    second_moment: Tensor | FactoredSecondMoment,
    threshold: float = 2e-2,
    damping: float = 1.0,
    past: Tensor | None = None,
) -> Preservation:
    """H = P(PMP + L₂I)⁻¹P, P the projector onto the directions that preserved keys hardly use (AlphaEdit, 2410.02355).

    A change with this H leaves what C's other directions map to exactly as it is.

    Args:
        second_moment: C = E[k kᵀ], (d_in, d_in), or its factor.
        threshold: eigenvectors of C with an eigenvalue below this span the null space; in the units of C.
        damping: L₂ > 0, against the squared length of the keys in the null space.
        past: M = ΣKKᵀ of earlier batches, (d_in, d_in).

    Raises:
        InputError: a threshold that leaves nothing of the space or all of it, or as ``second_moment``.

    >>> null_space(torch.diag(torch.tensor([1.0, 1e-3])), damping=2.0).dense()
    tensor([[0.0000, 0.0000],
            [0.0000, 0.5000]], dtype=torch.float64)
    """
    return in_basis(null_space_basis(second_moment, threshold), damping, past)


def null_space_basis(second_moment: Tensor | FactoredSecondMoment, threshold: float = 2e-2) -> Tensor:
    """(d_in, r) float64: eigenvectors of C with an eigenvalue below ``threshold``; made once for all batches.

    Raises:
        InputError: there is none, or nothing else.
    """
    _check_number("threshold", threshold, positive=True)
    values, vectors = torch.linalg.eigh(_matrix(second_moment, factor_second_moment(second_moment)))
    rank = int((values < threshold).sum())
    if not 0 < rank < len(values):
        what = "none of them" if not rank else "all of them"
        raise InputError(
            f"threshold: expected some of the {len(values)} eigenvalues of the second moment, {float(values[0]):.2e} "
            f"to {float(values[-1]):.2e}, to be below it and some not, but {threshold:g} is above {what}; "
            f"{'raise' if not rank else 'lower'} it"
        )
    basis: Tensor = vectors[:, :rank].contiguous()
    return basis


def check_threshold(second_moment: Tensor, threshold: float) -> None:
    """Raise the ``InputError`` of ``null_space_basis`` for such a threshold, by two factorisations where it is sound.

    C − tI is positive definite where no eigenvalue of C is below t, and tI − C where all are.
    """
    _check_number("threshold", threshold, positive=True)
    matrix = second_moment.to(torch.float64)
    shifted = matrix - threshold * torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    if not all(torch.linalg.cholesky_ex(sign * shifted).info for sign in (1, -1)):
        null_space_basis(second_moment, threshold)


def in_basis(basis: Tensor, damping: float = 1.0, past: Tensor | None = None) -> Preservation:
    """H = B(BᵀMB + μI)⁻¹Bᵀ: what ``null_space`` gives, from a basis that is there already.

    Args:
        basis: B, (d_in, r) with orthonormal columns.
        damping: μ > 0.
        past: M, (d_in, d_in).
    """
    _check_number("damping", damping, positive=True)
    basis = basis.to(torch.float64)
    d_in, rank = basis.shape
    inner = damping * torch.eye(rank, dtype=torch.float64, device=basis.device)
    if past is not None:
        inner += basis.T @ _past(past, d_in).to(basis) @ basis
    return Preservation(d_in, _cholesky(inner), basis)


def neurons(
    second_moment: Tensor | FactoredSecondMoment,
    rows: Tensor,
    weight: float = 1.0,
    past: Tensor | None = None,
) -> Preservation:
    """H = S(Sᵀ(wC + M)S)⁻¹Sᵀ, S some of the projection's inputs: no other column of the weight changes (NSE).

    Source: arXiv 2410.04045.

    Args:
        second_moment: C = E[k kᵀ], (d_in, d_in), or its factor.
        rows: (r,) integer numbers of the neurons, or a mask (d_in,) of bool.
        weight: w > 0.
        past: M = ΣKKᵀ of earlier batches, (d_in, d_in).

    Raises:
        InputError: no neuron, numbers that are none or come twice, or as ``second_moment``.

    >>> neurons(torch.eye(3), torch.tensor([2]), weight=4.0).dense().diagonal()
    tensor([0.0000, 0.0000, 0.2500], dtype=torch.float64)
    """
    _check_number("weight", weight, positive=True)
    matrix = _matrix(second_moment, factor_second_moment(second_moment))
    rows = torch.as_tensor(rows, device=matrix.device)
    rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows.flatten().to(torch.int64)
    if not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= len(matrix) or len(set(rows.tolist())) < len(rows):
        raise InputError(
            f"rows: expected the numbers of some of the {len(matrix)} neurons, each once, but got "
            f"{len(rows)} that do not fit; choose at least one"
        )
    inner = _sum(matrix, weight, 0.0, past)[rows][:, rows]
    return Preservation(len(matrix), _cholesky(inner), rows)


def identity(d_in: int, past: Tensor | None = None, weight: float = 1.0) -> Preservation:
    """H = (wI + M)⁻¹: every direction alike; no text is asked what it uses (MALMEN, 2311.04661; UltraEdit, 2505.14679).

    Args:
        d_in: dimensions of the keys.
        past: M = ΣKKᵀ of earlier keys, (d_in, d_in). With ρ = 1 the solve is then recursive ridge regression.
        weight: w > 0.

    >>> identity(2, past=torch.eye(2)).dense()
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]], dtype=torch.float64)
    """
    _check_number("weight", weight, positive=True)
    if past is None and weight == 1.0:
        return Preservation(d_in)
    inner = torch.zeros(d_in, d_in, dtype=torch.float64) if past is None else _past(past, d_in)
    return Preservation(d_in, _cholesky(inner + weight * torch.eye(d_in, dtype=torch.float64, device=inner.device)))


def _matrix(given: Tensor | FactoredSecondMoment, factored: FactoredSecondMoment) -> Tensor:
    """C, (d_in, d_in) float64."""
    return given.to(torch.float64) if isinstance(given, Tensor) else factored.matrix


def _sum(matrix: Tensor, weight: float, damping: float, past: Tensor | None) -> Tensor:
    total = weight * matrix
    if past is not None:
        total += _past(past, len(matrix)).to(total)
    total.diagonal().add_(damping)
    return total


def _past(past: Tensor, d_in: int) -> Tensor:
    if past.shape != (d_in, d_in) or not past.isfinite().all():
        raise InputError(
            f"past: expected finite sums of keys' products, shape ({d_in}, {d_in}), but got {tuple(past.shape)}"
        )
    return past.to(torch.float64)


def _cholesky(matrix: Tensor) -> Tensor:
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise InputError(
            f"preservation: expected a positive definite ({len(matrix)}, {len(matrix)}) matrix, but it is singular; "
            "give a second moment of more tokens, or a damping > 0"
        )
    return factor


def _check_number(name: str, value: float, positive: bool = False) -> None:
    if not (value > 0.0 if positive else value >= 0.0) or not value < float("inf"):
        raise InputError(f"{name}: expected a finite number {'> 0' if positive else '>= 0'}, but got {value}")
