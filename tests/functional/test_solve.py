"""The one solve: constraint met, limits, identities, permutation, both forms, and what it refuses."""

import subprocess
import sys

import mpmath
import pytest
import torch
from torch import Tensor

from editkit.functional import (
    DependentKeysError,
    LowRankDelta,
    emmet_update,
    factor_second_moment,
    memit_update,
    preservation_memorization_update,
    ridge_path,
    rome_update,
    solve,
)
from editkit.utils.errors import InputError

D_IN, D_OUT, FACTS = 24, 10, 7


def problem(facts: int = FACTS, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(facts)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    samples = draw(D_IN, 200) * torch.linspace(0.2, 3, D_IN, dtype=torch.float64)[:, None]
    return draw(D_IN, facts).to(dtype), draw(D_OUT, facts).to(dtype), (samples @ samples.T / 200).to(dtype)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


def inverse_route(keys: Tensor, residuals: Tensor, moment: Tensor, rho: float) -> Tensor:
    """The formula as printed, with inverses: what the solver must equal and must not do."""
    inverse = torch.linalg.inv(moment)
    gram = keys.T @ inverse @ keys + rho * torch.eye(keys.shape[1], dtype=keys.dtype)
    return residuals @ torch.linalg.inv(gram) @ keys.T @ inverse


@pytest.mark.parametrize("rho", [0.0, 0.3, 40.0])
def test_equals_the_formula_with_inverses(rho: float) -> None:
    keys, residuals, moment = problem()
    assert close(
        preservation_memorization_update(keys, residuals, moment, rho).dense(),
        inverse_route(keys, residuals, moment, rho),
    )


def test_emmet_without_ridge_meets_the_constraint() -> None:
    keys, residuals, moment = problem()
    weight = torch.randn(D_OUT, D_IN, dtype=torch.float64)
    wanted = weight @ keys + residuals
    edited = weight + emmet_update(keys, residuals, moment, ridge=0.0).dense()
    assert close(edited @ keys, wanted, 1e-12)


def test_emmet_is_the_constrained_minimum() -> None:
    keys, residuals, moment = problem()
    delta = emmet_update(keys, residuals, moment).dense()
    # any other exact solution differs by something that vanishes on the keys, and preserves less
    free = torch.randn(D_OUT, D_IN, dtype=torch.float64)
    free -= free @ keys @ torch.linalg.pinv(keys)
    cost = lambda d: torch.trace(d @ moment @ d.T)  # noqa: E731
    assert cost(delta) < cost(delta + 0.1 * free)
    assert close((delta + 0.1 * free) @ keys, residuals)


def test_memit_is_the_least_squares_minimum() -> None:
    keys, residuals, moment = problem()
    delta = memit_update(keys, residuals, moment, preservation_weight=3.0).dense().requires_grad_()
    loss = 3.0 * torch.trace(delta @ moment @ delta.T) + (delta @ keys - residuals).square().sum()
    loss.backward()
    assert delta.grad is not None
    assert delta.grad.norm() < 1e-9 * residuals.norm()


def test_memit_tends_to_emmet() -> None:
    keys, residuals, moment = problem()
    exact = emmet_update(keys, residuals, moment).dense()
    gaps = [float((memit_update(keys, residuals, moment, w).dense() - exact).norm()) for w in (1.0, 1e-2, 1e-4, 1e-6)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-5 * exact.norm()
    assert close(memit_update(keys, residuals, moment, 0.0).dense(), exact)


@pytest.mark.parametrize(("alpha", "weight"), [(0.1, 100.0), (10.0, 0.5), (2.0, 1.0)])
def test_emmet_with_ridge_is_memit(alpha: float, weight: float) -> None:
    keys, residuals, moment = problem()
    emmet = emmet_update(keys, residuals, moment, ridge=alpha, preservation_weight=weight).dense()
    assert close(emmet, memit_update(keys, residuals, moment, preservation_weight=alpha * weight).dense())
    scaled = inverse_route(keys, residuals, weight * moment, alpha)  # as published: w on C, α on D
    assert close(emmet, scaled)


def test_rome_is_emmet_of_one_fact() -> None:
    keys, residuals, moment = problem(1)
    rome = rome_update(keys[:, 0], residuals[:, 0], moment)
    assert rome.rank == 1
    assert close(rome.dense(), emmet_update(keys, residuals, moment).dense())
    direction = torch.linalg.solve(moment, keys[:, 0])  # Meng et al. 2022, eq. 2
    assert close(rome.dense(), torch.outer(residuals[:, 0], direction) / (direction @ keys[:, 0]))


@pytest.mark.parametrize("rho", [0.0, 2.0])
@pytest.mark.parametrize("facts", [FACTS, 2 * D_IN])
def test_permuting_facts_changes_nothing(rho: float, facts: int) -> None:
    if rho == 0 and facts > D_IN:
        pytest.skip("no exact solution")
    keys, residuals, moment = problem(facts)
    order = torch.randperm(facts)
    assert close(
        preservation_memorization_update(keys[:, order], residuals[:, order], moment, rho).dense(),
        preservation_memorization_update(keys, residuals, moment, rho).dense(),
    )


def test_dual_and_primal_agree() -> None:
    # E = d_in is solved in the dual, E = d_in + 1 in the primal; a fact of zero key and residual adds nothing
    keys, residuals, moment = problem(D_IN)
    dual = memit_update(keys, residuals, moment, 0.7)
    nothing = torch.zeros(D_IN, 1, dtype=torch.float64), torch.zeros(D_OUT, 1, dtype=torch.float64)
    primal = memit_update(torch.cat([keys, nothing[0]], 1), torch.cat([residuals, nothing[1]], 1), moment, 0.7)
    assert dual.right is not None
    assert primal.right is None
    assert close(primal.dense(), dual.dense())


def test_many_facts_take_the_primal_form() -> None:
    keys, residuals, moment = problem(5 * D_IN)
    delta = memit_update(keys, residuals, moment, 5.0)
    direct = residuals @ keys.T @ torch.linalg.inv(5.0 * moment + keys @ keys.T)
    assert close(delta.dense(), direct)
    assert delta.shape == (D_OUT, D_IN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_float64_inside_whatever_comes_in(dtype: torch.dtype) -> None:
    keys, residuals, moment = problem(3, dtype)
    delta = emmet_update(keys, residuals, moment.float())
    assert delta.dense().dtype == torch.float64
    assert close(delta.dense() @ keys.double(), residuals.double(), 1e-12)
    assert delta.dense(torch.float32).dtype == torch.float32


def test_norm_without_forming_the_matrix() -> None:
    keys, residuals, moment = problem()
    delta = emmet_update(keys, residuals, moment)
    assert delta.norm() == pytest.approx(float(delta.dense().norm()))
    assert LowRankDelta(delta.dense(), None).norm() == pytest.approx(delta.norm())


def test_duplicate_keys_name_the_facts() -> None:
    keys, residuals, moment = problem()
    keys[:, 5] = keys[:, 2]
    with pytest.raises(DependentKeysError, match=r"fact 2 \(c\), fact 5 \(f\).*ridge") as caught:
        emmet_update(keys, residuals, moment, names=list("abcdefg"))
    assert caught.value.facts == (2, 5)
    assert emmet_update(keys, residuals, moment, ridge=0.1).dense().isfinite().all()


def test_float32_duplicates_are_found_at_float32_rounding() -> None:
    keys, residuals, moment = problem(dtype=torch.float32)
    keys[:, 1] = keys[:, 0] * (1 + 1e-6)
    with pytest.raises(DependentKeysError) as caught:
        emmet_update(keys, residuals, moment)
    assert caught.value.facts == (0, 1)


def test_dependent_but_not_equal_keys_are_found() -> None:
    keys, residuals, moment = problem()
    keys[:, 6] = keys[:, 0] + 2 * keys[:, 3]
    with pytest.raises(DependentKeysError) as caught:
        emmet_update(keys, residuals, moment)
    assert 6 in caught.value.facts


def test_more_facts_than_dimensions_need_a_ridge() -> None:
    with pytest.raises(InputError, match=r"25 facts exceed d_in = 24.*ridge > 0"):
        emmet_update(*problem(D_IN + 1))


def test_non_finite_columns_are_named() -> None:
    keys, residuals, moment = problem()
    keys[3, 4] = float("nan")
    with pytest.raises(InputError, match=r"keys: .*fact 4$"):
        memit_update(keys, residuals, moment)
    keys, residuals, moment = problem()
    residuals[0, 1] = float("inf")
    with pytest.raises(InputError, match=r"residuals: .*fact 1"):
        memit_update(keys, residuals, moment)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k, r, c: (k[:, :3], r, c), r"one column per fact"),
        (lambda k, r, c: (k, r, c[:5, :5]), r"second_moment: expected shape \(24, 24\)"),
        (lambda k, r, c: (k[:, :0], r[:, :0], c), r"E > 0"),
        (lambda k, r, c: (k, r, c + torch.triu(torch.ones_like(c), 1)), "symmetric"),
        (lambda k, r, c: (k, r, -c), "positive definite"),
        (lambda k, r, c: (k, r, c * float("nan")), "second_moment.*finite"),
    ],
)
def test_shapes_and_moments_that_do_not_fit(change: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        memit_update(*change(*problem()))  # type: ignore[operator]


def test_negative_weights_are_refused() -> None:
    with pytest.raises(InputError, match="rho = -1"):
        memit_update(*problem(), preservation_weight=-1.0)
    with pytest.raises(InputError, match="preservation_weight: expected a number > 0"):
        emmet_update(*problem(), preservation_weight=0.0)
    with pytest.raises(InputError, match="one fact at a time"):
        rome_update(*problem())


def test_singular_moment_gets_a_stated_jitter() -> None:
    keys, residuals, _ = problem()
    thin = torch.randn(D_IN, 4, dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"singular.*mean diagonal"):
        factored = factor_second_moment(thin @ thin.T)
    assert factored.jitter > 0
    assert memit_update(keys, residuals, factored, 1.0).dense().isfinite().all()


def exactly(keys: Tensor, residuals: Tensor, moment: Tensor, rho: float) -> Tensor:
    """R Kᵀ (ρC + KKᵀ)⁻¹ with 80 digits."""
    with mpmath.workdps(80):
        k, r, c = (mpmath.matrix(t.tolist()) for t in (keys, residuals, moment))
        solved = (rho * c + k * k.T) ** -1 * (k * r.T)
        return torch.tensor([[float(x) for x in row] for row in solved.T.tolist()], dtype=torch.float64)


@pytest.mark.parametrize(("facts", "tolerance"), [(8, 1e-4), (40, 1e-8)])
def test_an_ill_conditioned_moment(facts: int, tolerance: float) -> None:
    size, rho = 16, 1e-3
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    basis = torch.linalg.qr(draw(size, size))[0] * torch.logspace(-6, 0, size, dtype=torch.float64)
    moment = basis @ basis.T  # condition 1e12
    moment = (moment + moment.T) / 2
    keys, residuals = basis @ draw(size, facts), draw(3, facts)  # keys as the moment has them
    expected = exactly(keys, residuals, moment, rho)
    assert close(preservation_memorization_update(keys, residuals, moment, rho).dense(), expected, tolerance)
    assert close(ridge_path(keys, residuals, moment).delta(rho).dense(), expected, tolerance)
    # without whitening, four digits are lost
    unwhitened = torch.linalg.solve(rho * moment + keys @ keys.T, keys @ residuals.T).T
    assert not close(unwhitened, expected, 100 * tolerance)


def test_many_facts_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, residuals, moment = problem(5 * D_IN)
    whole = memit_update(keys, residuals, moment, 5.0).dense()
    monkeypatch.setattr(solve, "CHUNK", 7)
    monkeypatch.setattr(solve, "BLOCK", 5)
    assert close(memit_update(keys, residuals, moment, 5.0).dense(), whole, 1e-12)
    assert close(
        memit_update(keys[:, :9], residuals[:, :9], moment, 5.0).dense(),
        inverse_route(keys[:, :9], residuals[:, :9], moment, 5.0),
    )
    assert torch.equal(factor_second_moment(moment).factor.triu(1), torch.zeros(D_IN, D_IN, dtype=torch.float64))


def test_functional_imports_torch_alone() -> None:
    heavy = "{'lightning', 'transformers', 'torchmetrics'}"
    code = f"import sys, editkit.functional; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
