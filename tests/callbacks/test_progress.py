"""What a log shows of a run: batches, facts, losses and rows as they are done, until the run ends, however it ends."""

from __future__ import annotations

import io
import re
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

import editkit
import editkit.utils.progress
from editkit.atlas.world import load_world
from editkit.callbacks.progress import EditLog, EditProgress, edit_progress
from editkit.cli.main import main
from editkit.data.facts import Fact
from editkit.data.module import FactsDataModule

ROOT = Path(__file__).resolve().parents[2]


def beats() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "editkit heartbeat"]


def lines(err: str) -> list[str]:
    """What was told, without the time."""
    return [line.partition("] ")[2] for line in err.splitlines() if re.match(r"\[\d+:\d\d:\d\d\] ", line)]


def test_it_depends_on_where_standard_output_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("TTY_COMPATIBLE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert type(edit_progress()) is EditProgress
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert type(edit_progress()) is EditLog


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def trainer(data: FactsDataModule, batch: int, processes: int = 1) -> Any:
    return SimpleNamespace(
        is_global_zero=True, datamodule=data, current_epoch=batch, max_epochs=2, world_size=processes,
        num_val_batches=[3, 2],
    )  # fmt: skip


def test_facts_rows_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    data = FactsDataModule.of([Fact(f"Lyon {i}", "{} lies in", "Peru") for i in range(10)], batch_size=6)
    data.make_plan()
    module: Any = L.LightningModule()
    clock = Clock()
    log = EditLog(every=60.0, clock=clock)
    log.setup(trainer(data, 0), module, "fit")
    log.on_train_start(trainer(data, 0), module)
    log.on_train_epoch_start(trainer(data, 0), module)
    for done in range(1, 7):
        clock.now += 40.0
        log.show(done, 1.5 / done, 0.1 * done)
    log.on_validation_start(trainer(data, 0), module)
    clock.now += 60.0
    log.on_validation_batch_end(trainer(data, 0), module, None, ["row"] * 1500, 0)
    log.on_train_epoch_start(trainer(data, 1), module)
    clock.now += 60.0
    log.show(2, 0.25, 0.9)
    log.teardown(trainer(data, 1), module, "fit")
    log.show(3, 0.25, 0.9)  # after the end, nothing
    assert capsys.readouterr().err.splitlines() == [
        "[0:01:20] batch 1/2: 2 of 10 facts, loss 0.750, p(new) 0.200, 0:05:20 left",
        "[0:02:40] batch 1/2: 4 of 10 facts, loss 0.375, p(new) 0.400, 0:04:00 left",
        "[0:04:00] batch 1/2: 6 of 10 facts, loss 0.250, p(new) 0.600, 0:02:40 left",
        "[0:05:00] batch 1/2: 1,500 rows measured, step 1 of 5",
        "[0:06:00] batch 2/2: 8 of 10 facts, loss 0.250, p(new) 0.900, 0:01:30 left",
    ]
    assert not beats()


def test_one_process_stands_for_all_and_the_others_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    data = FactsDataModule.of([Fact(f"Lyon {i}", "{} lies in", "Peru") for i in range(5)], batch_size=5)
    module: Any = L.LightningModule()
    module.shards_facts = True
    for rank in (0, 1):
        log = EditLog(every=0.0, clock=Clock())
        there = trainer(data, 0, processes=2)
        there.is_global_zero = rank == 0
        log.setup(there, module, "fit")
        log.on_train_start(there, module)
        log.on_train_epoch_start(there, module)
        log.show(2, 0.5, 0.5)
        log.show(3, 0.5, 0.5)  # of six that two processes would have there are five
        log.teardown(there, module, "fit")
        told = capsys.readouterr().err
        assert ("4 of 5 facts" in told) == ("5 of 5 facts" in told) == (rank == 0)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_it_ends_with_the_run_whatever_ends_that(error: type[BaseException], tmp_path: Path) -> None:
    class Fails(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert beats()
            raise error

    class Data(FactsDataModule):
        def train_dataloader(self) -> Any:
            return Fails().train_dataloader()

        def val_dataloader(self) -> Any:
            return []

    fit = L.Trainer(
        callbacks=[EditLog()], logger=False, enable_checkpointing=False, enable_model_summary=False, accelerator="cpu",
        max_epochs=1, default_root_dir=tmp_path,
    )  # fmt: skip
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((error, SystemExit)):
            fit.fit(Fails(), datamodule=Data())
    finally:
        signal.signal(signal.SIGINT, handler)  # which Trainer leaves ignored after Ctrl-C
    assert not beats()


def arguments(tmp_path: Path) -> list[str]:
    return [
        "--config", str(ROOT / "configs" / "quickstart.yaml"),
        "--config", str(ROOT / "configs" / "evaluation" / "facts-alone.yaml"),
        f"--model.second_moment={{path: {tmp_path / 'moments'}, num_tokens: 4000, max_tokens: 512}}",
        "--data.num_facts=3", "--model.values.num_steps=3", f"--run_dir={tmp_path / 'run'}",
    ]  # fmt: skip


def test_a_log_says_how_far_a_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(editkit.utils.progress, "EVERY", 0.0)
    fit = ["fit", *arguments(tmp_path), "--data.batch_size=2", "--model.ridge=auto", "--weight_update.mode=sequential"]
    assert main(fit) == 0
    told = lines(capsys.readouterr().err)
    for words in (
        r"reading atlas",
        r"evaluation: [1-9]\d* rows measured, step \d+ of \d+",
        r"second moments of block 0: [\d,]+ of 4,000 tokens \(\d+%\)",
        r"second moments: eigenvalues and factor of block 0",
        r"ridge: values: \d of 2 \(\d+%\)",
        r"ridge: scores: \d+ of 14 \(\d+%\)",
        r"batch 1/2: 2 of 3 facts, loss \d+\.\d+, p\(new\) \d\.\d+, \d+:\d\d:\d\d left",
        r"batch 2/2: 3 of 3 facts, loss",
        r"batch 2/2: [1-9]\d* rows measured, step \d+ of \d+",
    ):
        assert any(re.match(words, line) for line in told), (words, sorted(set(told)))
    assert not beats()


def test_without_a_progress_bar_a_run_says_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(editkit.utils.progress, "EVERY", 0.0)
    assert main(["validate", *arguments(tmp_path), "--trainer.enable_progress_bar=false"]) == 0
    assert not lines(capsys.readouterr().err)


def test_the_api_says_so_too_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], atlas: tuple[Any, Any]
) -> None:
    monkeypatch.setattr(editkit.utils.progress, "EVERY", 0.0)
    facts = load_world().records("report")[:2]

    def edited(progress: bool) -> str:
        editor = editkit.EMMET(values=editkit.ValueSearch(num_steps=2))
        editor.second_moment.num_tokens = 4000
        editkit.edit(*atlas, facts, editor, tmp_path / "moments", progress=progress).undo()
        return capsys.readouterr().err

    assert any(line.startswith("batch 1/1: 2 of 2 facts, loss") for line in lines(edited(True)))
    assert not lines(edited(False))
    assert not beats()
