"""Editing metrics against plain Python in float64; batched, permuted and over two processes."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from editkit.metrics import (
    EditingMetric,
    EfficacyMagnitude,
    EfficacyScore,
    GenerationEntropy,
    HarmonicScore,
    NeighborhoodMagnitude,
    NeighborhoodScore,
    ParaphraseMagnitude,
    ParaphraseScore,
    ProbeMatthews,
    ReferenceScore,
    TextPerplexity,
    TokenAccuracy,
)

ROWS = 120
PLAIN = [
    (EfficacyScore, "ES", 1, False),
    (EfficacyMagnitude, "EM", 1, True),
    (ParaphraseScore, "PS", 1, False),
    (ParaphraseMagnitude, "PM", 1, True),
    (NeighborhoodScore, "NS", -1, False),
    (NeighborhoodMagnitude, "NM", -1, True),
]
CLASSES = [row[0] for row in PLAIN]


def make_rows() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    nll_new, nll_true = torch.rand(2, ROWS, generator=generator) * 5
    fact = torch.randint(0, 17, (ROWS,), generator=generator)
    kind = torch.randint(0, 3, (ROWS,), generator=generator)
    return {"nll_new": nll_new, "nll_true": nll_true, "fact": fact, "kind": kind}


def for_metric(metric: EditingMetric, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: rows[name] for name in metric.columns}


def plain(rows: dict[str, Tensor], sign: int, magnitude: bool) -> float:
    groups: dict[int, list[float]] = defaultdict(list)
    for new, true, fact in zip(*(rows[name].tolist() for name in ("nll_new", "nll_true", "fact")), strict=True):
        lead = sign * (math.exp(-new) - math.exp(-true))
        groups[fact].append(lead if magnitude else float(lead > 0))
    return 100 * statistics.fmean(statistics.fmean(group) for group in groups.values())


def plain_harmonic(rows: dict[str, Tensor]) -> float:
    signs = (1, 1, -1)
    parts = [{name: rows[name][rows["kind"] == kind] for name in rows} for kind in range(3)]
    return statistics.harmonic_mean([plain(part, sign, False) for part, sign in zip(parts, signs, strict=True)])


@pytest.mark.parametrize(("metric_class", "short", "sign", "magnitude"), PLAIN)
def test_each_metric_equals_plain_python(metric_class, short, sign, magnitude):
    rows, metric = make_rows(), metric_class()
    metric.update(**for_metric(metric, rows))
    value = metric.compute()
    assert metric.short == short and metric.higher_is_better and value.shape == () and value.dtype == torch.float32
    assert value.item() == pytest.approx(plain(rows, sign, magnitude), abs=1e-4)
    assert metric.plot_lower_bound <= value <= metric.plot_upper_bound


def test_double_precision_is_kept_when_asked_for():
    rows = {name: value.double() if name.startswith("nll") else value for name, value in make_rows().items()}
    metric = EfficacyMagnitude().set_dtype(torch.float64)
    metric.update(**for_metric(metric, rows))
    assert metric.per_fact().mean().item() == pytest.approx(plain(rows, 1, True), abs=1e-10)


def test_harmonic_score_equals_plain_python():
    rows, metric = make_rows(), HarmonicScore()
    metric.update(**rows)
    assert metric.compute().item() == pytest.approx(plain_harmonic(rows), abs=1e-4)


@pytest.mark.parametrize("metric_class", [*CLASSES, HarmonicScore])
def test_batches_and_permutation_change_nothing(metric_class):
    whole, batched = metric_class(), metric_class()
    rows = for_metric(whole, make_rows())
    whole.update(**rows)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(6))
    for part in order.split(13):
        batched.update(**{name: value[part] for name, value in rows.items()})
    torch.testing.assert_close(batched.compute(), whole.compute())
    torch.testing.assert_close(batched.per_fact(), whole.per_fact(), equal_nan=True)
    batched.reset()
    batched(**rows)  # forward gives the batch's value and accumulates
    torch.testing.assert_close(batched.compute(), whole.compute())


def test_per_fact_and_interval():
    metric, rows = ParaphraseMagnitude(), make_rows()
    metric.update(**for_metric(metric, rows))
    assert metric.per_fact().shape == (len(rows["fact"].unique()),)
    assert metric.per_fact().mean().item() == pytest.approx(metric.compute().item(), abs=1e-5)
    low, high = metric.interval()
    assert low < metric.compute() < high


def test_harmonic_per_fact_and_interval():
    metric = HarmonicScore()
    columns = {"nll_true": torch.full((5,), 2.0), "fact": torch.tensor([4, 4, 9, 4, 9])}
    metric.update(torch.tensor([1.0, 3.0, 1.0, 3.0, 3.0]), **columns, kind=torch.tensor([0, 1, 1, 2, 2]))
    expected = torch.tensor([[100.0, 0.0, 100.0], [float("nan"), 100.0, 100.0]])
    torch.testing.assert_close(metric.per_fact(), expected, equal_nan=True)
    assert metric.compute().item() == pytest.approx(3 / (1 / 100 + 1 / 50 + 1 / 100))
    large = HarmonicScore()
    large.update(**make_rows())
    low, high = large.interval(resamples=200)
    assert low < large.compute() < high


def test_harmonic_score_is_zero_with_a_zero_and_nan_without_a_kind():
    nll, fact = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0, 0, 0])
    metric = HarmonicScore()
    metric.update(nll, nll + 1, fact, torch.tensor([0, 1, 2]))  # neighbours lost: NS is 0
    assert metric.compute() == 0
    metric.reset()
    metric.update(nll, nll + 1, fact, torch.tensor([0, 1, 1]))
    assert metric.compute().isnan() and all(map(math.isnan, metric.interval()))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("metric_class", [*CLASSES, HarmonicScore])
def test_no_rows_give_nan(metric_class):
    metric = metric_class()
    assert metric.compute().isnan() and metric.compute().shape == ()
    metric.update(**{name: value[:0] for name, value in for_metric(metric, make_rows()).items()})
    assert metric.compute().isnan()


def test_nan_likelihood_is_not_a_lost_comparison():
    metric = NeighborhoodScore()
    metric.update(torch.tensor([1.0, float("nan")]), torch.tensor([0.5, 0.5]), torch.tensor([0, 1]))
    assert metric.compute().isnan()


@pytest.mark.parametrize("metric_class", [*CLASSES, HarmonicScore])
@pytest.mark.parametrize("name", ["nll_new", "nll_true", "fact"])
def test_shape_mismatch_is_named(metric_class, name):
    metric = metric_class()
    rows = for_metric(metric, make_rows())
    with pytest.raises(ValueError, match=rf"`{name}`.*\(rows,\).*\({ROWS - 1},\)"):
        metric.update(**rows | {name: rows[name][:-1]})
    with pytest.raises(ValueError, match="`fact` expected to hold integers"):
        metric.update(**rows | {"fact": rows["fact"].float()})
    assert all(getattr(metric, column) == [] for column in metric.columns)  # nothing was half added


@pytest.mark.parametrize("kind", [torch.full((ROWS,), 3), torch.full((ROWS,), -1), torch.zeros(ROWS)])
def test_bad_kind_is_named(kind):
    with pytest.raises(ValueError, match="`kind`"):
        HarmonicScore().update(**make_rows() | {"kind": kind})


def test_works_in_a_collection():
    rows = make_rows()
    both = MetricCollection({"efficacy_score": EfficacyScore(), "efficacy_magnitude": EfficacyMagnitude()})
    for part in torch.arange(ROWS).split(50):
        both.update(**{name: rows[name][part] for name in ("nll_new", "nll_true", "fact")})
    values = both.compute()
    assert values["efficacy_score"].item() == pytest.approx(plain(rows, 1, False), abs=1e-4)
    assert values["efficacy_magnitude"].item() == pytest.approx(plain(rows, 1, True), abs=1e-4)


def others() -> list[tuple[Metric, list[Tensor | list[list[str]]]]]:
    """Metrics of accuracy, text and probes, with rows for each."""
    rows, words = make_rows(), ["a", "b", "c", "d", "e", "f"]
    generator = torch.Generator().manual_seed(8)
    texts, references = (
        [[words[i] for i in torch.randint(0, 6, (9,), generator=generator).tolist()] for _ in range(ROWS)] for _ in "tr"
    )
    ids = torch.arange(ROWS)
    return [
        (TokenAccuracy("EA"), [torch.rand(ROWS, generator=generator), rows["fact"]]),
        (GenerationEntropy(), [texts, rows["fact"]]),
        (ReferenceScore(), [texts, references, rows["fact"]]),
        (TextPerplexity(), [rows["nll_new"], rows["fact"] + 1, ids]),
        (ProbeMatthews(3), [rows["kind"], rows["fact"] % 3, ids]),
    ]


def _rank(rank: int, folder: str) -> None:
    """One of two processes: its share of the rows (facts straddle ranks), then all rows on rank 0 alone."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/sync", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = []
    for metric_class in [*CLASSES, HarmonicScore]:
        for share in (slice(rank, None, 2), slice(0, None if rank == 0 else 0)):
            metric = metric_class()
            if make_rows()["fact"][share].numel():
                metric.update(**{name: value[share] for name, value in for_metric(metric, make_rows()).items()})
            found.append([metric.compute().item(), metric.per_fact().nan_to_num(-1).tolist(), metric.interval(0.9, 50)])
    for metric, columns in others():
        metric.update(*(column[rank::2] for column in columns))
        found.append([metric.compute().item(), metric.interval(0.9, 50)])
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    # A process of its own, so that spawn can import this file by its path under any of pytest's import modes.
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, env=environment, timeout=300)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    for number, metric_class in enumerate([*CLASSES, HarmonicScore]):
        metric = metric_class()
        metric.update(**for_metric(metric, make_rows()))
        for value, per_fact, interval in ranks[0][2 * number : 2 * number + 2]:
            assert value == pytest.approx(metric.compute().item(), rel=1e-6)
            torch.testing.assert_close(torch.tensor(per_fact), metric.per_fact().nan_to_num(-1))
            assert interval == pytest.approx(metric.interval(0.9, 50), rel=1e-6, abs=1e-4)
    for (metric, columns), (value, interval) in zip(others(), ranks[0][2 * len(CLASSES) + 2 :], strict=True):
        metric.update(*columns)
        assert value == pytest.approx(metric.compute().item(), rel=1e-5)
        # rows that belong to no fact come in another order on two ranks, and a resample draws others
        assert interval[0] < value < interval[1] and metric.interval(0.9, 50)[0] < value


if __name__ == "__main__":
    torch.multiprocessing.spawn(_rank, args=(sys.argv[1],), nprocs=2)
