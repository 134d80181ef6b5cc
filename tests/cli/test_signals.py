"""SIGTERM and SIGINT stop every command soon, with its exit code and one line, and what goes on ends with equal bits."""

from __future__ import annotations

import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from interrupted import SIGNALLED_AT, arguments, contents

from editkit.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
SOON = 30.0  # seconds on a machine that is busy with other things; a second where it is not
#: how often each command is stopped at random moments, in the slow tier
TIMES = float(os.environ.get("EDITKIT_RANDOM_STOPS", "1"))

Point = tuple[str, str, int]  # module, name in it, and at which call of that


@dataclass(frozen=True)
class Case:
    """A command, what it leaves, and where it is stopped."""

    command: list[str]
    result: Callable[[], object]
    clean: Callable[[], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped, and its second moments."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(arguments(folder / "moments", folder / "run")) == 0
    return folder


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Callable[[Point, int], None]:
    """Let this process get a signal, as from outside, when it is about to do something for the n-th time."""

    def at(point: Point, number: int) -> None:
        owner: Any = importlib.import_module(point[0])
        *path, name = point[1].split(".")
        for part in path:
            owner = getattr(owner, part)
        real, left = getattr(owner, name), [point[2]]

        def deadly(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, deadly)

    return at


def told(text: str) -> str:
    """The one line that editkit said on standard error."""
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if line.startswith("editkit: ")]
    assert len(lines) == 1, text
    return lines[0]


FIT: dict[str, tuple[Point, int, str]] = {
    "reading the model": (("editkit.editors.base", "load_language_model", 1), signal.SIGTERM, "begins again"),
    "evaluation before": (("editkit.callbacks.evaluation", "Evaluator.measure", 1), signal.SIGTERM, "goes on"),
    "search": (("editkit.editors.closed_form.search", "MicroBatch.losses", 18), signal.SIGINT, "goes on"),
    "solve": (("editkit.editors.closed_form.layers", "LayerSolver.solve", 2), signal.SIGINT, "goes on"),
    "ledger": (("editkit.edits.files", "save_file", 2), signal.SIGTERM, "goes on"),
    "evaluation after": (("editkit.callbacks.evaluation", "Evaluator.measure", 3), signal.SIGINT, "goes on"),
    "generation": (("editkit.callbacks.report", "continue_greedily", 2), signal.SIGUSR1, "goes on"),
    "report": (("editkit.callbacks.report", "atomic_write", 1), signal.SIGTERM, "goes on"),
}
QUICK = ("evaluation before", "search", "ledger", "generation")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FIT]
)
def test_fit_stops_wherever_it_is_and_goes_on_to_the_same_bits(
    name: str,
    whole: Path,
    tmp_path: Path,
    signalled: Callable[[Point, int], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    point, number, goes_on = FIT[name]
    run = tmp_path / "run"
    command = arguments(whole / "moments", run)
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context():
        signalled(point, number)
        assert main(command) == 128 + number
    assert before == {n: signal.getsignal(n) for n in before}
    line = told(capfd.readouterr().err)
    assert line.startswith(f"editkit: stopped by {signal.Signals(number).name}; "), line
    assert line.endswith(f"the same command with --run_dir={run} goes on where it stopped") or goes_on != "goes on"
    assert goes_on in line
    assert run.exists() == (goes_on == "goes on")
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.part"))
    assert {path.name for path in tmp_path.iterdir()} <= {"run"}  # no checkpoint of Lightning's
    assert main(command) == 0
    assert contents(run) == contents(whole / "run")
