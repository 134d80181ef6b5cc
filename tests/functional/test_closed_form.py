"""The one solve: exact, least squares, per fact and per output direction, within what may change; what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from editkit.functional import (
    Curvature,
    DependentKeysError,
    LowRankDelta,
    closed_form_update,
    curvature_path,
    curvature_update,
    emmet_update,
    memit_update,
    preservation,
    restraint,
)
from editkit.utils.errors import InputError

D_IN, D_OUT = 24, 10


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(low: float = -4.0) -> Tensor:
    """C with eigenvalues over several decades."""
    basis, _ = torch.linalg.qr(draw(D_IN, D_IN, seed=7))
    return basis @ torch.diag(torch.logspace(0, low, D_IN, dtype=torch.float64)) @ basis.T


def preservations() -> dict[str, preservation.Preservation]:
    c, past = moment(), draw(D_IN, 3, seed=3) @ draw(D_IN, 3, seed=3).T
    return {
        "second moment": preservation.second_moment(c, 2.0, 0.1, past),
        "null space": preservation.null_space(c, 0.05, 0.5, past),
        "neurons": preservation.neurons(c, torch.arange(0, D_IN, 2), 3.0, past),
        "identity": preservation.identity(D_IN),
        "identity with earlier keys": preservation.identity(D_IN, past),
    }


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", preservations())
@pytest.mark.parametrize("facts", [1, 5, 40])  # dual and primal
@pytest.mark.parametrize("per_fact", [False, True])
def test_it_is_the_formula(name: str, facts: int, per_fact: bool) -> None:
    h, keys, residuals = preservations()[name], draw(D_IN, facts), draw(D_OUT, facts, seed=1)
    ridge = torch.linspace(0.1, 5, facts, dtype=torch.float64) if per_fact else torch.tensor(0.7).double()
    dense = h.dense()
    system = keys.T @ dense @ keys + (torch.diag(ridge) if per_fact else ridge * torch.eye(facts))
    expected = residuals @ torch.linalg.solve(system, keys.T @ dense)
    found = closed_form_update(keys, residuals, h, ridge if per_fact else float(ridge))
    assert isinstance(found, LowRankDelta)
    assert relative(found.dense(), expected) < 1e-9
    order = torch.randperm(facts)
    other = closed_form_update(keys[:, order], residuals[:, order], h, ridge[order] if per_fact else float(ridge))
    assert relative(other.dense(), found.dense()) < 1e-10


@pytest.mark.parametrize("name", preservations())
def test_exact_within_what_may_change(name: str) -> None:
    h, keys, residuals = preservations()[name], draw(D_IN, 6), draw(D_OUT, 6, seed=1)
    delta = closed_form_update(keys, residuals, h).dense()
    assert relative(delta @ keys, residuals) < 1e-9
    if h.basis is not None:
        outside = torch.eye(D_IN).double() - preservation.Preservation(D_IN, None, h.basis).dense()
        assert float((delta @ outside).norm()) < 1e-12 * float(delta.norm())


def test_the_null_space_leaves_preserved_keys_as_they_are() -> None:
    c = moment()
    h = preservation.null_space(c, 0.05)
    values, vectors = torch.linalg.eigh(c)
    preserved = vectors[:, values >= 0.05]
    delta = closed_form_update(draw(D_IN, 5), draw(D_OUT, 5), h).dense()
    assert float((delta @ preserved).norm()) < 1e-12 * float(delta.norm())


def test_emmet_and_memit_are_its_presets_to_the_last_bit() -> None:
    c = moment()
    for facts in (1, 7, 60):
        keys, residuals = draw(D_IN, facts), draw(D_OUT, facts, seed=1)
        h = preservation.second_moment(c)
        assert torch.equal(
            closed_form_update(keys, residuals, h, 3.0).dense(), memit_update(keys, residuals, c, 3.0).dense()
        )
        if facts <= D_IN:
            assert torch.equal(closed_form_update(keys, residuals, c).dense(), emmet_update(keys, residuals, c).dense())


@pytest.mark.parametrize("facts", [4, 50])
def test_equal_ridges_are_one_ridge(facts: int) -> None:
    keys, residuals, h = draw(D_IN, facts), draw(D_OUT, facts, seed=1), preservation.second_moment(moment())
    each = closed_form_update(keys, residuals, h, torch.full((facts,), 0.3))
    assert relative(each.dense(), closed_form_update(keys, residuals, h, float(torch.tensor(0.3))).dense()) < 1e-11


def test_facts_of_ridge_0_among_others_are_met_exactly() -> None:
    keys, residuals, h = draw(D_IN, 30), draw(D_OUT, 30, seed=1), preservation.second_moment(moment(-1))
    ridge = torch.ones(30)
    ridge[[2, 11]] = 0.0
    delta = closed_form_update(keys, residuals, h, ridge).dense()
    missed = (delta @ keys - residuals).norm(dim=0)
    assert float(missed[[2, 11]].max()) < 1e-9
    assert float(missed[[0, 1]].min()) > 1e-3


def test_batches_one_after_the_other_are_one_batch() -> None:
    """With M of the keys before and residuals measured again: recursive least squares."""
    keys, residuals, c = draw(D_IN, 12), draw(D_OUT, 12, seed=1), moment()
    whole = closed_form_update(keys, residuals, preservation.second_moment(c, 2.0), 1.0).dense()
    total, past = torch.zeros(D_OUT, D_IN).double(), torch.zeros(D_IN, D_IN).double()
    for part in range(0, 12, 4):
        k, r = keys[:, part : part + 4], residuals[:, part : part + 4]
        total += closed_form_update(k, r - total @ k, preservation.second_moment(c, 2.0, past=past), 1.0).dense()
        past += k @ k.T
    assert relative(total, whole) < 1e-9


def test_a_restoring_change_is_made_up_for_by_the_facts() -> None:
    keys, residuals, back = draw(D_IN, 5), draw(D_OUT, 5, seed=1), draw(D_OUT, D_IN, seed=2)
    h = preservation.second_moment(moment())
    delta = closed_form_update(keys, residuals, h, restoring=back).dense()
    assert relative(delta @ keys, residuals) < 1e-9
    assert relative(closed_form_update(keys, back @ keys, h, restoring=back).dense(), back) < 1e-12


# ---------------------------------------------------------------- curvature


@pytest.mark.parametrize("facts", [3, 40])
def test_curvature_is_the_dense_kronecker_solve(facts: int) -> None:
    keys, residuals, c = draw(D_IN, facts), draw(D_OUT, facts, seed=1), moment(-2)
    root = draw(D_OUT, D_OUT, seed=4)
    b, weight = root @ root.T / D_OUT, 0.8
    system = torch.kron(torch.eye(D_OUT).double(), keys @ keys.T) + weight * torch.kron(b, c)
    expected = torch.linalg.solve(system, (residuals @ keys.T).flatten()).view(D_OUT, D_IN)
    found = curvature_update(keys, residuals, preservation.second_moment(c), b, weight)
    assert relative(found.dense(), expected) < 1e-10


def test_curvature_of_no_preference_is_memit() -> None:
    keys, residuals, c = draw(D_IN, 6), draw(D_OUT, 6, seed=1), moment()
    h, plain = preservation.second_moment(c), memit_update(keys, residuals, c, 2.5).dense()
    assert relative(curvature_update(keys, residuals, h, torch.eye(D_OUT), 2.5).dense(), plain) < 1e-10
    b = Curvature.of(draw(D_OUT, 30) @ draw(D_OUT, 30).T, power=0.0)
    assert relative(curvature_update(keys, residuals, h, b, 2.5).dense(), plain) < 1e-10
    exact = curvature_update(keys, residuals, h, Curvature.of(draw(D_OUT, 30) @ draw(D_OUT, 30).T), 0.0)
    assert relative(exact.dense(), emmet_update(keys, residuals, c).dense()) < 1e-7
    path = curvature_path(keys, residuals, h, b)
    assert relative(path.delta(2.5).dense(), plain) < 1e-10


# ---------------------------------------------------------------- restraints


def test_restraints_without_restraint_change_nothing() -> None:
    keys, residuals, weight = draw(D_IN, 3), draw(D_OUT, 3, seed=1), draw(D_OUT, D_IN, seed=5)
    delta = closed_form_update(keys, residuals, moment(), 1.0)
    assert torch.equal(restraint.top_share(delta, weight, 1.0).dense(), delta.dense())
    assert relative(restraint.off_principal(delta, weight, strength=0.0).dense(), delta.dense()) < 1e-12
    large = weight * float(1e3 * torch.linalg.matrix_norm(delta.dense(), 2))
    assert relative(restraint.singular_values(delta, large).dense(), delta.dense()) < 1e-12


def test_a_low_rank_change_off_the_principal_directions_stays_low_rank() -> None:
    delta, weight = closed_form_update(draw(D_IN, 3), draw(D_OUT, 3), moment(), 1.0), draw(D_OUT, D_IN, seed=5)
    for side in ("input", "output"):
        found = restraint.off_principal(delta, weight, strength=1.0, side=side)  # type: ignore[arg-type]
        assert isinstance(found, LowRankDelta) and found.rank == 3
        dense = restraint.off_principal(delta.dense(), weight, strength=1.0, side=side)  # type: ignore[arg-type]
        assert relative(found.dense(), dense.dense()) < 1e-12
    u = restraint.principal_directions(weight)
    kept = restraint.off_principal(delta, weight, strength=1.0).dense()
    assert float((kept @ u).norm()) < 1e-12 * float(kept.norm())


# ---------------------------------------------------------------- what is refused

K, R = draw(D_IN, 4), draw(D_OUT, 4)
FEW = preservation.neurons(torch.eye(D_IN), torch.tensor([0, 1, 2]))
BEYOND = torch.zeros(D_IN, 1, dtype=torch.float64).index_fill_(0, torch.tensor([9]), 1.0)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda: closed_form_update(K, R, FEW),
            "4 facts exceed the rank of the preservation, 3 of 24, .* at most 3 facts",
        ),
        (lambda: closed_form_update(BEYOND, R[:, :1], FEW, names=["Oslo"]), r"fact 0 \(Oslo\) .* 100% of the squared"),
        (lambda: closed_form_update(K, R, moment(), torch.ones(3)), r"one for each of 4 facts, but got .* \(3,\)"),
        (lambda: closed_form_update(K, R, moment(), -torch.ones(4)), "ridge: .*negative"),
        (lambda: closed_form_update(K, R, moment(), -1.0), "ridge: expected a finite number >= 0, but got -1"),
        (lambda: closed_form_update(K, R, preservation.identity(9)), "expected 9 dimensions, .* but got 24"),
        (lambda: closed_form_update(K, R[:, :2], FEW, 1.0), "one column per fact"),
        (lambda: closed_form_update(K * torch.nan, R, FEW, 1.0), "keys: expected finite"),
        (lambda: preservation.null_space(moment(), 1e-9), "threshold: .* above none of them; raise"),
        (lambda: preservation.null_space(moment(), 5.0), "threshold: .* above all of them; lower"),
        (lambda: preservation.null_space(moment(), 0.05, 0.0), "damping: .*> 0, but got 0.0"),
        (lambda: preservation.neurons(moment(), torch.zeros(D_IN, dtype=torch.bool)), "choose at least one"),
        (lambda: preservation.neurons(moment(), torch.tensor([1, 1])), "each once"),
        (lambda: preservation.neurons(moment(), torch.tensor([24])), "of the 24 neurons"),
        (lambda: preservation.second_moment(moment(), 0.0), "weight: .*> 0"),
        (lambda: preservation.second_moment(moment(), past=torch.eye(3)), r"past: .*\(24, 24\), but got \(3, 3\)"),
        (lambda: curvature_update(K, R, FEW, torch.eye(3)), "expected 10 output dimensions, .* got 3"),
        (lambda: curvature_update(K, R, FEW, -torch.eye(D_OUT)), "positive semidefinite"),
        (lambda: curvature_update(K[:, [0, 0]], R[:, :2], preservation.identity(D_IN), torch.eye(10), 0.0), "raise it"),
        (lambda: restraint.top_share(R, K), "weight: expected the shape"),
        (lambda: restraint.top_share(R, R, 0.0), "share: .* above 0"),
        (lambda: restraint.singular_values(R, R, 1.0), "base: .* above 1"),
        (lambda: restraint.off_principal(R, R, ratio=1.0), "ratio, strength"),
    ],
)
def test_it_refuses(call: object, line: str) -> None:
    with pytest.raises(InputError, match=line) as error:
        call()  # type: ignore[operator]
    assert "\n" not in str(error.value)


def test_dependent_keys_among_exact_facts_are_named() -> None:
    keys = torch.cat([K, K[:, :1]], 1)
    with pytest.raises(DependentKeysError):
        closed_form_update(keys, draw(D_OUT, 5), preservation.identity(D_IN))
    ridge = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0])
    with pytest.raises(DependentKeysError, match="Rome"):
        closed_form_update(keys, draw(D_OUT, 5), preservation.identity(D_IN), ridge, names=["Rome", "a", "b", "c", "d"])
