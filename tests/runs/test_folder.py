"""The run folder: new or the same run's, locked while a process is at work, named by the first free number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from editkit.runs.folder import CONFIG, RunFolder, free_folder
from editkit.utils.errors import InputError

SETTINGS: dict[str, Any] = {
    "model": {"class_path": "editkit.EMMET", "init_args": {"ridge": 1.0, "layers": [3]}},
    "data": {"facts": "atlas", "num_facts": 8},
    "weight_update": {"mode": "sequential"},
    "report": {"samples": 3},
    "trainer": {"devices": 1},
}


def text(**changes: Any) -> str:
    return yaml.safe_dump({**SETTINGS, **changes})


def begun(path: Path, config: str | None = None) -> RunFolder:
    folder = RunFolder(path)
    folder.check(config or text(), resumable=True)
    folder.open(config or text())
    return folder


def test_a_new_folder_is_made_only_when_it_is_opened(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "one")
    folder.check(text(), resumable=True)
    assert not (tmp_path / "runs").exists()
    folder.open(text())
    assert yaml.safe_load((folder.path / CONFIG).read_text(encoding="utf-8")) == SETTINGS
    assert not folder.went_on
    folder.close()
    assert [f.name for f in folder.path.iterdir()] == [CONFIG]


def test_the_same_run_goes_on_and_keeps_its_config(tmp_path: Path) -> None:
    begun(tmp_path / "run").close()
    again = text(trainer={"devices": 2})  # how it is run may change
    folder = begun(tmp_path / "run", again)
    assert folder.went_on
    assert (tmp_path / "run" / CONFIG).read_text(encoding="utf-8") == text()
    folder.close()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": {"facts": "atlas", "num_facts": 9}}, ("data.num_facts", "8", "9")),
        ({"data": {"facts": "atlas"}}, ("data.num_facts", "8", "nothing")),
        ({"weight_update": {"mode": "independent"}}, ("weight_update.mode", "sequential", "independent")),
        (
            {"model": {"class_path": "editkit.EMMET", "init_args": {"ridge": 1.0, "layers": [3, 4]}}},
            ("model.init_args.layers", "[3]", "[3, 4]"),
        ),
    ],
)
def test_another_run_is_refused_by_what_differs(tmp_path: Path, changes: dict[str, Any], told: tuple[str, ...]) -> None:
    begun(tmp_path / "run").close()
    (tmp_path / "run" / "records").mkdir()
    with pytest.raises(InputError, match=r"^run_dir: ") as error:
        RunFolder(tmp_path / "run").check(text(**changes), resumable=True)
    assert all(word in str(error.value) for word in told), error.value


def test_what_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"run_dir: .*or holds an editkit run.*thesis.tex"):
        RunFolder(tmp_path).check(text(), resumable=True)
    begun(tmp_path / "run").close()
    RunFolder(tmp_path / "run").check(text(), resumable=False)  # it did not end
    (tmp_path / "run" / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match=r"run_dir: .*new or empty, but .*config\.yaml"):
        RunFolder(tmp_path / "run").check(text(), resumable=False)


def test_a_config_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("{ not: [yaml")
    with pytest.raises(InputError, match=r"run_dir: .*cannot be read"):
        RunFolder(tmp_path).check(text(), resumable=True)


def test_a_lock_left_by_a_process_that_ended_does_not_count(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("")
    begun(tmp_path).close()
    assert not (tmp_path / ".lock").exists()


def test_only_one_process_works_in_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="no file locks on this system")
    first = begun(tmp_path / "run")
    second = RunFolder(tmp_path / "run")
    second.check(text(), resumable=True)
    with pytest.raises(InputError, match="run_dir: another process is at work"):
        second.open(text())
    second.close()  # as whatever tidies up would
    assert (tmp_path / "run" / ".lock").exists()
    with pytest.raises(InputError, match="run_dir: another process is at work"):
        RunFolder(tmp_path / "run").open(text())
    first.close()
    begun(tmp_path / "run").close()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = RunFolder(tmp_path / "file" / "run")
    with pytest.raises(InputError, match=r"run_dir: .*cannot"):
        folder.check(text(), resumable=True)
    with pytest.raises(InputError, match=r"run_dir: .*cannot"):
        folder.open(text())


def test_what_came_to_nothing_is_begun_anew_with_other_settings(tmp_path: Path) -> None:
    begun(tmp_path / "run").close()
    for left in ("edits/found/batch_00000.step_00000.process_0_of_1.safetensors", "edits/edits.json", "logs/a.csv"):
        (tmp_path / "run" / left).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / left).write_text("{}")
    again = text(data={"facts": "atlas", "num_facts": 4})
    folder = RunFolder(tmp_path / "run")
    folder.check(again, resumable=True)
    assert (tmp_path / "run" / "edits").exists()  # nothing is done until all is checked
    folder.open(again)
    assert not folder.went_on
    assert (tmp_path / "run" / CONFIG).read_text(encoding="utf-8") == again
    folder.close()
    assert [f.name for f in (tmp_path / "run").iterdir()] == [CONFIG]


def test_what_a_stopped_run_found_is_kept_for_the_same_settings(tmp_path: Path) -> None:
    begun(tmp_path / "run").close()
    found = tmp_path / "run" / "edits" / "found" / "batch_00000.step_00000.process_0_of_1.safetensors"
    found.parent.mkdir(parents=True)
    found.write_text("values")
    folder = begun(tmp_path / "run")
    assert folder.went_on and found.read_text() == "values"
    folder.close()


@pytest.mark.parametrize("left", ["edits/batch_00000.safetensors", "records/before.jsonl", "metrics.json", "notes.txt"])
def test_what_is_of_use_is_not_begun_anew(tmp_path: Path, left: str) -> None:
    begun(tmp_path / "run").close()
    (tmp_path / "run" / left).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / left).write_text("{}")
    with pytest.raises(InputError, match=r"run_dir: expected the settings of the run"):
        RunFolder(tmp_path / "run").check(text(report={"samples": 5}), resumable=True)


def test_closing_without_opening_does_nothing(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").close()
    assert not (tmp_path / "run").exists()


def test_the_first_free_number_names_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert free_folder("emmet") == Path("runs/emmet-0")
    for name in ("emmet-0", "emmet-1", "emmet-3", "rome-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert free_folder("emmet") == Path("runs/emmet-2")
    assert free_folder("memit") == Path("runs/memit-0")
    assert not (tmp_path / "runs" / "emmet-2").exists()
