r"""Scores of an edit: how often, and by how much, the preferred target beats the other.

Every row is one prompt. :math:`P = e^{-\mathrm{nll}}`, where nll is the *mean* negative log-likelihood (nats) of a
target's tokens after the prompt: the geometric mean of the token probabilities, so that targets of different length
compare. Rows are averaged inside each fact first, then over facts, so a fact with ten prompts weighs what a fact with
one does, and a fact whose rows all came twice (a sampler that evens out ranks) changes nothing.

Definitions: Meng et al. 2022, "Locating and Editing Factual Associations in GPT" (arXiv:2202.05262), section 3 on the
CounterFact dataset; the same scores are in MEMIT (arXiv:2210.07229) and EMMET (arXiv:2403.14236).

| score | prompts | preferred |
|---|---|---|
| efficacy, ES and EM | the fact's own prompt | ``"new"`` |
| paraphrase, PS and PM | its paraphrases | ``"new"`` |
| neighborhood, NS and NM | prompts about neighbouring subjects | ``"true"`` |

Results keep the input's device and have its dtype, raised to at least float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Prefer = Literal["new", "true"]


def check_rows(**rows: Tensor) -> None:
    """Check tensors that hold one entry a row.

    Args:
        rows: The tensors by argument name; all but those whose name starts with ``nll`` or ``values`` hold integers.

    Raises:
        ValueError: if the shapes differ or are not (rows,), or a column of ids is not integer; names the argument.

    Example:
        >>> check_rows(values=torch.zeros(3), fact=torch.zeros(2, dtype=torch.long))
        Traceback (most recent call last):
        ...
        ValueError: Arguments `values`, `fact` expected to have one shape, (rows,), but got (3,), (2,)
    """
    shapes = [tuple(column.shape) for column in rows.values()]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
        names = ", ".join(f"`{name}`" for name in rows)
        got = ", ".join(map(str, shapes))
        raise ValueError(f"Arguments {names} expected to have one shape, (rows,), but got {got}")
    for name, column in rows.items():
        integer = not (column.is_floating_point() or column.is_complex() or column.dtype == torch.bool)
        if not integer and not name.startswith(("nll", "values")):
            raise ValueError(f"Argument `{name}` expected to hold integers, but got {column.dtype}")


def _pair(nll_new: Tensor, nll_true: Tensor, prefer: str) -> tuple[Tensor, Tensor]:
    """Both likelihoods in one dtype, the preferred target's first."""
    if prefer not in ("new", "true"):
        raise ValueError(f"Argument `prefer` expected to be 'new' or 'true', but got {prefer!r}")
    check_rows(nll_new=nll_new, nll_true=nll_true)
    dtype = torch.promote_types(torch.promote_types(nll_new.dtype, nll_true.dtype), torch.float32)
    new, true = nll_new.to(dtype), nll_true.to(dtype)
    return (new, true) if prefer == "new" else (true, new)


def fact_means(values: Tensor, fact: Tensor) -> Tensor:
    r"""Mean over each fact's rows: :math:`m_f = \frac{1}{|\{i : f_i = f\}|} \sum_{i : f_i = f} x_i`.

    Args:
        values: (rows,), any real dtype.
        fact: (rows,), integer; the fact that each row belongs to. Ids need not be consecutive or sorted.

    Returns:
        (facts,), in ascending order of fact id; empty when there are no rows. NaN stays in its own fact.

    Raises:
        ValueError: if the shapes differ or are not (rows,), or ``fact`` is not integer.

    Example:
        >>> fact_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([7, 7, 2]))
        tensor([5., 2.])
    """
    check_rows(values=values, fact=fact)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    ids, index = torch.unique(fact, return_inverse=True)
    zeros = values.new_zeros(ids.shape[0])
    return zeros.index_add(0, index, values) / zeros.index_add(0, index, torch.ones_like(values))


def score_rows(nll_new: Tensor, nll_true: Tensor, prefer: Prefer = "new") -> Tensor:
    r"""100 where the preferred target is the more likely, else 0: :math:`100\,[P_\mathrm{pref} > P_\mathrm{other}]`.

    The comparison is strict (a tie is 0, as in the papers' code) and made on the likelihoods themselves, where
    probabilities would underflow. A NaN likelihood gives NaN, never a lost comparison.

    Args:
        nll_new: (rows,), mean token negative log-likelihood of ``target_new``, nats.
        nll_true: (rows,), the same of ``target_true``.
        prefer: Which target should win.

    Returns:
        (rows,), 0 or 100 (or NaN).

    Raises:
        ValueError: if the shapes differ or are not (rows,), or ``prefer`` is neither word.

    Example:
        >>> score_rows(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
        tensor([100.,   0.])
    """
    preferred, other = _pair(nll_new, nll_true, prefer)
    wins = 100 * (preferred < other).to(preferred.dtype)
    return wins.masked_fill(preferred.isnan() | other.isnan(), float("nan"))


def magnitude_rows(nll_new: Tensor, nll_true: Tensor, prefer: Prefer = "new") -> Tensor:
    r"""How much more likely the preferred target is: :math:`100\,(P_\mathrm{pref} - P_\mathrm{other})`.

    Args:
        nll_new: (rows,), mean token negative log-likelihood of ``target_new``, nats.
        nll_true: (rows,), the same of ``target_true``.
        prefer: Which target should win.

    Returns:
        (rows,), in [-100, 100].

    Raises:
        ValueError: if the shapes differ or are not (rows,), or ``prefer`` is neither word.

    Example:
        >>> magnitude_rows(torch.tensor([0.0]), torch.tensor([float("inf")]), prefer="true")
        tensor([-100.])
    """
    preferred, other = _pair(nll_new, nll_true, prefer)
    return 100 * (torch.exp(-preferred) - torch.exp(-other))


def score(nll_new: Tensor, nll_true: Tensor, fact: Tensor, prefer: Prefer = "new") -> Tensor:
    r"""Share of facts (in per cent) for which the preferred target wins: ES, PS (``"new"``) and NS (``"true"``).

    .. math:: \mathrm{score} = 100\, \mathbb{E}_f\, \mathbb{E}_{i : f_i = f} [P_\mathrm{pref} > P_\mathrm{other}]

    Args:
        nll_new: (rows,), mean token negative log-likelihood of ``target_new``, nats.
        nll_true: (rows,), the same of ``target_true``.
        fact: (rows,), integer fact ids.
        prefer: Which target should win.

    Returns:
        0-dim, in [0, 100], higher is better; NaN when there are no rows or a likelihood is NaN.

    Raises:
        ValueError: if the shapes differ or are not (rows,), ``fact`` is not integer, or ``prefer`` is neither word.

    Example:
        >>> nll_new, nll_true = torch.tensor([1.0, 1.0, 3.0]), torch.tensor([2.0, 2.0, 2.0])
        >>> score(nll_new, nll_true, torch.tensor([0, 0, 1]))  # fact 0 wins both prompts, fact 1 none
        tensor(50.)
    """
    return fact_means(score_rows(nll_new, nll_true, prefer), fact).mean()


def magnitude(nll_new: Tensor, nll_true: Tensor, fact: Tensor, prefer: Prefer = "new") -> Tensor:
    r"""Mean lead of the preferred target's probability, in points: EM, PM (``"new"``) and NM (``"true"``).

    .. math:: \mathrm{magnitude} = 100\, \mathbb{E}_f\, \mathbb{E}_{i : f_i = f} [P_\mathrm{pref} - P_\mathrm{other}]

    Args:
        nll_new: (rows,), mean token negative log-likelihood of ``target_new``, nats.
        nll_true: (rows,), the same of ``target_true``.
        fact: (rows,), integer fact ids.
        prefer: Which target should win.

    Returns:
        0-dim, in [-100, 100], higher is better; NaN when there are no rows or a likelihood is NaN.

    Raises:
        ValueError: if the shapes differ or are not (rows,), ``fact`` is not integer, or ``prefer`` is neither word.

    Example:
        >>> half, quarter = torch.tensor([0.5]).log().neg(), torch.tensor([0.25]).log().neg()
        >>> magnitude(half, quarter, torch.tensor([0]))
        tensor(25.)
    """
    return fact_means(magnitude_rows(nll_new, nll_true, prefer), fact).mean()


def harmonic_mean(scores: Tensor | Sequence[float]) -> Tensor:
    r"""The papers' overall score S of ES, PS and NS: :math:`n \,/\, \sum_i s_i^{-1}`.

    Args:
        scores: (n,), each on the 0-100 scale.

    Returns:
        0-dim, in [0, 100], higher is better. 0 if any score is 0; NaN, before that, if any is NaN (a part that was
        not measured says nothing of the whole) or there is none.

    Raises:
        ValueError: if a score is negative, for which the mean has no meaning.

    Example:
        >>> harmonic_mean([100.0, 50.0, 25.0])
        tensor(42.8571)
        >>> harmonic_mean([100.0, 100.0, 0.0])
        tensor(0.)
    """
    scores = torch.as_tensor(scores)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if (scores < 0).any():
        raise ValueError(f"Argument `scores` expected to be non-negative, but got {scores.tolist()}")
    # 1 / 0 is inf and 1 / inf is 0 here, so a zero needs no case of its own.
    return scores.reciprocal().mean().reciprocal()


def bootstrap_interval(
    per_fact: Tensor,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    statistic: Callable[[Tensor], Tensor] = torch.mean,
) -> tuple[float, float]:
    r"""Percentile bootstrap interval of a statistic over facts (Efron 1979).

    Facts, not rows, are drawn with replacement: prompts of one fact are not independent. Computed on the CPU in
    float64 from a generator of its own, so a seed gives one interval on every device and leaves the global seed alone.

    Args:
        per_fact: (facts,), or (facts, ...) for a statistic that takes a table; as :func:`fact_means` gives it.
        level: Coverage, in (0, 1).
        resamples: Number of bootstrap samples.
        seed: Seed of the local generator.
        statistic: From a resample of ``per_fact`` to a 0-dim tensor.

    Returns:
        The ``(1 - level) / 2`` and ``(1 + level) / 2`` quantiles, in the units of ``per_fact``; NaN twice when there
        are no facts or a resample's statistic is NaN.

    Raises:
        ValueError: if ``per_fact`` is 0-dim, ``level`` is outside (0, 1) or ``resamples`` is below 1.

    Example:
        >>> low, high = bootstrap_interval(torch.tensor([0.0, 100.0]).repeat(50))
        >>> 30 < low < 50 < high < 70
        True
    """
    if per_fact.ndim == 0:
        raise ValueError("Argument `per_fact` expected to have the shape (facts, ...), but got a 0-dim tensor")
    if not 0 < level < 1:
        raise ValueError(f"Argument `level` expected to be in (0, 1), but got {level}")
    if resamples < 1:
        raise ValueError(f"Argument `resamples` expected to be at least 1, but got {resamples}")
    table = per_fact.detach().cpu().double()
    facts = table.shape[0]
    if facts == 0:
        return float("nan"), float("nan")
    generator = torch.Generator().manual_seed(seed)
    draws = (torch.randint(facts, (facts,), generator=generator) for _ in range(resamples))
    statistics = torch.stack([statistic(table[draw]) for draw in draws])
    low, high = statistics.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high
