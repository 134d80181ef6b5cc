"""A store of value vectors: what one run found serves others that would find the same, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from editing import Loaded, facts, quiet_edit

from editkit.editors import EMMET, MEMIT, ValueSearch
from editkit.editors.closed_form.searcher import ValueSearcher

LAYER = {"layers": [1]}


def search(folder: Path, **changes: Any) -> ValueSearch:
    return ValueSearch(**{"num_steps": 4, "context_templates": [["{}"]], "store": str(folder), **changes})


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many groups each search was about."""
    seen: list[int] = []
    find = ValueSearcher.find

    def counted(self: ValueSearcher, groups: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(groups))
        return find(self, groups, *args, **kwargs)

    monkeypatch.setattr(ValueSearcher, "find", counted)
    return seen


def deltas(edited: Any) -> list[torch.Tensor]:
    return [delta.dense() for batch in edited.edits.batches for delta in batch.edit.weight_changes().values()]


def test_another_method_finds_nothing_anew(atlas: Loaded, moments: Path, tmp_path: Path, searched: list[int]) -> None:
    first = quiet_edit(atlas, EMMET(values=search(tmp_path), **LAYER), moments)
    made = deltas(first)
    first.undo()
    assert searched == [6]
    quiet_edit(atlas, MEMIT(values=search(tmp_path), preservation_weight=1.0, **LAYER), moments).undo()
    assert searched == [6]
    again = quiet_edit(atlas, EMMET(values=search(tmp_path), **LAYER), moments)
    assert searched == [6]
    assert all(map(torch.equal, deltas(again), made))
    again.undo()
    without = quiet_edit(atlas, EMMET(values=search(tmp_path, store=None), **LAYER), moments)
    assert all(map(torch.equal, deltas(without), made))


def test_what_is_missing_is_found_and_stands_in_its_place(
    atlas: Loaded, moments: Path, tmp_path: Path, searched: list[int]
) -> None:
    given = facts(5)
    quiet_edit(atlas, EMMET(values=search(tmp_path), **LAYER), moments, [given[1], given[3]]).undo()
    some = quiet_edit(atlas, EMMET(values=search(tmp_path), **LAYER), moments, given)
    made = deltas(some)
    some.undo()
    assert searched == [2, 3]
    whole = quiet_edit(atlas, EMMET(values=search(tmp_path, store=None), **LAYER), moments, given)
    for one, other in zip(made, deltas(whole), strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()  # searched beside others: rounding


@pytest.mark.parametrize(
    "changes", [{"num_steps": 5}, {"clamp": 0.5}, {"context_templates": [["{}", "It is true that {}"]]}, {"decay": 0.1}]
)
def test_other_searches_are_kept_apart(
    atlas: Loaded, moments: Path, tmp_path: Path, searched: list[int], changes: dict[str, Any]
) -> None:
    quiet_edit(atlas, EMMET(values=search(tmp_path), **LAYER), moments).undo()
    quiet_edit(atlas, EMMET(values=search(tmp_path, **changes), **LAYER), moments).undo()
    assert searched == [6, 6]


def test_other_weights_blocks_and_optimisers_are_kept_apart(
    atlas: Loaded, moments: Path, tmp_path: Path, searched: list[int]
) -> None:
    quiet_edit(atlas, EMMET(values=search(tmp_path), **LAYER), moments).undo()
    with torch.no_grad():
        atlas[0].transformer.h[2].mlp.c_proj.weight[0, 0] += 1e-3  # above the block, where v* is read off
    quiet_edit(atlas, EMMET(values=search(tmp_path), **LAYER), moments).undo()
    assert searched == [6, 6]
    slower = EMMET(values=search(tmp_path), optimizer=lambda params: torch.optim.Adam(params, lr=0.1), **LAYER)
    quiet_edit(atlas, slower, moments).undo()
    quiet_edit(atlas, EMMET(values=search(tmp_path), layers=[0]), moments).undo()
    assert searched == [6, 6, 6, 6]


def test_values_of_edited_weights_are_neither_read_nor_kept(
    atlas: Loaded, moments: Path, tmp_path: Path, searched: list[int]
) -> None:
    options: dict[str, Any] = {"batch_size": 2, "mode": "sequential"}
    quiet_edit(atlas, EMMET(values=search(tmp_path), **LAYER), moments, **options).undo()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2  # the first batch alone
    quiet_edit(atlas, EMMET(values=search(tmp_path), **LAYER), moments, **options).undo()
    assert searched == [2, 2, 2, 2, 2]
    quiet_edit(atlas, EMMET(values=search(tmp_path, weights="unedited"), **LAYER), moments, **options).undo()
    assert searched[5:] == [2, 2]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 6


def test_a_damaged_value_is_found_again(atlas: Loaded, moments: Path, tmp_path: Path, searched: list[int]) -> None:
    first = quiet_edit(atlas, EMMET(values=search(tmp_path), **LAYER), moments)
    made = deltas(first)
    first.undo()
    file = sorted(tmp_path.rglob("*.safetensors"))[2]
    content = bytearray(file.read_bytes())
    content[-9] ^= 4
    file.write_bytes(content)
    again = quiet_edit(atlas, EMMET(values=search(tmp_path), **LAYER), moments)
    assert searched == [6, 1]
    for one, other in zip(deltas(again), made, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()
