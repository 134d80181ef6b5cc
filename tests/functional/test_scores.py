"""Scores against plain Python in float64, and the properties that they must have."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from editkit.functional.scores import (
    bootstrap_interval,
    fact_means,
    harmonic_mean,
    magnitude,
    magnitude_rows,
    score,
    score_rows,
)

ROWS = 200


@pytest.fixture
def rows() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    nll_new, nll_true = torch.rand(2, ROWS, generator=generator, dtype=torch.float64) * 6
    return nll_new, nll_true, torch.randint(-5, 30, (ROWS,), generator=generator) * 1000


def plain(values: Sequence[float], fact: Tensor) -> float:
    """Mean of means, by dictionaries."""
    groups: dict[int, list[float]] = defaultdict(list)
    for value, fact_id in zip(values, fact.tolist(), strict=True):
        groups[fact_id].append(value)
    return statistics.fmean(statistics.fmean(group) for group in groups.values())


@pytest.mark.parametrize(("sign", "prefer"), [(1, "new"), (-1, "true")])
def test_scores_equal_plain_python(rows, sign, prefer):
    nll_new, nll_true, fact = rows
    leads = [sign * (math.exp(-n) - math.exp(-t)) for n, t in zip(nll_new.tolist(), nll_true.tolist(), strict=True)]
    wins = [float(lead > 0) for lead in leads]
    assert score(*rows, prefer=prefer).item() == pytest.approx(100 * plain(wins, fact), abs=1e-10)
    assert magnitude(*rows, prefer=prefer).item() == pytest.approx(100 * plain(leads, fact), abs=1e-10)


@pytest.mark.parametrize("function", [score, magnitude])
def test_permutation_and_duplication_of_facts_change_nothing(rows, function):
    expected = function(*rows)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(function(*(column[order] for column in rows)), expected)
    twice = rows[2] == rows[2][0]  # a fact whose rows all come twice, as a sampler that evens out ranks does
    torch.testing.assert_close(function(*(torch.cat([column, column[twice]]) for column in rows)), expected)


def test_a_preference_and_its_opposite(rows):
    nll_new, nll_true, fact = rows
    assert score(*rows, prefer="new") + score(*rows, prefer="true") == pytest.approx(100)
    assert magnitude(*rows, prefer="new") == pytest.approx(-magnitude(*rows, prefer="true").item())
    torch.testing.assert_close(score(nll_true, nll_new, fact, "new"), score(nll_new, nll_true, fact, "true"))


def test_a_fact_weighs_one_however_many_rows():
    nll_new, nll_true = torch.tensor([0.0] * 9 + [5.0]), torch.full((10,), 1.0)
    assert score(nll_new, nll_true, torch.tensor([0] * 9 + [1])) == 50


def test_extremes():
    inf, nan = float("inf"), float("nan")
    assert score_rows(torch.tensor([2.0]), torch.tensor([2.0])) == 0  # a tie is no win
    assert score_rows(torch.tensor([800.0]), torch.tensor([900.0])) == 100  # both probabilities underflow
    assert magnitude_rows(torch.tensor([0.0]), torch.tensor([inf])) == 100
    for rows in (score_rows, magnitude_rows):
        assert rows(torch.tensor([nan]), torch.tensor([1.0])).isnan()
        assert rows(torch.tensor([1.0]), torch.tensor([nan])).isnan()


def test_empty_is_nan():
    empty, fact = torch.empty(0), torch.empty(0, dtype=torch.long)
    assert fact_means(empty, fact).shape == (0,)
    assert score(empty, empty, fact).isnan() and magnitude(empty, empty, fact).isnan()


def test_dtype_is_the_inputs_but_at_least_float32():
    fact = torch.tensor([0, 0, 1])
    nll = torch.tensor([1.0, 2.0, 3.0])
    assert magnitude(nll.bfloat16(), nll.bfloat16(), fact).dtype == torch.float32
    assert magnitude(nll.double(), nll.double(), fact).dtype == torch.float64
    torch.testing.assert_close(fact_means(torch.tensor([True, False, True]), fact), torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.zeros(2), torch.zeros(3, dtype=torch.long)), r"`nll_new`, `nll_true`.*\(3,\), \(2,\)"),
        ((torch.zeros(3), torch.zeros(3), torch.zeros(2, dtype=torch.long)), r"`fact`.*\(rows,\).*\(2,\)"),
        ((torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.long)), r"\(rows,\)"),
        ((torch.zeros(3), torch.zeros(3), torch.zeros(3)), "`fact` expected to hold integers, but got torch.float32"),
        ((torch.zeros(3), torch.zeros(3), torch.zeros(3, dtype=torch.long), "old"), "`prefer`"),
    ],
)
def test_bad_rows_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        score(*arguments)


def test_harmonic_mean():
    scores = [90.0, 70.0, 40.0]
    assert harmonic_mean(scores).item() == pytest.approx(statistics.harmonic_mean(scores))
    assert harmonic_mean([55.0]).item() == pytest.approx(55)
    assert harmonic_mean([0.0, 100.0]) == 0 and harmonic_mean([0.0, 0.0]) == 0
    assert all(harmonic_mean([100] * count) == 100 for count in (1, 2, 3))  # rounding keeps to the bound
    assert harmonic_mean([float("nan"), 0.0]).isnan() and harmonic_mean([]).isnan()
    with pytest.raises(ValueError, match="non-negative"):
        harmonic_mean([-1.0, 2.0])


def test_bootstrap_interval_is_near_the_normal_one():
    per_fact = torch.randn(400, generator=torch.Generator().manual_seed(3)) * 10 + 60
    low, high = bootstrap_interval(per_fact, resamples=2000)
    margin = 1.96 * per_fact.std().item() / math.sqrt(400)
    assert low == pytest.approx(per_fact.mean().item() - margin, abs=0.15)
    assert high == pytest.approx(per_fact.mean().item() + margin, abs=0.15)


def test_bootstrap_interval_is_deterministic_and_leaves_the_global_seed_alone():
    per_fact = torch.arange(20.0)
    state = torch.get_rng_state()
    wide = bootstrap_interval(per_fact, level=0.99, seed=7)
    assert torch.equal(state, torch.get_rng_state())
    assert wide == bootstrap_interval(per_fact, level=0.99, seed=7) != bootstrap_interval(per_fact, level=0.99, seed=8)
    narrow = bootstrap_interval(per_fact, level=0.5, seed=7)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_bootstrap_interval_limits():
    assert bootstrap_interval(torch.tensor([42.0])) == (42, 42)
    assert all(map(math.isnan, bootstrap_interval(torch.empty(0))))
    assert all(map(math.isnan, bootstrap_interval(torch.tensor([float("nan")]))))
    table = torch.tensor([[100.0, 50.0], [100.0, 50.0]])
    low, high = bootstrap_interval(table, statistic=lambda rows: harmonic_mean(rows.mean(0)))
    assert low == pytest.approx(high) == pytest.approx(200 / 3)
    for bad in ({"level": 1.0}, {"level": 0.0}, {"resamples": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            bootstrap_interval(torch.arange(3.0), **bad)
    with pytest.raises(ValueError, match="per_fact"):
        bootstrap_interval(torch.tensor(1.0))


def test_the_import_pulls_in_torch_only():
    code = (
        "import sys, editkit.functional.scores;"
        "assert not {'lightning', 'transformers', 'torchmetrics'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
