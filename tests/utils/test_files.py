"""Whole files and folders or none, what is asked before long work, and what is worked out only once."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from editkit.utils.errors import InputError
from editkit.utils.files import (
    atomic_write,
    atomic_write_folder,
    cache_folder,
    cached_by_files,
    check_can_write,
    check_new_folder,
    digest,
    file_hash,
)

FULL = OSError(errno.ENOSPC, "No space left on device")


def aged(*files: Path) -> None:
    """Let files look as if they were written a while ago."""
    for number, file in enumerate(files):
        os.utime(file, ns=(10**18 + file.stat().st_size, 10**18 + number))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_file_is_seen_old_or_new_never_in_between(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "down" / "file.txt"
    atomic_write(file, lambda part: part.write_text("old"))

    def write(part: Path) -> None:
        assert part.parent == file.parent  # of one disk, so that it can be renamed
        with part.open("w") as stream:
            stream.write("ne")
            stream.flush()
            assert file.read_text() == "old"
            stream.write("w")

    atomic_write(file, write)
    assert file.read_text() == "new"
    assert names(file.parent) == ["file.txt"]


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="no permissions of this kind")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], indirect=True)
def test_who_may_read_is_what_umask_says(tmp_path: Path, umask: int) -> None:
    """safetensors makes its files for their owner alone, and a text would have the mode of the one before it."""

    def write(folder: Path) -> None:
        (folder / "below").mkdir()
        save_file({"a": torch.zeros(2)}, folder / "below" / "a.safetensors")
        (folder / "a.txt").write_text("a")
        (folder / "a.txt").chmod(0o777)

    for _ in range(2):  # new, and in place of one that is there
        atomic_write(tmp_path / "a.safetensors", lambda part: save_file({"a": torch.zeros(2)}, part))
        atomic_write(tmp_path / "a.txt", lambda part: part.write_text("a"))
    atomic_write_folder(tmp_path / "folder", write)
    modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    files = ("a.safetensors", "a.txt", "folder/a.txt", "folder/below/a.safetensors")
    assert modes == {
        **dict.fromkeys(files, 0o666 & ~umask),
        **dict.fromkeys(("folder", "folder/below"), 0o777 & ~umask),
    }


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), ValueError("a mistake")])
def test_what_was_there_is_untouched_when_writing_fails(tmp_path: Path, error: BaseException) -> None:
    file = tmp_path / "file.txt"
    file.write_text("old")

    def write(part: Path) -> None:
        part.write_text("half")
        raise error

    with pytest.raises(InputError if error is FULL else type(error)) as told:
        atomic_write(file, write, "run_dir")
    if error is FULL:
        assert str(told.value).startswith("run_dir: ")
        assert "No space left" in str(told.value)
        assert str(file) in str(told.value)
    assert file.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_file_below_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"metrics.json"):
        atomic_write(tmp_path / "file" / "metrics.json", lambda part: part.write_text("x"), "run_dir")


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "up" / "out"

    def write(part: Path) -> None:
        (part / "a").write_text("1")
        assert not folder.exists()
        (part / "b").write_text("2")

    atomic_write_folder(folder, write, "output")
    assert names(folder) == ["a", "b"]
    assert names(folder.parent) == ["a", "b", "out"]


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), ValueError("a mistake")])
def test_no_folder_is_left_when_writing_fails(tmp_path: Path, error: BaseException) -> None:
    def write(part: Path) -> None:
        (part / "a").write_text("1")
        raise error

    with pytest.raises(InputError if error is FULL else type(error)):
        atomic_write_folder(tmp_path / "out", write, "output")
    assert names(tmp_path) == []


def test_an_empty_folder_is_filled_and_another_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    atomic_write_folder(tmp_path / "empty", lambda part: (part / "a").write_text("1"))
    assert names(tmp_path / "empty") == ["a"]
    with pytest.raises(InputError, match=r"output: .*has files in it"):
        check_new_folder(tmp_path / "empty", "output")
    with pytest.raises(InputError, match=r"output: .*is a file"):
        check_new_folder(tmp_path / "empty" / "a", "output")
    assert check_new_folder(tmp_path / "new", "output") == (tmp_path / "new").resolve()
    assert not (tmp_path / "new").exists()


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_can_write(tmp_path)
    check_can_write(tmp_path / "not" / "there" / "yet")
    assert names(tmp_path) == []


@pytest.mark.parametrize("path", ["file", "file/below", "file/far/below", "nowhere", "nowhere/below", "x" * 300])
def test_a_folder_that_cannot_be_is_told_before_the_work(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    before = names(tmp_path)
    with pytest.raises(InputError, match=r"^second_moment\.path: expected a folder that can be written") as told:
        check_can_write(tmp_path / path, "second_moment.path")
    assert path in str(told.value)
    assert names(tmp_path) == before


def test_a_disk_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuse(*args: object, dir: Path, **options: object) -> None:
        tried.append(dir)
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"path: .*Read-only file system"):
        check_can_write(tmp_path / "new" / "folder")
    assert tried == [tmp_path]


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("EDITKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "editkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "editkit"
    assert names(tmp_path) == []


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_worked_out_once_for_files_that_stay_as_they_are(tmp_path: Path, own_cache: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    aged(one, two)
    calls = []

    def work_out() -> str:
        calls.append(1)
        return one.read_text() + two.read_text()

    def value(kind: str = "sum") -> object:
        return cached_by_files([one, two], kind, work_out)

    assert (value(), value()) == ("12", "12")
    assert len(calls) == 1
    assert value("another kind") == "12"
    assert len(calls) == 2
    two.write_text("22")  # another size
    aged(two)
    assert (value(), value()) == ("122", "122")
    assert len(calls) == 3
    one.write_text("3")  # the same size at another time
    os.utime(one, ns=(5, 5))
    assert value() == "322"
    assert len(calls) == 4
    one.write_text("4")  # just now: it could change again before the file system's clock does
    assert (value(), value()) == ("422", "422")
    assert len(calls) == 6


@pytest.mark.parametrize("content", ["", "{ not json", "[]", '{"stamps": []}'])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, own_cache: Path, content: str) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    aged(file)
    assert cached_by_files([file], "kind", lambda: 1) == 1
    (kept,) = (own_cache / "hashes").iterdir()
    kept.write_text(content)
    assert cached_by_files([file], "kind", lambda: 2) == 2
    assert json.loads(kept.read_text())["value"] == 2


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    monkeypatch.setenv("EDITKIT_CACHE", str(file))
    assert [cached_by_files([file], "kind", lambda n=n: n) for n in (1, 2)] == [1, 2]


def test_hashes_are_of_the_content(tmp_path: Path, own_cache: Path) -> None:
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).write_text(text)
    a, b, c = (file_hash(tmp_path / name) for name in "abc")
    assert a == b != c
    assert a == "0967115f2813a3541eaef77de9d9d577"[:16]  # sha256sum of "same"


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
    assert digest(1, 2) != digest([1, 2])
    assert len(digest(None)) == 16
