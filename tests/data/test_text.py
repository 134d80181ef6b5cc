"""Text from files, folders and datasets, and one clear line for what is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from editkit.data.text import TextSource, open_text
from editkit.utils.errors import InputError


def read(text: Path | str, **options: str) -> list[str]:
    return list(open_text(TextSource(text=str(text), **options)).documents())  # type: ignore[arg-type]


def test_plain_text_and_folders(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("third\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first\nline\n \n\nsecond", encoding="utf-8")
    assert read(tmp_path / "a.txt") == ["first\nline", "second"]
    assert read(tmp_path) == ["first\nline", "second", "third"]
    revision = open_text(TextSource(text=str(tmp_path))).revision
    (tmp_path / "b.txt").write_text("changed\n", encoding="utf-8")
    assert open_text(TextSource(text=str(tmp_path))).revision != revision


def test_jsonl_and_its_column(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one", "body": "eins"}\n\n{"text": "two", "body": "zwei"}\n', encoding="utf-8")
    assert read(file) == ["one", "two"]
    assert read(file, column="body") == ["eins", "zwei"]
    with pytest.raises(InputError, match=r"second_moment.column: .*line 1 .*text, body.*'words'"):
        read(file, column="words")


def test_a_saved_dataset(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": ["one", "two"], "n": [1, 2]})
    rows.save_to_disk(str(tmp_path / "plain"))
    DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(str(tmp_path / "splits"))
    assert read(tmp_path / "plain") == ["one", "two"]
    assert read(tmp_path / "splits", split="test") == ["two"]
    one, two = (open_text(TextSource(text=str(tmp_path / "splits"), split=s)).revision for s in ("train", "test"))
    assert one != two
    assert one == open_text(TextSource(text=str(tmp_path / "splits"))).revision
    with pytest.raises(InputError, match=r"second_moment.split: .*train, test.*'dev'"):
        read(tmp_path / "splits", split="dev")
    with pytest.raises(InputError, match=r"second_moment.column: .*text, n.*'body'"):
        read(tmp_path / "plain", column="body")


def test_a_name_that_datasets_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.json").write_text(json.dumps([{"text": "one"}, {"text": "two"}]), encoding="utf-8")
    assert read(tmp_path / "hub") == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("gone.txt", None, ("second_moment.text", "gone.txt", "path")),
        ("bad.txt", b"\xff\xfe\x00x", ("second_moment.text", "UTF-8", "bad.txt")),
        ("bad.jsonl", b"{", ("second_moment.text", "line 1", "JSON")),
        ("number.jsonl", b'{"text": 3}', ("second_moment.column", "line 1", "3")),
        ("list.jsonl", b"[1]", ("second_moment.column", "line 1", "it has none")),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, told: tuple[str, ...]) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)
    for word in told:
        assert word in str(error.value)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"second_moment.text: .*could not be loaded"):
        read(tmp_path)
