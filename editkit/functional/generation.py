r"""How varied and how faithful generated text is: n-gram entropy and consistency with reference texts.

Definitions: Zhang et al. 2018, "Generating Informative and Diverse Conversational Responses via Adversarial
Information Maximization" (arXiv:1809.05972), section 4.2, for the entropy of n-grams; Meng et al. 2022 (ROME,
arXiv:2202.05262), section 3.4, for its weighted sum (GE) and for the reference score (RS). All take tokens or texts
and nothing else; what they are taken of (continuation or whole text, how it is cut into words) is the caller's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

GE_WEIGHTS = (2 / 3, 4 / 3)
"""Weights of the bi- and the trigram entropy in GE."""


def ngram_entropy(tokens: Sequence[Hashable], n: int) -> float:
    r"""Shannon entropy of a text's n-grams, in bits: :math:`H_n = -\sum_g f(g) \log_2 f(g)`.

    Args:
        tokens: the text, cut into words or tokens.
        n: length of the n-grams, at least 1.

    Returns:
        In [0, log2 of the number of n-grams], higher is more varied; 0 for a text of fewer than n tokens, as for one
        that repeats a single n-gram: neither holds any information.

    Raises:
        ValueError: if ``n`` is below 1.

    Example:
        >>> ngram_entropy(["a", "b", "a", "b", "a"], 2)
        1.0
        >>> ngram_entropy(["a", "a", "a"], 2)
        0.0
    """
    if n < 1:
        raise ValueError(f"Argument `n` expected to be at least 1, but got {n}")
    counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    total = sum(counts.values())
    return max(0.0, -sum(c / total * math.log2(c / total) for c in counts.values()))


def generation_entropy(tokens: Sequence[Hashable], weights: Sequence[float] = GE_WEIGHTS, first: int = 2) -> float:
    r"""GE: weighted mean of n-gram entropies, times 100: :math:`\frac{100}{N} \sum_i w_i H_{n_i}`, n from ``first`` on.

    With the paper's weights, :math:`100 \cdot \tfrac12 (\tfrac23 H_2 + \tfrac43 H_3)`. Low when a model has fallen
    into repeating itself.

    Args:
        tokens: the text, cut into words or tokens.
        weights: of the n-gram entropies, n = ``first``, ``first`` + 1, …
        first: the shortest n.

    Returns:
        At least 0, higher is more varied; see :func:`ngram_entropy` for texts that are too short.

    Example:
        >>> round(generation_entropy("one two three four five six".split()), 2)
        210.73
        >>> generation_entropy("so so so so".split())
        0.0
    """
    entropies = [ngram_entropy(tokens, n) for n in range(first, first + len(weights))]
    return 100 * sum(w * h for w, h in zip(weights, entropies, strict=True)) / len(weights)


def tfidf_consistency(texts: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Tensor:
    r"""RS: cosine between each text and its reference texts in TF-IDF space, times 100.

    The weight of word t in document d is :math:`\mathrm{tf}(t, d)\,(1 + \ln\frac{1 + n}{1 + \mathrm{df}(t)})`, with
    the document frequencies df taken over all n documents given here, texts and references alike; vectors have length
    1. (Meng et al. fit theirs on a collection of Wikipedia snippets, which their code downloads; so numbers compare
    within one set of records only.)

    Args:
        texts: N texts, each cut into words; no words make a 0.
        references: N reference texts, each cut into words.

    Returns:
        (N,) float64, in [0, 100], higher is better.

    Raises:
        ValueError: if there are not as many references as texts.

    Example:
        >>> tfidf_consistency([["a", "city"], ["a", "dog"]], [["a", "city"], ["no", "cat"]])
        tensor([100.,   0.], dtype=torch.float64)
    """
    if len(texts) != len(references):
        raise ValueError(f"Argument `references` expected to have {len(texts)} texts, but got {len(references)}")
    documents = [*texts, *references]
    frequency = Counter(word for document in documents for word in set(document))
    idf = {word: 1 + math.log((1 + len(documents)) / (1 + count)) for word, count in frequency.items()}

    def vector(document: Sequence[str]) -> dict[str, float]:
        weights = {word: count * idf[word] for word, count in Counter(document).items()}
        norm = math.sqrt(sum(w * w for w in weights.values())) or 1.0
        return {word: w / norm for word, w in weights.items()}

    pairs = ((vector(text), vector(reference)) for text, reference in zip(texts, references, strict=True))
    cosines = [sum(w * b.get(word, 0.0) for word, w in a.items()) for a, b in pairs]
    return 100 * torch.tensor(cosines, dtype=torch.float64).clamp(max=1.0)


def perplexity(nll: Tensor, tokens: Tensor) -> Tensor:
    r"""Perplexity of text: :math:`\exp(\sum_i \mathrm{nll}_i / \sum_i \mathrm{tokens}_i)`.

    Args:
        nll: (rows,), negative log-likelihood of each row's tokens in all, nats.
        tokens: (rows,), how many tokens were predicted in each.

    Returns:
        0-dim, at least 1 for a model's probabilities, lower is better; NaN when there are no tokens.

    Raises:
        ValueError: if the shapes differ or are not (rows,).

    Example:
        >>> perplexity(torch.tensor([2.0, 4.0]).log() * 3, torch.tensor([3, 3]))
        tensor(2.8284)
    """
    if nll.shape != tokens.shape or nll.ndim != 1:
        raise ValueError(
            f"Arguments `nll`, `tokens` expected to have one shape, (rows,), but got {tuple(nll.shape)}, "
            f"{tuple(tokens.shape)}"
        )
    nll = nll.to(torch.promote_types(nll.dtype, torch.float32))
    return (nll.sum() / tokens.sum()).exp()
