"""Bad input of every kind: each row ends in one line that names it, with nothing half-written and nothing changed.

The rows are in ``table/``, a file per subject; a new feature adds its own.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import shlex
import string
import warnings
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest
from hostile import Call, Command, Places, contents, fill

from editkit.cli.main import main
from editkit.utils.errors import InputError

TABLE = Path(__file__).parent / "table"


def _module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"hostile_table_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROWS = [(file.stem, row) for file in sorted(TABLE.glob("*.py")) for row in _module(file).ROWS]


def _parameters(kind: type) -> list[object]:
    return [
        pytest.param(row, id=f"{subject}: {row.name}", marks=[pytest.mark.slow] if row.slow else [])
        for subject, row in ROWS
        if isinstance(row, kind)
    ]


def test_the_table_s_names_are_unique() -> None:
    names = [(subject, row.name) for subject, row in ROWS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("row", _parameters(Command))
def test_command(
    row: Command, tmp_path: Path, places: Places, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, row.files, places)
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, value in row.environment.items():
        monkeypatch.setenv(name, value)
    typed = string.Template(row.command).substitute({name: str(path) for name, path in asdict(places).items()})
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code = main(shlex.split(typed))
    out, err = capfd.readouterr()
    told = "\n".join([out, err, *(str(w.message) for w in caught)])
    assert "Traceback" not in told, told
    assert code == row.code, told
    if code == 0:
        assert re.search(row.line, " ".join(told.split())), told
        return
    lines = [line for line in err.splitlines() if line.strip() and "Loading weights:" not in line]  # a bar
    assert len(lines) == 1 and lines[0].startswith("editkit: error: "), told
    assert re.search(row.line, lines[0]), lines[0]
    assert contents(tmp_path) == before, sorted(set(contents(tmp_path)) ^ set(before))


@pytest.mark.parametrize("row", _parameters(Call))
def test_call(row: Call, tmp_path: Path, places: Places, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, row.files, places)
    with caplog.at_level(logging.CRITICAL), pytest.raises(InputError) as error:
        row.call(tmp_path, places)
    assert re.search(row.line, str(error.value)), str(error.value)
