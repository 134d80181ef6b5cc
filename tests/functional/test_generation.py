"""Entropy, consistency with references and perplexity against plain Python, and the properties that they must have."""

from __future__ import annotations

import math
import random
from collections import defaultdict

import pytest
import torch

from editkit.functional.generation import generation_entropy, ngram_entropy, perplexity, tfidf_consistency

WORDS = ["the", "a", "dog", "cat", "city", "river", "sat", "ran", "in", "on", "of"]


def text(seed: int, length: int = 30) -> list[str]:
    return random.Random(seed).choices(WORDS, k=length)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_entropy_equals_plain_python(n: int) -> None:
    tokens = text(n)
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    plain = -sum(math.log2(grams.count(g) / len(grams)) for g in grams) / len(grams)
    assert ngram_entropy(tokens, n) == pytest.approx(plain)


def test_entropy_has_its_limits() -> None:
    assert ngram_entropy([1] * 50, 2) == 0
    assert ngram_entropy(range(65), 2) == pytest.approx(6)  # 64 distinct bigrams: log2 64
    assert ngram_entropy(["one"], 2) == ngram_entropy([], 3) == 0
    tokens = text(4)
    renamed = [{w: i for i, w in enumerate(WORDS)}[t] for t in tokens]
    assert generation_entropy(tokens) == pytest.approx(generation_entropy(renamed))
    expected = 100 * (2 / 3 * ngram_entropy(tokens, 2) + 4 / 3 * ngram_entropy(tokens, 3)) / 2
    assert generation_entropy(tokens) == pytest.approx(expected)
    with pytest.raises(ValueError, match="`n`"):
        ngram_entropy(tokens, 0)


def test_consistency_equals_plain_vectors() -> None:
    texts, references = [text(i) for i in range(5)], [text(i + 50, 60) for i in range(5)]
    documents = texts + references

    def vector(document: list[str]) -> list[float]:
        found = []
        for word in WORDS:
            df = sum(word in d for d in documents)
            found.append(document.count(word) * (1 + math.log((1 + len(documents)) / (1 + df))))
        return [x / math.sqrt(sum(y * y for y in found)) for x in found]

    plain = [
        100 * sum(a * b for a, b in zip(vector(t), vector(r), strict=True))
        for t, r in zip(texts, references, strict=True)
    ]
    torch.testing.assert_close(tfidf_consistency(texts, references), torch.tensor(plain, dtype=torch.float64))
    assert tfidf_consistency(texts, texts).tolist() == pytest.approx([100.0] * 5)
    assert tfidf_consistency([["x"], []], [["y"], ["z"]]).tolist() == [0, 0]
    with pytest.raises(ValueError, match="`references`"):
        tfidf_consistency(texts, references[:2])


def test_perplexity_weighs_tokens_alike() -> None:
    nll = torch.rand(40) * 5
    owner = torch.randint(0, 7, (40,))
    sums: dict[int, list[float]] = defaultdict(list)
    for row, value in zip(owner.tolist(), nll.tolist(), strict=True):
        sums[row].append(value)
    found = perplexity(torch.tensor([sum(v) for v in sums.values()]), torch.tensor([len(v) for v in sums.values()]))
    assert float(found) == pytest.approx(math.exp(float(nll.mean())), rel=1e-5)
    uniform = perplexity(torch.full((3,), math.log(50.0)) * 4, torch.full((3,), 4))
    assert float(uniform) == pytest.approx(50, rel=1e-5)
