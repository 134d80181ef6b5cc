"""Value vectors stay with their facts: chosen, joined, and dealt in from several processes."""

from __future__ import annotations

import pytest
import torch

from editkit.data.facts import Fact
from editkit.editors.closed_form.vectors import ValueVectors


def vectors(numbers: range) -> ValueVectors:
    """Column n has the key and value n."""
    groups = tuple([Fact(f"S{n}", "{} is", "x"), Fact(f"S{n}", "{} was", "y")] for n in numbers)
    columns = torch.tensor([float(n) for n in numbers])
    return ValueVectors(groups, columns.expand(3, -1).clone(), -columns.expand(2, -1).clone())


def numbers(found: ValueVectors) -> list[int]:
    assert found.keys.shape == (3, len(found.groups))
    assert found.values.shape == (2, len(found.groups))
    assert torch.equal(found.keys[0], -found.values[0])
    assert found.names == [f"S{int(n)}" for n in found.keys[0]]
    return [int(n) for n in found.keys[0]]


def test_columns_are_chosen_and_joined_with_their_facts() -> None:
    whole = vectors(range(5))
    assert numbers(whole.select([3, 0])) == [3, 0]
    assert numbers(whole.select([])) == []
    assert numbers(ValueVectors.cat([whole.select([4]), whole.select([]), whole.select([1, 2])])) == [4, 1, 2]
    assert numbers(whole.to("cpu")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_what_processes_found_comes_back_in_the_groups_order(count: int, world: int) -> None:
    """Of n processes the r-th has groups[r::n]; with fewer groups than processes some have none."""
    whole = vectors(range(count))
    parts = [whole.select(range(count)[rank::world]) if rank < count else None for rank in range(world)]
    assert numbers(ValueVectors.deal_in(parts)) == list(range(count))
