"""Running statistics and UltraEdit's residuals: against its public code's numbers, and against all rows at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from editkit.functional import RunningStatistics, closed_form_update, preservation, ultraedit_residuals
from editkit.utils.errors import InputError

ULTRAEDIT = Path(__file__).resolve().parents[1] / "reference" / "methods" / "ultraedit.safetensors"


def read() -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors and the hyperparameters of UltraEdit's public code."""
    with safe_open(ULTRAEDIT, "pt") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        return values, {name: float(value) for name, value in (file.metadata() or {}).items()}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def rows(count: int, seed: int = 3) -> Tensor:
    """Rows of five features, one far from 0 and with little spread."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(count, 5, dtype=torch.float64, generator=generator)
    found[:, 0] = 1000 + found[:, 0] / 10
    return found


def test_ultraedits_public_code() -> None:
    values, given = read()
    statistics = RunningStatistics.zeros(80)
    for batch in range(2):
        keys, gradients = values[f"keys.{batch}"], values[f"value_grads.{batch}"]
        for part in torch.cat([keys, gradients]).T.split(int(given["micro_batch"])):
            statistics = statistics.updated(part, variance="code")
        assert statistics.count == int(values[f"count.{batch}"])
        for name in ("mean", "sum_squares", "std"):
            assert relative(getattr(statistics, name), values[f"{name}.{batch}"]) < 1e-9
        residuals = ultraedit_residuals(keys, gradients, statistics, given["lr"])
        assert relative(residuals, values[f"residuals.{batch}"]) < 1e-9
        found = closed_form_update(keys, residuals, preservation.identity(48), 1.0)
        assert relative(found.dense(), values[f"delta.{batch}"]) < 1e-9


def test_the_reference_tells_one_order_and_variance_from_another() -> None:
    values, given = read()
    keys, gradients = values["keys.0"], values["value_grads.0"]
    part = torch.cat([keys, gradients]).T
    paper = RunningStatistics.zeros(80).updated(part)
    late = RunningStatistics.zeros(80).updated(part[:6], variance="code")  # before the second micro-batch was counted
    for statistics in (paper, late):
        assert relative(ultraedit_residuals(keys, gradients, statistics, given["lr"]), values["residuals.0"]) > 1e-3


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [7, 1, 32], [20, 20], [1, 39]])
def test_how_rows_are_grouped_does_not_matter(sizes: list[int]) -> None:
    every = rows(40)
    statistics = RunningStatistics.zeros(5)
    for part in every.split(sizes):
        statistics = statistics.updated(part)
    assert statistics.count == 40
    torch.testing.assert_close(statistics.mean, every.mean(0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(statistics.std, every.std(0), rtol=1e-11, atol=0.0)
    standard = statistics.standardise(every)
    torch.testing.assert_close(standard.mean(0), torch.zeros(5).double(), rtol=0.0, atol=1e-10)
    torch.testing.assert_close(standard.std(0), torch.ones(5).double(), rtol=1e-10, atol=0.0)


def test_the_public_codes_variance_depends_on_the_groups() -> None:
    every = rows(12)
    one, two = RunningStatistics.zeros(5).updated(every, "code"), RunningStatistics.zeros(5)
    for part in every.split(6):
        two = two.updated(part, "code")
    torch.testing.assert_close(one.sum_squares, 12 * every.var(0))
    within = sum(6 * part.var(0) for part in every.split(6))
    between = 3 * (every[:6].mean(0) - every[6:].mean(0)).square()
    torch.testing.assert_close(two.sum_squares, within + between)
    assert bool((two.sum_squares != one.sum_squares).all())


def test_they_come_back_from_their_tensors_bit_for_bit() -> None:
    before = RunningStatistics.zeros(5).updated(rows(7))
    kept = before.tensors()
    assert {name: tensor.dtype for name, tensor in kept.items()} == {
        "count": torch.int64, "mean": torch.float64, "sum_squares": torch.float64,
    }  # fmt: skip
    again = RunningStatistics.read(kept)
    assert again.count == 7
    more = rows(6, seed=4)
    straight, resumed = before.updated(more), again.updated(more)
    assert straight.count == resumed.count
    assert torch.equal(straight.mean, resumed.mean)
    assert torch.equal(straight.sum_squares, resumed.sum_squares)
    assert before.count == 7, "an update must not change what it starts from"
    assert torch.equal(before.mean, rows(7).mean(0))


def test_a_feature_that_never_changes_takes_no_part() -> None:
    every = rows(9)
    every[:, 2] = 0.0  # a neuron that is always off
    standard = RunningStatistics.zeros(5).updated(every).standardise(every)
    assert bool(standard.isfinite().all())
    assert not standard[:, 2].any()


def test_no_rows_add_nothing() -> None:
    some = RunningStatistics.zeros(5).updated(rows(3))
    for variance in ("paper", "code"):
        assert some.updated(rows(0), variance) is some  # type: ignore[arg-type]


def one_row() -> RunningStatistics:
    return RunningStatistics.zeros(5).updated(rows(1))


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (lambda: one_row().updated(rows(1), "code"), "variance: expected at least 2 rows in each group under 'code'"),
        (lambda: one_row().standardise(rows(1)), "statistics: expected at least 2 rows to standardise by, but got 1"),
        (lambda: RunningStatistics.zeros(5).std, "statistics: expected at least 2 rows to standardise by, but got 0"),
        (lambda: one_row().updated(torch.zeros(2, 4)), r"rows: expected shape \(m, 5\), .* got \(2, 4\)"),
        (lambda: one_row().updated(torch.full((2, 5), torch.nan)), "rows: expected finite keys and gradients"),
        (lambda: one_row().updated(rows(2), "other"), "variance: expected 'paper' or 'code', but got 'other'"),  # type: ignore[arg-type]
        (
            lambda: ultraedit_residuals(torch.ones(3, 2), torch.ones(2, 3), one_row(), 1.0),
            r"gradients: expected \(d_out, N\)",
        ),
        (
            lambda: ultraedit_residuals(torch.ones(3, 2), torch.ones(2, 2), one_row().updated(rows(4)), 0.0),
            "lr: expected a finite number > 0, but got 0.0",
        ),
        (
            lambda: ultraedit_residuals(torch.ones(3, 1), torch.ones(2, 1), one_row(), 1.0),
            "statistics: expected at least 2 rows",
        ),
    ],
)
def test_what_cannot_be_taken_is_told_in_one_line(job: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        job()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
