"""The one solve behind ROME, MEMIT and EMMET.

All three minimise a preservation term and a memorization term over the weight change Δ of a linear map W₀:

    λ·E‖Δk‖² over the keys to preserve   against   ‖(W₀ + Δ)K − V‖² over the facts to memorize,

and every minimiser has the form

    Δ = R (Kᵀ C⁻¹ K + ρ I)⁻¹ Kᵀ C⁻¹,        R = V − W₀ K,   C = E[k kᵀ].

ρ = 0 is the equality constraint of ROME (one fact) and EMMET (many); ρ = λ is MEMIT's least squares, by the
push-through identity (λC + KKᵀ)⁻¹K = C⁻¹K (KᵀC⁻¹K + λI)⁻¹. EMMET with its published stabiliser D + αI and a weight w
on C is therefore MEMIT with λ = αw: an identity, not a likeness.

Sources: Meng et al. 2022 (ROME, eq. 2), Meng et al. 2023 (MEMIT, eq. 14), Gupta et al. 2024 ("A Unified Framework for
Model Editing", eqs. 5, 8 and 10).

Everything is computed in float64 and nothing is inverted: C = LLᵀ once, A = L⁻¹K, and then either the E × E (dual) or
the d_in × d_in (primal) system, whichever is smaller. The primal system could also be had from KKᵀ + ρC, without A, a
fifth faster; at a condition number of C of 1e12 that costs four to five digits (a test compares both with 80 digits).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.functional.columns import TINY, dependent_columns, shares, tolerance
from editkit.functional.delta import LowRankDelta
from editkit.functional.second_moment import BLOCK
from editkit.utils.errors import InputError

CHUNK = 2048  # facts whitened at a time where there are more than d_in, so that memory does not grow with them


class DependentKeysError(InputError):
    """Keys that are linear combinations of one another, so that ŴK = V has no unique solution at ridge 0.

    Attributes:
        facts: columns of ``keys`` (0-based) that depend on one another or are equal; ``key_dependence`` says which
            of them to drop.
    """

    def __init__(self, message: str, facts: Sequence[int]) -> None:
        super().__init__(message)
        self.facts = tuple(facts)


@dataclass(frozen=True)
class FactoredSecondMoment:
    """Cholesky factor of a second moment, reusable over batches and ridges.

    Attributes:
        factor: (d_in, d_in) float64 lower triangular L with LLᵀ = C + jitter · I.
        jitter: what had to be added to the diagonal, in the units of C (0.0 normally).
    """

    factor: Tensor
    jitter: float = 0.0


def factor_second_moment(second_moment: Tensor | FactoredSecondMoment) -> FactoredSecondMoment:
    """Cholesky-factor C = E[k kᵀ] in float64, with escalating jitter where C is singular to working precision.

    Args:
        second_moment: (d_in, d_in), any floating dtype, symmetric up to rounding; a ``FactoredSecondMoment`` passes
            through.

    Returns:
        The factor and the jitter used. Any jitter is warned about with its size.

    Raises:
        InputError: not square, not finite, not symmetric, or not positive semi-definite.

    >>> factor_second_moment(4 * torch.eye(2)).factor
    tensor([[2., 0.],
            [0., 2.]], dtype=torch.float64)
    """
    if isinstance(second_moment, FactoredSecondMoment):
        return second_moment
    if second_moment.ndim != 2 or second_moment.shape[0] != second_moment.shape[1]:
        raise InputError(f"second_moment: expected shape (d_in, d_in), but got {tuple(second_moment.shape)}")
    if not second_moment.isfinite().all():
        raise InputError("second_moment: expected finite numbers, but got NaN or infinity; estimate it again")
    moment = second_moment.to(torch.float64, copy=True)
    scale = float(moment.diagonal().abs().mean())
    for start in range(0, len(moment), BLOCK):  # by rows, so that no third matrix is needed
        rows = slice(start, start + BLOCK)
        below, above = moment[rows, : start + BLOCK], second_moment[: start + BLOCK, rows].T.to(torch.float64)
        if float((below - above).abs().max()) > 1e-3 * max(scale, TINY):
            raise InputError("second_moment: expected a symmetric matrix E[k kᵀ], but it differs from its transpose")
        below.add_(above).div_(2)  # the lower triangle is all that a Cholesky factorisation reads
    diagonal = moment.diagonal().clone()
    for relative in (0.0, 1e-12, 1e-10, 1e-8, 1e-6):
        jitter = relative * scale
        moment.diagonal().copy_(diagonal + jitter)
        factor, failed = torch.linalg.cholesky_ex(moment)
        if not failed and factor.isfinite().all():
            if jitter:
                warnings.warn(
                    f"second_moment is singular in float64: {jitter:.2e} ({relative:.0e} of its mean diagonal) was "
                    "added to its diagonal; more tokens would make that needless",
                    stacklevel=2,
                )
            return FactoredSecondMoment(factor, jitter)
    raise InputError(
        f"second_moment: expected a positive definite ({len(moment)}, {len(moment)}) matrix, but it is singular even "
        f"with {jitter:.2e} on its diagonal; estimate it from at least d_in = {len(moment)} varied tokens"
    )


def with_keys(moment: FactoredSecondMoment, keys: Tensor, weight: float) -> FactoredSecondMoment:
    """The factored second moment of C + βKKᵀ: keys of earlier edits to preserve beside those that C stands for.

    With β = 1/ρ the next update's objective counts each earlier key as much as a new one, which is recursive least
    squares: updates for two batches of facts one after the other add up to the update for both at once.

    Args:
        moment: of C, (d_in, d_in).
        keys: (d_in, E).
        weight: β ≥ 0.

    >>> with_keys(FactoredSecondMoment(torch.eye(2).double()), torch.tensor([[3.0], [0.0]]), weight=1 / 3).factor
    tensor([[2., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    keys = keys.to(moment.factor)
    total = torch.addmm(moment.factor @ moment.factor.T, keys, keys.T, alpha=weight)
    return FactoredSecondMoment(torch.linalg.cholesky(total), moment.jitter)


def preservation_memorization_update(
    keys: Tensor,
    residuals: Tensor,
    second_moment: Tensor | FactoredSecondMoment,
    rho: float,
    names: Sequence[str] | None = None,
) -> LowRankDelta:
    """Δ = R (KᵀC⁻¹K + ρI)⁻¹ KᵀC⁻¹, in the cheaper of its dual and primal forms.

    Args:
        keys: (d_in, E) input of the edited projection at each fact's lookup token.
        residuals: (d_out, E) what is missing at its output, V − W₀K.
        second_moment: (d_in, d_in) C = E[k kᵀ] of the keys to preserve, or its factor.
        rho: ridge ρ ≥ 0 on D = KᵀC⁻¹K. 0 asks for ŴK = V exactly.
        names: E names of the facts for error messages; column numbers without it.

    Returns:
        The update with float64 factors on the device of ``keys``.

    Raises:
        InputError: shapes that do not fit, non-finite entries, negative ρ, or E > d_in with ρ = 0.
        DependentKeysError: ρ = 0 and some keys depend on others to within their own rounding.

    >>> keys, residuals = torch.eye(3)[:, :2], torch.tensor([[1.0, 2.0]])
    >>> preservation_memorization_update(keys, residuals, torch.eye(3), rho=0.0).dense()
    tensor([[1., 2., 0.]], dtype=torch.float64)
    >>> preservation_memorization_update(keys, residuals, torch.eye(3), rho=1.0).dense()
    tensor([[0.5000, 1.0000, 0.0000]], dtype=torch.float64)
    """
    check_problem(keys, residuals, second_moment, rho, names)
    d_in, facts = keys.shape
    factor = factor_second_moment(second_moment).factor.to(keys.device)
    if facts > d_in:
        system, together = primal_system(factor, keys, residuals)
        system.diagonal().add_(rho)
        solved = solve_factored(together, torch.linalg.cholesky(system))
        return LowRankDelta(torch.linalg.solve_triangular(factor, solved, upper=False, left=False), None)
    whitened = whiten(keys, FactoredSecondMoment(factor))
    if rho == 0.0:
        right = _least_norm(whitened, keys.dtype, names)
    else:
        system = gram(whitened.T)
        system.diagonal().add_(rho)
        right = solve_factored(whitened, torch.linalg.cholesky(system))
    return LowRankDelta(residuals.to(torch.float64), torch.linalg.solve_triangular(factor.T, right, upper=True))


def whiten(keys: Tensor, second_moment: Tensor | FactoredSecondMoment) -> Tensor:
    """A = L⁻¹K, (d_in, E) float64: keys in coordinates in which C is the identity."""
    factor = factor_second_moment(second_moment).factor.to(keys.device)
    whitened: Tensor = torch.linalg.solve_triangular(factor, keys.to(torch.float64), upper=False)
    return whitened


def gram(rows: Tensor, total: Tensor | None = None) -> Tensor:
    """X Xᵀ of the rows of X (n, m), added to ``total``: the blocks on and below the diagonal, about half of the work.

    What stands above the diagonal has no meaning; Cholesky factors and ``eigh`` read what is below.
    """
    if total is None:
        total = rows.new_zeros(len(rows), len(rows))
    for start in range(0, len(rows), BLOCK):
        end = start + BLOCK
        total[start:end, :end].addmm_(rows[start:end], rows[:end].T)
    return total


def primal_system(factor: Tensor, keys: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
    """AAᵀ, (d_in, d_in) as ``gram`` gives it, and R Aᵀ, (d_out, d_in), a chunk of facts at a time."""
    system = factor.new_zeros(factor.shape)
    together = factor.new_zeros(len(residuals), len(factor))
    for start in range(0, keys.shape[1], CHUNK):
        columns = slice(start, start + CHUNK)
        whitened = whiten(keys[:, columns], FactoredSecondMoment(factor))
        gram(whitened, system)
        together.addmm_(residuals[:, columns].to(torch.float64), whitened.T)
    return system, together


def solve_factored(rows: Tensor, factor: Tensor) -> Tensor:
    """X (M Mᵀ)⁻¹ for X (m, n) and lower triangular M (n, n)."""
    half = torch.linalg.solve_triangular(factor.T, rows, upper=True, left=False)
    solved: Tensor = torch.linalg.solve_triangular(factor, half, upper=False, left=False)
    return solved


def check_problem(
    keys: Tensor,
    residuals: Tensor,
    second_moment: Tensor | FactoredSecondMoment,
    rho: float,
    names: Sequence[str] | None,
) -> None:
    """Raise an ``InputError`` unless keys, residuals and second moment fit, are finite, and ρ can be solved for."""
    if keys.ndim != 2 or residuals.ndim != 2 or keys.shape[1] != residuals.shape[1] or keys.shape[1] == 0:
        raise InputError(
            "keys, residuals: expected shapes (d_in, E) and (d_out, E) with one column per fact and E > 0, but got "
            f"{tuple(keys.shape)} and {tuple(residuals.shape)}"
        )
    check_keys(keys, second_moment, names)
    _check_finite("residuals", residuals, names)
    if not 0.0 <= rho < float("inf"):
        raise InputError(f"ridge, preservation_weight: expected finite numbers >= 0, but their effect is rho = {rho}")
    if rho == 0.0 and keys.shape[1] > keys.shape[0]:
        raise InputError(
            f"ridge: {keys.shape[1]} facts exceed d_in = {keys.shape[0]} and cannot all be met exactly; "
            "expected a ridge > 0 (or at most d_in facts), but got 0"
        )


def check_keys(keys: Tensor, second_moment: Tensor | FactoredSecondMoment, names: Sequence[str] | None = None) -> None:
    """Raise an ``InputError`` unless keys (d_in, E) are finite and fit the second moment."""
    if keys.ndim != 2 or keys.shape[1] == 0:
        raise InputError(f"keys: expected shape (d_in, E) with one column per fact and E > 0, but got {(*keys.shape,)}")
    _check_finite("keys", keys, names)
    moment = second_moment if isinstance(second_moment, Tensor) else second_moment.factor
    if moment.shape != (keys.shape[0], keys.shape[0]):
        raise InputError(
            f"second_moment: expected shape ({keys.shape[0]}, {keys.shape[0]}) to fit the keys, but got "
            f"{tuple(moment.shape)}"
        )


def _check_finite(field: str, tensor: Tensor, names: Sequence[str] | None) -> None:
    bad = (~tensor.isfinite()).any(0).nonzero().flatten().tolist()
    if bad:
        raise InputError(f"{field}: expected finite numbers, but got NaN or infinity for {_name(bad, names)}")


def _name(columns: Sequence[int], names: Sequence[str] | None) -> str:
    shown = [f"fact {c}" if names is None else f"fact {c} ({names[c]})" for c in columns[:8]]
    return ", ".join(shown) + (f" and {len(columns) - 8} more" if len(columns) > 8 else "")


def _least_norm(whitened: Tensor, dtype: torch.dtype, names: Sequence[str] | None) -> Tensor:
    """A (AᵀA)⁻¹ by a QR factorisation of A, which keeps the digits that forming AᵀA would square away."""
    orthonormal, triangular = torch.linalg.qr(whitened)
    if (shares(triangular, whitened.norm(dim=0)) <= tolerance(dtype)).any():
        _, groups = dependent_columns(whitened, dtype)
        involved = sorted(column for group in groups for column in group)
        raise DependentKeysError(
            f"keys: expected independent columns at ridge 0, but {_name(involved, names)} have equal or dependent "
            "keys, and one key can hold one value; drop one of them, or set a ridge > 0",
            involved,
        )
    right: Tensor = torch.linalg.solve_triangular(triangular, orthonormal.T, upper=True).T
    return right


def rome_update(key: Tensor, residual: Tensor, second_moment: Tensor | FactoredSecondMoment) -> LowRankDelta:
    """ROME: one fact, met exactly (Meng et al. 2022, eq. 2; r-ROME's single averaged key throughout).

    Args:
        key: (d_in,) or (d_in, 1).
        residual: (d_out,) or (d_out, 1), v* − W₀k.
        second_moment: (d_in, d_in) C = E[k kᵀ], or its factor.

    Returns:
        Rank-one Δ with Δk = residual.

    Raises:
        InputError: more than one fact, or what ``preservation_memorization_update`` raises.

    >>> rome_update(torch.tensor([1.0, 2.0]), torch.tensor([6.0]), torch.diag(torch.tensor([1.0, 4.0]))).dense()
    tensor([[3.0000, 1.5000]], dtype=torch.float64)
    """
    key, residual = (t.unsqueeze(1) if t.ndim == 1 else t for t in (key, residual))
    if key.shape[1:] != (1,):
        raise InputError(f"key: ROME edits one fact at a time and expected shape (d_in,), but got {tuple(key.shape)}")
    return preservation_memorization_update(key, residual, second_moment, rho=0.0)


def emmet_update(
    keys: Tensor,
    residuals: Tensor,
    second_moment: Tensor | FactoredSecondMoment,
    ridge: float = 0.0,
    preservation_weight: float = 1.0,
    names: Sequence[str] | None = None,
) -> LowRankDelta:
    """EMMET: a batch of facts, met exactly at ridge 0 (Gupta et al. 2024, eq. 10, with its stabiliser D + αI).

    With weight w on C the published update is R (Kᵀ(wC)⁻¹K + αI)⁻¹Kᵀ(wC)⁻¹, that is ρ = αw.

    Args:
        keys: (d_in, E).
        residuals: (d_out, E), V − W₀K.
        second_moment: (d_in, d_in) C = E[k kᵀ], or its factor.
        ridge: α ≥ 0 on D = Kᵀ(wC)⁻¹K, in the units of D.
        preservation_weight: w > 0 on C; without effect at ridge 0.
        names: E names of the facts for error messages.

    Returns:
        Δ of rank at most E; ΔK = R at ridge 0.

    Raises:
        InputError: see ``preservation_memorization_update``; also for more facts than d_in at ridge 0.
        DependentKeysError: equal or dependent keys at ridge 0.

    >>> emmet_update(torch.eye(2), torch.tensor([[1.0, 2.0]]), torch.eye(2), ridge=1.0).dense()
    tensor([[0.5000, 1.0000]], dtype=torch.float64)
    """
    if not preservation_weight > 0:
        raise InputError(f"preservation_weight: expected a number > 0, but got {preservation_weight}")
    return preservation_memorization_update(keys, residuals, second_moment, ridge * preservation_weight, names)


def memit_update(
    keys: Tensor,
    residuals: Tensor,
    second_moment: Tensor | FactoredSecondMoment,
    preservation_weight: float = 15000.0,
    names: Sequence[str] | None = None,
) -> LowRankDelta:
    """MEMIT: a batch of facts in least squares, Δ = R Kᵀ (λC + KKᵀ)⁻¹ (Meng et al. 2023, eq. 14).

    Args:
        keys: (d_in, E).
        residuals: (d_out, E), V − W₀K.
        second_moment: (d_in, d_in) C = E[k kᵀ], or its factor.
        preservation_weight: λ ≥ 0 on C. λ → 0 approaches EMMET's exact solution.
        names: E names of the facts for error messages.

    Returns:
        Δ of rank at most min(E, d_in).

    Raises:
        InputError: see ``preservation_memorization_update``.

    >>> memit_update(torch.eye(2), torch.tensor([[1.0, 2.0]]), torch.eye(2), preservation_weight=3.0).dense()
    tensor([[0.2500, 0.5000]], dtype=torch.float64)
    """
    return preservation_memorization_update(keys, residuals, second_moment, preservation_weight, names)
