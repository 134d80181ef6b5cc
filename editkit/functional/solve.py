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

from collections.abc import Sequence

import torch
from torch import Tensor

from editkit.functional.columns import dependent_columns, shares, tolerance
from editkit.functional.delta import Delta, DenseDelta, LowRankDelta
from editkit.functional.factored import FactoredSecondMoment, factor_second_moment
from editkit.functional.preservation import Preservation
from editkit.functional.second_moment import BLOCK
from editkit.utils.errors import InputError
from editkit.utils.words import listed

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
    factor = factor_second_moment(second_moment).factor.to(keys.device)
    return _solve(keys, residuals, Preservation(len(factor), factor), rho, keys.dtype, names)


def closed_form_update(
    keys: Tensor,
    residuals: Tensor,
    preservation: Preservation | FactoredSecondMoment | Tensor,
    ridge: float | Tensor = 0.0,
    names: Sequence[str] | None = None,
    restoring: Tensor | None = None,
) -> Delta:
    """The solve that every closed-form method is: Δ = Δ₀ + (R − Δ₀K)(KᵀHK + diag ρ)⁻¹KᵀH.

    Args:
        keys: (d_in, E) input of the edited projection at each fact's lookup token.
        residuals: (d_out, E) what is missing at its output.
        preservation: H, from ``editkit.functional.preservation``; a second moment or its factor stands for C⁻¹.
        ridge: ρ ≥ 0, a number, or (E,) one per fact. 0 asks for ΔK = R exactly.
        names: E names of the facts for error messages; column numbers without it.
        restoring: Δ₀, (d_out, d_in): a change made whatever the facts are (LyapLock, arXiv 2505.15702), for which the
            facts then make up.

    Returns:
        The update with float64 factors on the device of ``keys``; of rank at most E, and dense with Δ₀.

    Raises:
        InputError: shapes that do not fit, non-finite entries, a negative ρ, or at ρ = 0 more facts than H has rank, or
            a key that lies outside H's range.
        DependentKeysError: at ρ = 0 some keys depend on others to within their own rounding.

    >>> from editkit.functional import preservation
    >>> h = preservation.null_space(torch.diag(torch.tensor([1.0, 1.0, 1e-3])))
    >>> closed_form_update(torch.ones(3, 1), torch.tensor([[2.0]]), h).dense()
    tensor([[0., 0., 2.]], dtype=torch.float64)
    >>> closed_form_update(torch.eye(2), torch.ones(1, 2), preservation.identity(2), torch.tensor([0.0, 1.0])).dense()
    tensor([[1.0000, 0.5000]], dtype=torch.float64)
    """
    if not isinstance(preservation, Preservation):
        check_keys(keys, preservation, names)
        factor = factor_second_moment(preservation).factor.to(keys.device)
        preservation = Preservation(len(factor), factor)
    rho = _checked_ridge(ridge, keys)
    least = rho if isinstance(rho, float) else float(rho.min())
    check_shapes(keys, residuals, preservation, names)
    exact = torch.arange(keys.shape[1]) if isinstance(rho, float) and not rho else _zeros(rho)
    if least == 0.0:
        _check_reachable(keys, preservation, exact, names)
    dtype = keys.dtype
    if restoring is not None:
        restoring = restoring.to(keys.device, torch.float64)
        residuals = residuals.to(torch.float64) - restoring @ keys.to(torch.float64)
    found = _solve(keys, residuals, preservation, rho, dtype, names)
    return found if restoring is None else DenseDelta(restoring + found.dense())


def _solve(
    keys: Tensor,
    residuals: Tensor,
    preservation: Preservation,
    rho: float | Tensor,
    dtype: torch.dtype,
    names: Sequence[str] | None,
) -> LowRankDelta:
    """The cheaper of the dual (E × E) and the primal (rank × rank) form, for keys measured in ``dtype``."""
    scaled = isinstance(rho, Tensor) and bool(rho.min() > 0)
    if keys.shape[1] > preservation.rank and (isinstance(rho, float) or scaled):
        if isinstance(rho, Tensor):  # a fact of ridge ρ is one of ridge 1 that is 1/√ρ as long
            scale = rho.rsqrt()
            keys, residuals, rho = keys.to(torch.float64) * scale, residuals.to(torch.float64) * scale, 1.0
        system, together = primal_system(preservation, keys, residuals)
        system.diagonal().add_(rho)
        return LowRankDelta(preservation.times_half(solve_factored(together, torch.linalg.cholesky(system))), None)
    whitened = preservation.whiten(keys)
    if isinstance(rho, float) and rho == 0.0:
        right = _least_norm(whitened, dtype, names)
    else:
        if isinstance(rho, Tensor) and len(exact := _zeros(rho)):
            chosen = None if names is None else [names[i] for i in exact.tolist()]
            _least_norm(whitened[:, exact], dtype, chosen)  # or they cannot be met together
        system = gram(whitened.T)
        system.diagonal().add_(rho)
        right = solve_factored(whitened, torch.linalg.cholesky(system))
    return LowRankDelta(residuals.to(torch.float64), preservation.half_times(right))


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


def primal_system(preservation: Preservation, keys: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
    """AAᵀ, (r, r) as ``gram`` gives it, and R Aᵀ, (d_out, r), of A = FᵀK, a chunk of facts at a time."""
    system = torch.zeros(preservation.rank, preservation.rank, dtype=torch.float64, device=keys.device)
    together = system.new_zeros(len(residuals), preservation.rank)
    for start in range(0, keys.shape[1], CHUNK):
        columns = slice(start, start + CHUNK)
        whitened = preservation.whiten(keys[:, columns])
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


def check_shapes(
    keys: Tensor, residuals: Tensor, preservation: Preservation, names: Sequence[str] | None = None
) -> None:
    """Raise an ``InputError`` unless keys (d_in, E) and residuals (d_out, E) are finite, fit each other and H."""
    if keys.ndim != 2 or residuals.ndim != 2 or keys.shape[1] != residuals.shape[1] or keys.shape[1] == 0:
        raise InputError(
            "keys, residuals: expected shapes (d_in, E) and (d_out, E) with one column per fact and E > 0, but got "
            f"{tuple(keys.shape)} and {tuple(residuals.shape)}"
        )
    if len(keys) != preservation.d_in:
        raise InputError(f"keys: expected {preservation.d_in} dimensions, as the preservation has, but got {len(keys)}")
    _check_finite("keys", keys, names)
    _check_finite("residuals", residuals, names)


def _checked_ridge(ridge: float | Tensor, keys: Tensor) -> float | Tensor:
    """A number, or (E,) float64; finite and not negative."""
    if isinstance(ridge, Tensor) and ridge.ndim:
        if ridge.shape != keys.shape[1:] or not (ridge.isfinite() & (ridge >= 0)).all():
            raise InputError(
                f"ridge: expected a number >= 0 or one for each of {keys.shape[-1]} facts, but got a tensor of shape "
                f"{tuple(ridge.shape)}{'' if ridge.shape != keys.shape[1:] else ' with negative or non-finite numbers'}"
            )
        return ridge.to(keys.device, torch.float64)
    if not 0.0 <= float(ridge) < float("inf"):
        raise InputError(f"ridge: expected a finite number >= 0, but got {float(ridge)}")
    return float(ridge)


def _zeros(rho: float | Tensor) -> Tensor:
    return (rho == 0).nonzero().flatten() if isinstance(rho, Tensor) else torch.zeros(0, dtype=torch.int64)


def _check_reachable(keys: Tensor, preservation: Preservation, exact: Tensor, names: Sequence[str] | None) -> None:
    """Raise an ``InputError`` where facts that are to be met exactly are too many, or beyond the reach of H."""
    if len(exact) > preservation.rank:
        space = (
            f"d_in = {preservation.d_in}"
            if preservation.basis is None
            else f"the rank of the preservation, {preservation.rank} of {preservation.d_in},"
        )
        raise InputError(
            f"ridge: {len(exact)} facts exceed {space} and cannot all be met exactly; "
            f"expected a ridge > 0 (or at most {preservation.rank} facts), but got 0"
        )
    if preservation.basis is None:
        return
    lost = preservation.lost(keys)[exact.to(keys.device)]
    beyond = (lost >= 1 - tolerance(keys.dtype) ** 2).nonzero().flatten().tolist()
    if beyond:
        share = f"{100 * float(lost[beyond].min()):.4g}%"
        raise InputError(
            f"keys: {_name([int(exact[i]) for i in beyond], names)} cannot be met exactly, as {share} of the squared "
            f"length of the key lies outside the {preservation.rank} directions that may change; expected another "
            "preservation, or a ridge > 0"
        )


def check_keys(
    keys: Tensor, second_moment: Tensor | FactoredSecondMoment | None, names: Sequence[str] | None = None
) -> None:
    """Raise an ``InputError`` unless keys (d_in, E) are finite and fit the second moment, where there is one."""
    if keys.ndim != 2 or keys.shape[1] == 0:
        raise InputError(f"keys: expected shape (d_in, E) with one column per fact and E > 0, but got {(*keys.shape,)}")
    _check_finite("keys", keys, names)
    if second_moment is None:
        return
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
    return listed([f"fact {c}" if names is None else f"fact {c} ({names[c]})" for c in columns], 8)


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


def rome_update(
    key: Tensor,
    residual: Tensor,
    second_moment: Tensor | FactoredSecondMoment,
    prompt_key: Tensor | None = None,
) -> LowRankDelta:
    """ROME: one fact, met exactly (Meng et al. 2022, eq. 2; r-ROME's single averaged key throughout).

    As first published two keys take part: the change's direction is C⁻¹k̄ of the averaged one, scaled so that the key on
    the bare prompt is met, Δ = r (C⁻¹k̄)ᵀ / (k₀ᵀC⁻¹k̄). Where they differ that is no minimiser, and small products in the
    denominator are what makes models collapse (Gupta et al. 2024, arXiv 2403.07175).

    Args:
        key: (d_in,) or (d_in, 1).
        residual: (d_out,) or (d_out, 1), v* − W₀k.
        second_moment: (d_in, d_in) C = E[k kᵀ], or its factor.
        prompt_key: (d_in,) or (d_in, 1) k₀, for the two keys of the first code.

    Returns:
        Rank-one Δ with Δk = residual, or Δk₀ = residual.

    Raises:
        InputError: more than one fact, or what ``preservation_memorization_update`` raises.

    >>> rome_update(torch.tensor([1.0, 2.0]), torch.tensor([6.0]), torch.diag(torch.tensor([1.0, 4.0]))).dense()
    tensor([[3.0000, 1.5000]], dtype=torch.float64)
    """
    key, residual = (t.unsqueeze(1) if t.ndim == 1 else t for t in (key, residual))
    if key.shape[1:] != (1,):
        raise InputError(f"key: ROME edits one fact at a time and expected shape (d_in,), but got {tuple(key.shape)}")
    update = preservation_memorization_update(key, residual, second_moment, rho=0.0)
    if prompt_key is None:
        return update
    assert update.right is not None
    met = float(prompt_key.flatten().to(update.right) @ update.right.flatten())
    if not abs(met) > torch.finfo(torch.float64).eps * float(prompt_key.norm()) * float(update.right.norm()):
        raise InputError(
            "prompt_key: expected a key that the change's direction has a share in, but they are at right "
            "angles; use the averaged key throughout"
        )
    return LowRankDelta(update.left / met, update.right)


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
