"""Second moments as their Cholesky factors, reusable over batches and ridges."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from editkit.functional.columns import TINY
from editkit.functional.second_moment import BLOCK
from editkit.utils.errors import InputError


@dataclass(frozen=True)
class FactoredSecondMoment:
    """Cholesky factor of a second moment, reusable over batches and ridges.

    Attributes:
        factor: (d_in, d_in) float64 lower triangular L with LLᵀ = C + jitter · I.
        jitter: what had to be added to the diagonal, in the units of C (0.0 normally).
    """

    factor: Tensor
    jitter: float = 0.0

    @cached_property
    def matrix(self) -> Tensor:
        """C + jitter · I, (d_in, d_in) float64, kept once it was asked for: sequential edits add M to it each time."""
        return self.factor @ self.factor.T


class NoSecondMoment(FactoredSecondMoment):
    """Stands where a second moment would, if one had been asked for."""

    def __init__(self) -> None:  # it has no factor to set
        pass

    @property
    def factor(self) -> Tensor:
        """None.

        Raises:
            InputError: always.
        """
        raise InputError(
            "second_moment: expected the second moment C of the keys of text, but none was estimated, as this editor "
            "says that it needs none; choose a preservation that needs none, or an editor that has one"
        )


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
