"""GE, RS and perplexity, metrics of generated and of held-out text around :mod:`editkit.functional.generation`."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from editkit.functional.generation import generation_entropy, perplexity, tfidf_consistency
from editkit.functional.scores import bootstrap_interval, fact_means
from editkit.metrics.base import FactMetric


class GenerationEntropy(FactMetric):
    """GE: weighted bi- and trigram entropy of generated texts (bits, times 100), mean over facts; higher is better.

    Example:
        >>> from torch import tensor
        >>> metric = GenerationEntropy()
        >>> metric.update(["so so so so".split(), "one two three four five six".split()], tensor([0, 1]))
        >>> metric.compute()
        tensor(105.3655)
    """

    short = "GE"
    plot_upper_bound = None  # type: ignore[assignment]

    def update(self, texts: Sequence[Sequence[Hashable]] | Tensor, fact: Tensor) -> None:  # type: ignore[override]
        """Add texts.

        Args:
            texts: N texts, each cut into words or tokens, or their (N,) entropies where these are known already.
            fact: (N,), integer fact ids.

        Raises:
            ValueError: if the numbers differ or ``fact`` is not integer.
        """
        known = isinstance(texts, Tensor)
        values = texts if known else torch.tensor([generation_entropy(text) for text in texts], device=fact.device)
        self._append(values=values, fact=fact)  # type: ignore[arg-type]


class ReferenceScore(FactMetric):
    """RS: TF-IDF cosine of generated texts with their reference texts, times 100, mean over facts; higher is better.

    Document frequencies are taken over all texts and references seen, so the value is known at ``compute`` only.

    Example:
        >>> from torch import tensor
        >>> metric = ReferenceScore()
        >>> metric.update([["a", "city"], ["a", "dog"]], [["a", "city"], ["no", "cat"]], tensor([0, 1]))
        >>> metric.compute()
        tensor(50.)
    """

    short = "RS"
    columns: ClassVar[tuple[str, ...]] = ("words", "text_length", "reference_length", "fact")

    def update(  # type: ignore[override]
        self, texts: Sequence[Sequence[str]], references: Sequence[Sequence[str]], fact: Tensor
    ) -> None:
        """Add texts with their references.

        Args:
            texts: N texts, each cut into words.
            references: N reference texts, each cut into words.
            fact: (N,), integer fact ids.

        Raises:
            ValueError: if the numbers differ or ``fact`` is not integer.
        """
        device = fact.device
        lengths = {
            "text_length": torch.tensor([len(t) for t in texts], dtype=torch.long, device=device),
            "reference_length": torch.tensor([len(r) for r in references], dtype=torch.long, device=device),
        }
        self._append(**lengths, fact=fact)
        words = [_number(w) for pair in zip(texts, references, strict=True) for text in pair for w in text]
        self._append(words=torch.tensor(words, dtype=torch.long, device=device))

    def _per_fact(self) -> Tensor:
        words = [str(w) for w in self._column("words").tolist()]
        texts, references, at = [], [], 0
        for first, second in zip(
            self._column("text_length").tolist(), self._column("reference_length").tolist(), strict=True
        ):
            texts.append(words[at : at + first])
            references.append(words[at + first : at + first + second])
            at += first + second
        fact = self._column("fact")
        return fact_means(tfidf_consistency(texts, references).to(fact.device), fact)


def _number(word: str) -> int:
    """A word as a number that fits into a tensor, which ranks can exchange."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big", signed=True)


class TextPerplexity(FactMetric):
    """Perplexity of held-out text, over all its tokens; lower is better, at least 1.

    The interval is over windows of text.

    Example:
        >>> from torch import tensor
        >>> metric = TextPerplexity()
        >>> metric.update(tensor([2.0, 4.0]).log() * 3, tensor([3, 3]), tensor([0, 1]))
        >>> metric.compute()
        tensor(2.8284)
    """

    short = "perplexity"
    higher_is_better = False
    plot_lower_bound = 1.0
    plot_upper_bound = None  # type: ignore[assignment]
    columns: ClassVar[tuple[str, ...]] = ("nll", "tokens", "window")

    def update(self, nll: Tensor, tokens: Tensor, window: Tensor) -> None:  # type: ignore[override]
        """Add windows of text; one that came before changes nothing.

        Args:
            nll: (rows,), negative log-likelihood of each window's tokens in all, nats.
            tokens: (rows,), integer, how many tokens were predicted in each.
            window: (rows,), integer ids of the windows.

        Raises:
            ValueError: if the shapes differ or are not (rows,), or a column of integers is not.
        """
        self._append(nll=nll, tokens=tokens, window=window)

    def compute(self) -> Tensor:
        """0-dim float32; NaN when there are no tokens."""
        table = self._per_fact()
        return perplexity(table[:, 0], table[:, 1]).float()

    def interval(self, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Percentile bootstrap interval over windows. Collective, like :meth:`per_fact`."""
        return bootstrap_interval(
            self.per_fact(), level, resamples, seed, statistic=lambda table: perplexity(table[:, 0], table[:, 1])
        )

    def _per_fact(self) -> Tensor:
        """(windows, 2): NLL and tokens."""
        window = self._column("window")
        return torch.stack([fact_means(self._column(c), window) for c in ("nll", "tokens")], 1)
