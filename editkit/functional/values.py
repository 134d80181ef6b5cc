"""The objective by which a fact's value vector v* = v₀ + δ is found, apart from any model.

    L(δ) = mean over templates of NLL(target)  +  kl_weight · KL  +  decay · ‖δ‖ / ‖v₀‖²,     ‖δ‖ ≤ clamp · ‖v₀‖

(Meng et al. 2022, eq. 4; the decay and the clamp are those of the published code.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _RowWise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, losses: Callable[[Tensor, slice], Tensor], chunk: int) -> Tensor:
        found: list[Tensor] = []
        slopes: list[Tensor] = []
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            with torch.enable_grad():
                part = hidden[rows].detach().requires_grad_()
                loss = losses(part, rows)
                if ctx.needs_input_grad[0]:
                    slopes += torch.autograd.grad(loss.sum(), part)
            found.append(loss.detach())
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * grads[0][:, None].to(slopes), None, None


def row_wise(losses: Callable[[Tensor, slice], Tensor], hidden: Tensor, chunk: int) -> Tensor:
    """One loss per row of ``hidden``, ``chunk`` rows at a time, with each chunk's gradient taken on the spot.

    A loss over the vocabulary wants several tables of (rows, vocabulary), which at 250,000 tokens are what fills the
    memory. As each loss depends on its own row only, its gradient is the row's slope times whatever comes from above:
    the slopes, (rows, hidden), are all that is kept.

    Args:
        losses: from a chunk (n, hidden) and its place among the rows to (n,) losses, each of its own row only.
        hidden: (rows, hidden).
        chunk: rows at a time.

    Returns:
        (rows,) losses, differentiable once in ``hidden``.

    >>> hidden = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
    >>> loss = row_wise(lambda part, rows: part.square().sum(1), hidden, chunk=2)
    >>> torch.autograd.grad(loss[1] * 10, hidden)[0].flatten()
    tensor([ 0., 40.,  0.])
    """
    found: Tensor = _RowWise.apply(hidden, losses, chunk)  # type: ignore[no-untyped-call]
    return found


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of one token at each position.

    Args:
        logits: (T, vocabulary) float32 or float64.
        targets: (T,) long.

    Returns:
        (T,) nats.

    >>> token_nll(torch.tensor([[1.0, 1.0]]), torch.tensor([0]))
    tensor([0.6931])
    """
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def group_mean(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Mean of ``values`` (N,) over equal ``group`` (N,) long, as (groups,); empty groups are 0."""
    total = torch.zeros(groups, dtype=values.dtype, device=values.device).index_add(0, group, values)
    count = torch.zeros_like(total).index_add(0, group, torch.ones_like(values))
    return total / count.clamp(min=1)


def kl_divergence(log_probs: Tensor, reference: Tensor) -> Tensor:
    """KL(current ‖ initial) per row, in nats: how far δ moved an essence prompt such as "{} is a".

    The argument order is that of the published code (the paper writes the opposite).

    Args:
        log_probs: (rows, vocabulary) current log-probabilities.
        reference: (rows, vocabulary) those at δ = 0.

    >>> kl_divergence(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.5, 0.5]]).log())
    tensor([0.])
    """
    return (log_probs.exp() * (log_probs - reference)).sum(-1)


def norm_penalty(delta: Tensor, start: Tensor) -> Tensor:
    """‖δ‖ / ‖v₀‖² per fact; (facts, d) and (facts, d) give (facts,). Its gradient at δ = 0 is 0.

    >>> norm_penalty(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([1.2500])
    """
    ratio: Tensor = torch.linalg.vector_norm(delta, dim=-1) / torch.linalg.vector_norm(start, dim=-1) ** 2
    return ratio


def norm_anchor(norms: Tensor, dropped: float = 0.05) -> float:
    """The length that values of a model have: the mean of some lengths less the longest (NAS, arXiv 2602.02543).

    Args:
        norms: (n,) lengths.
        dropped: share of the longest that are left out; ⌊dropped · n⌋ of them.

    >>> norm_anchor(torch.tensor([1.0, 3.0, 100.0]), dropped=0.4)
    2.0
    """
    ordered = norms.to(torch.float64).sort().values
    return float(ordered[: max(1, len(ordered) - int(dropped * len(ordered)))].mean())


def rescaled_values(output: Tensor, offset: Tensor, anchor: float, skip_factor: float = 2.0) -> Tensor:
    """v₀ + δ with its length made ``anchor``, per column; v₀ where it is longer than ``skip_factor`` times that.

    Source: NAS, arXiv 2602.02543 (its code adds 1e-10 to the length that it divides by).

    Args:
        output: v₀, (d_out, E).
        offset: δ, (d_out, E).
        anchor: the length.
        skip_factor: of the anchor.

    >>> rescaled_values(torch.zeros(2, 2), torch.tensor([[3.0, 30.0], [4.0, 40.0]]), anchor=10.0)
    tensor([[6., 0.],
            [8., 0.]])
    """
    values = output + offset
    norms = torch.linalg.vector_norm(values, dim=0)
    return torch.where(norms > skip_factor * anchor, output, values * (anchor / norms))


@torch.no_grad()
def clamp_norm(delta: Tensor, start: Tensor, clamp: float) -> Tensor:
    """δ scaled back onto the ball ‖δ‖ ≤ clamp · ‖v₀‖ where it left it, per fact.

    >>> clamp_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]]), clamp=0.5)
    tensor([[0.6000, 0.8000]])
    """
    limit = clamp * torch.linalg.vector_norm(start, dim=-1, keepdim=True)
    clamped: Tensor = delta * (limit / torch.linalg.vector_norm(delta, dim=-1, keepdim=True)).clamp(max=1)
    return clamped
