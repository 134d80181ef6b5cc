"""Sealed files: equal content gives equal bytes, and no bit can change unseen."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from editkit.utils.sealed import BrokenSeal, is_sealed, read_about, read_sealed, seal, write_sealed

TENSORS = {
    "b": torch.arange(12.0).view(3, 4).T,
    "a": torch.randn(5, dtype=torch.bfloat16),
    "none": torch.zeros(0, 3),
    "one": torch.tensor(7),
    "flags": torch.tensor([True, False]),
}
ABOUT = {"text": "Zürich \ud800 日本", "number": 0.1, "list": (1, None, True), "deep": {"z": 1, "a": -0.0}}


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.safetensors"
    write_sealed(file, TENSORS, ABOUT)
    tensors, about = read_sealed(file)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert all(tensors[name].dtype == TENSORS[name].dtype for name in TENSORS)
    assert about == read_about(file) == {**ABOUT, "list": [1, None, True]}
    assert is_sealed(file)


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for name, tensors in (("one", TENSORS), ("two", dict(reversed(TENSORS.items())))):
        write_sealed(tmp_path / name, tensors, ABOUT)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert seal({"a": 1, "b": [2]}) == seal({"b": (2,), "a": 1}) != seal({"a": 1, "b": [3]})


def test_what_was_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_sealed(file, {"a": torch.ones(9000)}, ABOUT)
    tensors, _ = read_sealed(file)
    with file.open("r+b") as stream:
        stream.seek(-4000, 2)
        stream.write(bytes(4000))
    assert torch.equal(tensors["a"], torch.ones(9000))


def test_no_flipped_bit_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_sealed(file, TENSORS, ABOUT)
    written = file.read_bytes()
    before = read_sealed(file)
    drawn = random.Random(0)
    unseen = 0
    for bit in sorted(drawn.sample(range(8 * len(written)), 1500)):
        harmed = bytearray(written)
        harmed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(harmed)
        try:
            tensors, about = read_sealed(file)
        except BrokenSeal:
            continue
        unseen += 1  # padding, or a space for another
        assert about == before[1]
        assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert unseen < 100


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 100, b"{}", b"\x02\0\0\0\0\0\0\0{}"])
def test_other_files_are_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    for read in (read_sealed, read_about):
        with pytest.raises(BrokenSeal):
            read(tmp_path / "file")
    with pytest.raises(OSError):
        read_sealed(tmp_path / "nowhere")
