"""The path over the ridge: equal to the solve at every ridge, shared factors, a grid that spans the spectrum."""

import pytest
import torch
from torch import Tensor

from editkit.functional import emmet_update, factor_second_moment, preservation_memorization_update, ridge_path
from editkit.utils.errors import InputError

D_IN, D_OUT = 24, 10


def problem(facts: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(facts)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    samples = draw(D_IN, 200) * torch.linspace(0.2, 3, D_IN, dtype=torch.float64)[:, None]
    return draw(D_IN, facts).to(dtype), draw(D_OUT, facts).to(dtype), (samples @ samples.T / 200).to(dtype)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("facts", [1, 7, D_IN, D_IN + 1, 3 * D_IN])
def test_equals_the_solve_at_every_ridge(facts: int, dtype: torch.dtype) -> None:
    keys, residuals, moment = problem(facts, dtype)
    path = ridge_path(keys, residuals, moment)
    for rho in [1e-6, *path.grid(), 1e5]:
        delta = path.delta(rho)
        assert delta.left.dtype == torch.float64
        assert close(delta.dense(), preservation_memorization_update(keys, residuals, moment, rho).dense())


def test_equal_keys_have_a_path_too() -> None:
    keys, residuals, moment = problem(7)
    keys[:, 4] = keys[:, 1]
    path = ridge_path(keys, residuals, moment)
    assert path.eigenvalues[0] < 1e-12 * path.eigenvalues[-1]
    for rho in path.grid(4):
        expected = preservation_memorization_update(keys, residuals, moment, rho).dense()
        assert close(path.delta(rho).dense(), expected, 1e-6)  # the least ridge is 1e-8 of the spectrum


@pytest.mark.parametrize("facts", [7, 2 * D_IN])
def test_permuting_facts_changes_nothing(facts: int) -> None:
    keys, residuals, moment = problem(facts)
    order = torch.randperm(facts)
    path, permuted = ridge_path(keys, residuals, moment), ridge_path(keys[:, order], residuals[:, order], moment)
    assert close(permuted.eigenvalues, path.eigenvalues)
    assert close(permuted.delta(0.5).dense(), path.delta(0.5).dense())


@pytest.mark.parametrize("facts", [7, 2 * D_IN])
def test_the_spectrum_is_that_of_d(facts: int) -> None:
    keys, residuals, moment = problem(facts)
    path = ridge_path(keys, residuals, factor_second_moment(moment))
    spectrum = torch.linalg.eigvalsh(keys.T @ torch.linalg.solve(moment, keys))
    assert close(path.eigenvalues, spectrum[-min(facts, D_IN) :])
    assert path.condition_number == pytest.approx(float(path.eigenvalues[-1] / path.eigenvalues[0]))
    assert 1 <= path.effective_rank <= min(facts, D_IN)


def test_updates_share_what_does_not_change() -> None:
    path = ridge_path(*problem(7))
    assert path.delta(1.0).right is path.delta(2.0).right


def test_the_path_runs_from_the_exact_edit_to_none() -> None:
    keys, residuals, moment = problem(7)
    path = ridge_path(keys, residuals, moment)
    norms = [path.delta(rho).norm() for rho in (1e-9, *path.grid(), 1e9)]
    assert norms == sorted(norms, reverse=True)
    assert norms[0] == pytest.approx(emmet_update(keys, residuals, moment).norm())
    assert norms[-1] < 1e-6 * norms[0]


def test_the_grid_spans_the_spectrum_in_equal_ratios() -> None:
    path = ridge_path(*problem(7))
    grid = torch.tensor(path.grid(5), dtype=torch.float64)
    assert grid[0] == pytest.approx(float(path.eigenvalues[0]) / 100)
    assert grid[-1] == pytest.approx(float(path.eigenvalues[-1]))
    assert close(grid[1:] / grid[:-1], (grid[1] / grid[0]).expand(4))


def test_what_it_refuses() -> None:
    keys, residuals, moment = problem(7)
    path = ridge_path(keys, residuals, moment)
    for rho in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="rho: expected a finite number > 0"):
            path.delta(rho)
    with pytest.raises(InputError, match="count: expected at least 2"):
        path.grid(1)
    with pytest.raises(InputError, match="keys: expected a key that is not 0"):
        ridge_path(keys * 0, residuals, moment).grid()
    keys[0, 3] = float("nan")
    with pytest.raises(InputError, match=r"keys: .*fact 3 \(d\)"):
        ridge_path(keys, residuals, moment, names=list("abcdefg"))
