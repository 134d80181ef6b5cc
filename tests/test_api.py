"""``editkit.edit``: what is wrong with its arguments is found before anything is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import editkit
from editkit.atlas.world import load_world

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_unusable_place_for_second_moments_is_found_before_the_work(
    place: str, tmp_path: Path, atlas: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **options: object) -> None:
        raise AssertionError("the model was measured")

    monkeypatch.setattr("lightning.Trainer.validate", never)
    (tmp_path / "file").write_text("in the way")
    before = [parameter.clone() for parameter in atlas[0].parameters()]
    with pytest.raises(editkit.InputError, match=r"^second_moment\.path: ") as told:
        editkit.edit(*atlas, load_world().records("report")[:2], second_moment=tmp_path / place)
    assert str(tmp_path / place) in str(told.value)
    assert all(torch.equal(a, b) for a, b in zip(before, atlas[0].parameters(), strict=True))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
