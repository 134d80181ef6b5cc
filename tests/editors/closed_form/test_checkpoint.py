"""Value vectors kept on disk while their batch is at work: read back bit for bit, for the same facts alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from editkit.data.facts import Fact
from editkit.editors.closed_form.checkpoint import ValueCheckpoint
from editkit.editors.closed_form.search import Group, SearchTotals
from editkit.editors.closed_form.vectors import ValueVectors

GROUPS: tuple[Group, ...] = tuple([Fact(f"S{n}", "{} is", "x", fact_id=str(n))] for n in range(3))
TOTALS = SearchTotals(3, 1.25, 0.1)
CPU = torch.device("cpu")


@pytest.fixture
def vectors() -> ValueVectors:
    return ValueVectors(GROUPS, torch.randn(5, 3), torch.randn(4, 3))


def test_it_is_read_back_bit_for_bit_until_its_batch_is_done(tmp_path: Path, vectors: ValueVectors) -> None:
    kept = ValueCheckpoint(tmp_path)
    assert kept.read(1, 0, GROUPS, CPU) is None
    kept.write(1, 0, vectors, TOTALS)
    kept.write(1, 2, vectors.select([0]), TOTALS)
    kept.write(2, 0, vectors, TOTALS)
    again = ValueCheckpoint(tmp_path)  # of another process of the same run
    found = again.read(1, 0, GROUPS, CPU)
    assert found is not None
    assert torch.equal(found[0].keys, vectors.keys)
    assert torch.equal(found[0].values, vectors.values)
    assert found[0].groups == GROUPS
    assert found[1] == TOTALS
    assert again.read(1, 1, GROUPS, CPU) is None
    again.remove(1)
    assert again.read(1, 0, GROUPS, CPU) is None
    assert again.read(1, 2, GROUPS[:1], CPU) is None
    assert again.read(2, 0, GROUPS, CPU) is not None
    again.clear()
    assert not list(tmp_path.iterdir())
    again.clear()  # nothing is left to clear


@pytest.mark.parametrize(
    "other",
    [
        GROUPS[:2],
        (GROUPS[1], GROUPS[0], GROUPS[2]),
        (*GROUPS[:2], [replace(GROUPS[2][0], target_new="y")]),
        (*GROUPS[:2], [replace(GROUPS[2][0], prompt="{} was")]),
    ],
)
def test_other_facts_values_are_not_taken(tmp_path: Path, vectors: ValueVectors, other: tuple[Group, ...]) -> None:
    kept = ValueCheckpoint(tmp_path)
    kept.write(0, 0, vectors, TOTALS)
    assert kept.read(0, 0, other, CPU) is None
    assert kept.read(0, 0, GROUPS, CPU) is not None


def test_a_broken_file_is_as_none(tmp_path: Path, vectors: ValueVectors) -> None:
    kept = ValueCheckpoint(tmp_path)
    kept.write(0, 0, vectors, TOTALS)
    (file,) = (tmp_path / "found").iterdir()
    content = file.read_bytes()
    for harmed in (content[:-9], b"", b"something else"):
        file.write_bytes(harmed)
        assert kept.read(0, 0, GROUPS, CPU) is None


def test_without_a_folder_nothing_is_kept(vectors: ValueVectors) -> None:
    kept = ValueCheckpoint(None)
    kept.write(0, 0, vectors, TOTALS)
    assert kept.read(0, 0, GROUPS, CPU) is None
    kept.remove(0)
    kept.clear()
