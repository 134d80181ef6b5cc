"""Dependent keys: dropping what is named makes the exact solve possible, and nothing more than needed is named."""

import pytest
import torch
from torch import Tensor

from editkit.functional import DependentKeysError, emmet_update, key_dependence
from editkit.utils.errors import InputError

D_IN, D_OUT = 24, 5


def draw(facts: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(D_IN, 200, generator=generator, dtype=torch.float64)
    samples *= torch.linspace(0.1, 3, D_IN, dtype=torch.float64)[:, None]
    keys = torch.randn(D_IN, facts, generator=generator, dtype=torch.float64)
    return keys.to(dtype), samples @ samples.T / 200


def rest(keys: Tensor, facts: tuple[int, ...]) -> Tensor:
    return keys[:, [i for i in range(keys.shape[1]) if i not in facts]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(3))
def test_dropping_the_facts_named_is_needed_and_enough(dtype: torch.dtype, seed: int) -> None:
    keys, moment = draw(18, dtype, seed)
    keys[:, 5] = keys[:, 2]
    keys[:, 9] = keys[:, 2]
    keys[:, 11] = (4 * keys[:, 0].double() - keys[:, 10].double()).to(dtype)
    keys[:, 17] = keys[:, 16] * 2
    found = key_dependence(keys, moment)
    assert found.facts == (5, 9, 11, 17)
    assert found.involved == ((0, 10, 11), (2, 5, 9), (16, 17))
    assert found.condition_number == float("inf")
    kept = rest(keys, found.facts)
    residuals = torch.randn(D_OUT, kept.shape[1])
    delta = emmet_update(kept, residuals, moment).dense()
    assert (delta @ kept.double() - residuals).norm() < 1e-6 * residuals.norm()
    for fact in found.facts:  # none of them may stay
        with pytest.raises(DependentKeysError):
            emmet_update(torch.cat([kept, keys[:, fact : fact + 1]], 1), torch.randn(D_OUT, kept.shape[1] + 1), moment)


@pytest.mark.parametrize("facts", [12, 40])
@pytest.mark.parametrize("seed", range(3))
def test_keys_measured_in_bfloat16_are_told_apart_more_coarsely(facts: int, seed: int) -> None:
    keys, moment = draw(facts, torch.bfloat16, seed)
    keys[:, 7] = keys[:, 4]
    dropped = key_dependence(keys, moment).facts
    assert 7 in dropped
    assert len(dropped) >= len(key_dependence(keys.float(), moment).facts)
    kept = rest(keys, dropped)
    emmet_update(kept, torch.randn(D_OUT, kept.shape[1]), moment)


def test_the_error_of_the_exact_solve_names_the_same_facts() -> None:
    keys, moment = draw(9)
    keys[:, 6] = keys[:, 0] - keys[:, 3]
    with pytest.raises(DependentKeysError) as caught:
        emmet_update(keys, torch.randn(D_OUT, 9), moment)
    assert caught.value.facts == (0, 3, 6)
    assert key_dependence(keys, moment).involved == ((0, 3, 6),)


def test_an_independent_key_in_the_direction_of_rounding_is_kept() -> None:
    # after e0, e0 the second column's direction of Q is e1 itself: the third key is not to be blamed for it
    keys = torch.eye(4)[:, [0, 0, 1, 2, 1, 3]]
    found = key_dependence(keys, torch.eye(4))
    assert found.facts == (1, 4)
    assert found.involved == ((0, 1), (2, 4))


def test_keys_that_do_not_feel_one_another() -> None:
    found = key_dependence(3 * torch.eye(6)[:, :4], torch.eye(6))
    assert (found.facts, found.involved) == ((), ())
    assert torch.allclose(found.eigenvalues, torch.ones(4, dtype=torch.float64))
    assert found.condition_number == pytest.approx(1)
    assert found.effective_rank == pytest.approx(4)


def test_the_spectrum_is_that_of_d_with_unit_diagonal() -> None:
    keys, moment = draw(7, torch.float64)
    gram = keys.T @ torch.linalg.solve(moment, keys)
    scale = gram.diagonal().rsqrt()
    expected = torch.linalg.eigvalsh(scale[:, None] * gram * scale)
    found = key_dependence(keys * torch.rand(7, dtype=torch.float64) * 1e6, moment)  # whatever the keys' lengths
    assert torch.allclose(found.eigenvalues, expected, rtol=1e-9)
    assert found.condition_number == pytest.approx(float(expected[-1] / expected[0]))


def test_of_more_facts_than_dimensions_those_beyond_the_rank_depend() -> None:
    keys, moment = draw(D_IN + 6)
    found = key_dependence(keys, moment)
    assert found.facts == tuple(range(D_IN, D_IN + 6))
    assert len(found.eigenvalues) == D_IN + 6
    assert (found.eigenvalues[:6] == 0).all()
    keys[:, 3] = keys[:, 1]  # now the first beyond takes the place that it left
    found = key_dependence(keys, moment)
    assert found.facts == (3, *range(D_IN + 1, D_IN + 6))
    emmet_update(rest(keys, found.facts), torch.randn(D_OUT, D_IN), moment)


def test_all_keys_equal_and_a_key_of_zero() -> None:
    keys, moment = draw(1)
    found = key_dependence(keys.expand(-1, 12).contiguous(), moment)
    assert (found.facts, found.involved) == (tuple(range(1, 12)), (tuple(range(12)),))
    assert found.effective_rank == pytest.approx(1, abs=1e-6)
    keys, moment = draw(3)
    keys[:, 1] = 0
    found = key_dependence(keys, moment)
    assert (found.facts, found.involved) == ((1,), ((1,),))
    with pytest.raises(DependentKeysError, match="fact 1"):
        emmet_update(keys, torch.randn(D_OUT, 3), moment)


def test_permuting_facts_drops_as_many() -> None:
    keys, moment = draw(15)
    keys[:, 8:12] = keys[:, :4]
    order = torch.randperm(15)
    found = key_dependence(keys[:, order], moment)
    pairs = {tuple(sorted(order[list(group)].tolist())) for group in found.involved}
    assert pairs == {(0, 8), (1, 9), (2, 10), (3, 11)}
    assert len(found.facts) == 4


def test_what_it_refuses() -> None:
    keys, moment = draw(4)
    with pytest.raises(InputError, match=r"second_moment: expected shape \(24, 24\)"):
        key_dependence(keys, moment[:5, :5])
    with pytest.raises(InputError, match="keys: expected shape"):
        key_dependence(keys[:, :0], moment)
    keys[0, 2] = float("inf")
    with pytest.raises(InputError, match=r"keys: expected finite numbers.*fact 2"):
        key_dependence(keys, moment)
