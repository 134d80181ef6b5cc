"""Accuracies, texts and probes as metrics: over facts, in any batches, and plotted."""

from __future__ import annotations

import random

import matplotlib
import pytest
import torch
from torch import Tensor

from editkit.evaluation.protocol import PROTOCOLS, Protocol, cut
from editkit.functional.generation import generation_entropy, tfidf_consistency
from editkit.metrics.accuracy import ExactMatch, TokenAccuracy
from editkit.metrics.base import RowMetric
from editkit.metrics.generation import GenerationEntropy, ReferenceScore, TextPerplexity
from editkit.metrics.probes import PROBE_METRICS, InvalidShare, ProbeAccuracy
from editkit.utils.errors import InputError

matplotlib.use("Agg")
ROWS = 60


def texts(seed: int) -> list[list[str]]:
    rng = random.Random(seed)
    return [rng.choices(["a", "b", "c", "d", "e", "f"], k=rng.randint(1, 15)) for _ in range(ROWS)]


FACT = torch.randint(0, 11, (ROWS,), generator=torch.Generator().manual_seed(1))
SHARES = torch.randint(0, 4, (ROWS,), generator=torch.Generator().manual_seed(2)) / 3
PREDICTED = torch.randint(-1, 3, (ROWS,), generator=torch.Generator().manual_seed(3))
LABEL = torch.randint(0, 3, (ROWS,), generator=torch.Generator().manual_seed(4))


def over_facts(values: list[float]) -> float:
    groups = [[v for v, f in zip(values, FACT.tolist(), strict=True) if f == fact] for fact in set(FACT.tolist())]
    return sum(sum(g) / len(g) for g in groups) / len(groups)


def pick(columns: list[object], rows: Tensor) -> list[object]:
    return [c[rows] if isinstance(c, Tensor) else [c[i] for i in rows.tolist()] for c in columns]  # type: ignore[index]


METRICS: list[tuple[type[RowMetric], dict[str, object], list[object]]] = [
    (ExactMatch, {"short": "EA"}, [SHARES, FACT]),
    (TokenAccuracy, {"short": "EA_token"}, [SHARES, FACT]),
    (GenerationEntropy, {}, [texts(5), FACT]),
    (ReferenceScore, {}, [texts(5), texts(6), FACT]),
    (TextPerplexity, {}, [torch.rand(ROWS) * 9, torch.randint(1, 5, (ROWS,)), torch.arange(ROWS)]),
    *((kind, {"classes": 3}, [PREDICTED, LABEL, torch.arange(ROWS)]) for kind in PROBE_METRICS),
]


@pytest.mark.parametrize(("kind", "options", "columns"), METRICS, ids=lambda x: getattr(x, "__name__", ""))
def test_batches_order_and_repeats_change_nothing(
    kind: type[RowMetric], options: dict[str, object], columns: list[object]
) -> None:
    whole, parts = kind(**options), kind(**options)  # type: ignore[arg-type]
    whole.update(*columns)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(7))
    for rows in order.split(13):
        parts.update(*pick(columns, rows))
    torch.testing.assert_close(parts.compute(), whole.compute())
    low, high = whole.interval(resamples=200)  # type: ignore[operator]
    assert low <= whole.compute() <= high
    assert whole.compute().shape == () and isinstance(whole.higher_is_better, bool)
    if kind not in (ReferenceScore,):  # whose document frequencies count the repeats
        parts.update(*columns)
        torch.testing.assert_close(parts.compute(), whole.compute())
    figure, _ = whole.plot()
    assert figure is not None


def test_values_equal_plain_python() -> None:
    def value(metric: RowMetric, *columns: object) -> float:
        metric.update(*columns)
        return float(metric.compute())

    assert value(ExactMatch("EA"), SHARES, FACT) == pytest.approx(over_facts([100.0 * (s == 1) for s in SHARES]))
    assert value(TokenAccuracy("EA"), SHARES, FACT) == pytest.approx(over_facts([100.0 * float(s) for s in SHARES]))
    entropies = [generation_entropy(t) for t in texts(5)]
    assert value(GenerationEntropy(), texts(5), FACT) == pytest.approx(over_facts(entropies), rel=1e-5)
    assert value(GenerationEntropy(), torch.tensor(entropies), FACT) == pytest.approx(over_facts(entropies), rel=1e-5)
    cosines = tfidf_consistency(texts(5), texts(6)).tolist()
    assert value(ReferenceScore(), texts(5), texts(6), FACT) == pytest.approx(over_facts(cosines), rel=1e-5)
    right = 100 * float((PREDICTED == LABEL).float().mean())
    assert value(ProbeAccuracy(3), PREDICTED, LABEL, torch.arange(ROWS)) == pytest.approx(right)
    share = 100 * float((PREDICTED == -1).float().mean())
    assert value(InvalidShare(3), PREDICTED, LABEL, torch.arange(ROWS)) == pytest.approx(share)


def test_protocols() -> None:
    assert Protocol() == PROTOCOLS["paper"] == Protocol.of(None)
    assert {name: p.name for name, p in PROTOCOLS.items()} == {name: name for name in PROTOCOLS}
    assert Protocol.of("public").entropy_over == "text"
    assert Protocol.of(Protocol(top_k=1)).about()["name"] == "own"
    with pytest.raises(InputError, match="expected one of paper, public, rome, easyedit"):
        Protocol.of("papre")
    assert cut("It's so.", [5, 6], "words") == ["It", "'", "s", "so", "."]
    assert cut("It's so.", [5, 6], "whitespace") == ["It's", "so."]
    assert cut("It's so.", [5, 6], "tokens") == ["5", "6"]
