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
from safetensors.torch import load_file

from editkit.cli.main import main
from editkit.models.fingerprint import tensor_hash

ROOT = Path(__file__).resolve().parents[2]
SOON = 30.0  # seconds on a machine that is busy with other things; a second where it is not
#: how often each command is stopped at random moments, in the slow tier
TIMES = float(os.environ.get("EDITKIT_RANDOM_STOPS", "1"))

FACTS = 5  # batches of three and two
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
    assert main(arguments(folder / "moments", folder / "run", facts=FACTS)) == 0
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
    "search": (("editkit.editors.closed_form.search", "MicroBatch.losses", 14), signal.SIGINT, "goes on"),
    "solve": (("editkit.editors.closed_form.layers", "LayerSolver.solve", 2), signal.SIGINT, "goes on"),
    "ledger": (("editkit.edits.files", "save_file", 2), signal.SIGTERM, "goes on"),
    "evaluation after": (("editkit.callbacks.evaluation", "Evaluator.measure", 3), signal.SIGINT, "goes on"),
    "generation": (("editkit.callbacks.report", "continue_greedily", 2), signal.SIGUSR1, "goes on"),
    "report": (("editkit.callbacks.report", "atomic_write", 1), signal.SIGTERM, "goes on"),
}
QUICK = ("evaluation before", "search", "ledger")


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
    command = arguments(whole / "moments", run, facts=FACTS)
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    monkeypatch.chdir(tmp_path)
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


COVARIANCE = ["covariance", "--layers=[0,1]", "--second_moment.num_tokens=9000", "--second_moment.max_tokens=700"]


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tensors(folder: Path) -> dict[str, str]:
    """Hashes of all tensors in a folder; the headers of the files are written in no fixed order."""
    return {
        f"{file.name} {name}": tensor_hash(tensor)
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def test_covariance_keeps_its_sums_and_goes_on_to_the_same_bits(
    tmp_path: Path,
    signalled: Callable[[Point, int], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main([*COVARIANCE, f"--second_moment.path={tmp_path / 'whole'}"]) == 0
    command = [*COVARIANCE, f"--second_moment.path={tmp_path / 'm'}"]
    capfd.readouterr()
    # in the text, of which the first 4,096 rows are added up together: 4 batches, and one at work, are kept
    signalled(("editkit.covariance.accumulate", "SecondMoments._forward", 5), signal.SIGTERM)
    assert main(command) == 128 + signal.SIGTERM
    assert told(capfd.readouterr().err) == "editkit: stopped by SIGTERM; the same command goes on"
    monkeypatch.undo()
    (partial,) = (tmp_path / "m").glob(".partial*")
    assert "rows.0" in load_file(partial)
    # with all of the text seen, and one of two blocks written
    signalled(("editkit.covariance.folder", "spectrum", 2), signal.SIGINT)
    assert main(command) == 128 + signal.SIGINT
    out, err = capfd.readouterr()
    assert "going on after" in out
    assert told(err) == "editkit: stopped by SIGINT; the same command goes on"
    assert (tmp_path / "m" / "layer-0.json").exists()
    assert not (tmp_path / "m" / "layer-1.safetensors").exists()
    monkeypatch.undo()
    monkeypatch.setattr("editkit.covariance.accumulate.SecondMoments._forward", None)  # nothing is run again
    assert main(command) == 0
    assert tensors(tmp_path / "m") == tensors(tmp_path / "whole")
    assert not list((tmp_path / "m").glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_export_writes_nothing_or_all(
    number: int,
    whole: Path,
    tmp_path: Path,
    signalled: Callable[[Point, int], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command = ["export", f"--edits={whole / 'run' / 'edits'}"]
    assert main([*command, f"--output={tmp_path / 'whole'}"]) == 0
    capfd.readouterr()
    signalled(("transformers", "PreTrainedTokenizerBase.save_pretrained", 1), number)
    assert main([*command, f"--output={tmp_path / 'out'}"]) == 128 + number
    line = f"editkit: stopped by {signal.Signals(number).name}; nothing was written"
    assert told(capfd.readouterr().err) == line
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    monkeypatch.undo()
    assert main([*command, f"--output={tmp_path / 'out'}"]) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_validate_begins_again_in_its_folder(
    whole: Path, tmp_path: Path, signalled: Callable[[Point, int], None], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "a run"
    edits = f"--edits={whole / 'run' / 'edits'}"
    command = ["validate", "--data.num_facts=3", edits, "--trainer.enable_progress_bar=false", f"--run_dir={run}"]
    signalled(("editkit.callbacks.evaluation", "Evaluator.measure", 1), signal.SIGTERM)
    assert main(command) == 128 + signal.SIGTERM
    line = f"editkit: stopped by SIGTERM; the same command with --run_dir='{run}' begins again"
    assert told(capfd.readouterr().err) == line
    monkeypatch.undo()
    assert main(command) == 0
    assert (run / "metrics.json").exists()
    assert main(command) == 2  # it is done now
