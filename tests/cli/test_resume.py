"""A run that is killed and started again ends as one that was not: same weights bit for bit, same rows and metrics."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from interrupted import BATCH, FACTS, SIGNALLED_AT, arguments, contents
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editkit import load_edits
from editkit.cli.main import main
from editkit.data.facts import Fact
from editkit.utils.hashes import tensor_hash

POINTS = {
    "before the first value is kept": ("editkit.editors.closed_form.checkpoint", "write_sealed", 1),
    "within a batch": ("editkit.editors.closed_form.checkpoint", "write_sealed", 4),
    "with a batch solved but not kept": ("editkit.edits.files", "write_sealed", 2),
    "with a batch kept but not measured": ("editkit.evaluation.files", "atomic_write", 4),
    "with all measured but the end": ("editkit.callbacks.report", "atomic_write", 1),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Uninterrupted runs, and the moments of all."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(arguments(folder / "moments", folder / "sequential")) == 0
    assert main(arguments(folder / "moments", folder / "independent", "independent")) == 0
    return {name: folder / name for name in ("moments", "sequential", "independent")}


def deadly(point: tuple[str, str, int], command: list[str]) -> int:
    where = [point[0], point[1], str(point[2]), str(int(signal.SIGKILL))]
    command = [sys.executable, "-c", SIGNALLED_AT, *where, *command]
    return subprocess.run(command, capture_output=True, timeout=200, check=False).returncode


QUICK = ("within a batch", "with a batch kept but not measured")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in POINTS]
)
def test_killed_at_a_point_and_started_again(tmp_path: Path, whole: dict[str, Path], name: str) -> None:
    command = arguments(whole["moments"], tmp_path / "run")
    assert deadly(POINTS[name], command) == -signal.SIGKILL
    assert main(command) == 0
    assert contents(tmp_path / "run") == contents(whole["sequential"])
    assert not (tmp_path / "run" / "edits" / "found").exists()


def test_independent_batches_too(tmp_path: Path, whole: dict[str, Path]) -> None:
    command = arguments(whole["moments"], tmp_path / "run", "independent")
    assert deadly(("editkit.evaluation.files", "atomic_write", 3), command) == -signal.SIGKILL
    assert main(command) == 0
    assert contents(tmp_path / "run") == contents(whole["independent"])


def test_what_is_done_is_not_done_again(
    tmp_path: Path, whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from editkit.editors.closed_form.searcher import ValueSearcher

    searched: list[str] = []
    find = ValueSearcher.find

    def counting(self: ValueSearcher, groups: list[list[Fact]], *args: Any) -> Any:
        searched.extend(group[0].subject for group in groups)
        return find(self, groups, *args)

    monkeypatch.setattr(ValueSearcher, "find", counting)
    command = arguments(whole["moments"], tmp_path / "run")
    # in the second batch: the first fact's values are kept, the second one's not yet
    assert deadly(("editkit.editors.closed_form.checkpoint", "write_sealed", 5), command) == -signal.SIGKILL
    assert main(command) == 0
    assert len(searched) == FACTS - BATCH - 1
    assert f"run folder: {tmp_path / 'run'} has 1 of 4 batches: going on\n" in capsys.readouterr().out
    searched.clear()
    assert main(command) == 0  # a finished run only shows its table again
    assert not searched
    assert contents(tmp_path / "run") == contents(whole["sequential"])


def test_the_ledger_gives_the_weights_of_the_run(
    whole: dict[str, Path], atlas: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    edits = load_edits(whole["sequential"] / "edits")
    model = edits.apply(atlas[0])
    weight = model.transformer.h[0].mlp.c_proj.weight
    assert {"transformer.h.0.mlp.c_proj.weight": tensor_hash(weight)} == edits.batches[-1].hashes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["--model.ridge=2"], ("model.init_args.ridge", "1.0", "2.0")),
        (["--data.num_facts=9"], ("data.num_facts", "10", "9")),
        (["--model.earlier_keys=0.5"], ("model.init_args.earlier_keys", "auto", "0.5")),
    ],
)
def test_another_run_is_not_gone_on_with(
    whole: dict[str, Path], changes: list[str], told: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(whole["sequential"])
    assert main([*arguments(whole["moments"], whole["sequential"]), *changes]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in error for word in ("run_dir", *told)), error
    assert contents(whole["sequential"]) == before


def test_other_facts_under_the_same_name_are_found_out(
    tmp_path: Path, whole: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from editkit.atlas.world import load_world
    from editkit.data.facts import as_facts

    facts = tmp_path / "facts.jsonl"
    world = as_facts(load_world().records("report"))

    def write(count: int) -> None:
        records = [
            {"subject": f.subject, "prompt": f.prompt, "target_new": f.target_new, "id": f.fact_id} for f in world
        ]
        facts.write_text("\n".join(json.dumps(r) for r in records[count : count + 4]), encoding="utf-8")

    write(0)
    command = [*arguments(whole["moments"], tmp_path / "run", facts=4), f"--data.facts={facts}"]
    assert main(command) == 0
    write(2)
    assert main(command) == 2
    assert "facts of batch 0" in capsys.readouterr().err


def test_two_processes_do_not_share_a_run_folder(
    tmp_path: Path, whole: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="no file locks on this system")
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(arguments(whole["moments"], tmp_path / "run")) == 2
    assert "another process is at work" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


def killed_after(seconds: float, command: list[str], run: Path) -> bool:
    """Whether a process was still at work so long after it opened its run folder, and is killed."""
    with subprocess.Popen(
        [sys.executable, "-m", "editkit.cli", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not (run / ".lock").exists():
            time.sleep(0.01)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            return True
    return False


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 21))])
def test_killed_at_a_random_moment(tmp_path: Path, whole: dict[str, Path], seed: int) -> None:
    command = arguments(whole["moments"], tmp_path / "run")
    killed_after(random.Random(seed).uniform(0.0, 4.0), command, tmp_path / "run")
    assert main(command) == 0
    assert contents(tmp_path / "run") == contents(whole["sequential"])
