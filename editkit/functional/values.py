"""The objective by which a fact's value vector v* = v₀ + δ is found, apart from any model.

    L(δ) = mean over templates of NLL(target)  +  kl_weight · KL  +  decay · ‖δ‖ / ‖v₀‖²,     ‖δ‖ ≤ clamp · ‖v₀‖

(Meng et al. 2022, eq. 4; the decay and the clamp are those of the published code.)
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_nll(log_probs: Tensor, targets: Tensor, row: Tensor, rows: int) -> Tensor:
    """Mean negative log-likelihood of each row's target tokens.

    Args:
        log_probs: (T, vocabulary) float32, at the positions that predict a target token, all rows concatenated.
        targets: (T,) long, the target tokens.
        row: (T,) long, to which row each belongs.
        rows: number of rows.

    Returns:
        (rows,) nats per token.

    >>> row_nll(torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log(), torch.tensor([0, 0]), torch.tensor([0, 0]), 1)
    tensor([1.0397])
    """
    nll = -log_probs.gather(1, targets[:, None]).squeeze(1)
    return group_mean(nll, row, rows)


def group_mean(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Mean of ``values`` (N,) over equal ``group`` (N,) long, as (groups,); empty groups are 0."""
    total = torch.zeros(groups, dtype=values.dtype, device=values.device).index_add(0, group, values)
    count = torch.zeros_like(total).index_add(0, group, torch.ones_like(values))
    return total / count.clamp(min=1)


def drift(log_probs: Tensor, reference: Tensor) -> Tensor:
    """KL(current ‖ initial) per row, in nats: how far δ moved an essence prompt such as "{} is a".

    The argument order is that of the published code (the paper writes the opposite).

    Args:
        log_probs: (rows, vocabulary) current log-probabilities.
        reference: (rows, vocabulary) those at δ = 0.

    >>> drift(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.5, 0.5]]).log())
    tensor([0.])
    """
    return (log_probs.exp() * (log_probs - reference)).sum(-1)


def shrinkage(delta: Tensor, start: Tensor) -> Tensor:
    """‖δ‖ / ‖v₀‖² per fact; (facts, d) and (facts, d) give (facts,). Its gradient at δ = 0 is 0.

    >>> shrinkage(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([1.2500])
    """
    ratio: Tensor = torch.linalg.vector_norm(delta, dim=-1) / torch.linalg.vector_norm(start, dim=-1) ** 2
    return ratio


@torch.no_grad()
def clamp_norm(delta: Tensor, start: Tensor, clamp: float) -> Tensor:
    """δ scaled back onto the ball ‖δ‖ ≤ clamp · ‖v₀‖ where it left it, per fact.

    >>> clamp_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]]), clamp=0.5)
    tensor([[0.6000, 0.8000]])
    """
    limit = clamp * torch.linalg.vector_norm(start, dim=-1, keepdim=True)
    clamped: Tensor = delta * (limit / torch.linalg.vector_norm(delta, dim=-1, keepdim=True)).clamp(max=1)
    return clamped
