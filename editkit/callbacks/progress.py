"""The progress of ``fit`` and ``validate``: facts done, their loss and the probability of their new targets, the speed.

``edit_progress`` gives a bar on a terminal, and in a log that is none a line at least once a minute. Both have
``show``, which is told of each gradient step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sized
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import ProgressColumn, Task
from rich.text import Text
from typing_extensions import override

from editkit.data.module import FactsDataModule
from editkit.utils.console import console, interactive
from editkit.utils.progress import Heartbeat
from editkit.utils.rank_zero_bar import RankZeroBar
from editkit.utils.words import counted

FACTS = "Batch"  # how the description of the bar that counts facts begins


def edit_progress() -> EditProgress | EditLog:
    """The progress callback for where standard output goes."""
    return EditProgress() if interactive() else EditLog()


class Speed(ProgressColumn):
    """Facts or batches of evaluation prompts per second, since the bar began."""

    max_refresh = 0.5

    @override
    def render(self, task: Task) -> Text:
        rate = task.completed / task.elapsed if task.elapsed else 0.0
        return Text(f"{rate:.2f} {'facts' if FACTS in task.description else 'it'}/s")


@dataclass(frozen=True)
class BatchPosition:
    """Where the present batch of edits lies among the run's facts.

    Attributes:
        before: facts of the batches before it.
        size: its own facts.
        total: facts of all batches.
        processes: among how many processes its facts are dealt out: for each that is done here, so many are.
    """

    before: int
    size: int
    total: int
    processes: int

    @classmethod
    def of(cls, trainer: L.Trainer, editor: L.LightningModule) -> BatchPosition:
        """The position of a trainer's present epoch."""
        plan = FactsDataModule.of_trainer(trainer).plan
        present = plan.positions(trainer.current_epoch)
        processes = trainer.world_size if getattr(editor, "shards_facts", False) else 1
        return cls(present.start, len(present), len(plan.facts), processes)

    def facts(self, done: int) -> int:
        """Facts of the run that are done when ``done`` of this process's share of the batch are."""
        return self.before + min(done * self.processes, self.size)


class EditProgress(RichProgressBar):
    """Counts facts over all batches of edits, moved on after each gradient step rather than after each training step.

    The rate is that of the whole run, evaluation between batches included, so that the time left is right.
    """

    @override
    def configure_columns(self, trainer: L.Trainer) -> list[Any]:
        """Lightning's columns, the last of which is the speed."""
        return [*super().configure_columns(trainer)[:-1], Speed()]

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.is_disabled or self.progress is None:
            return
        self._position = BatchPosition.of(trainer, pl_module)
        description = f"{FACTS} {trainer.current_epoch + 1}/{trainer.max_epochs}"
        if self.train_progress_bar_id is None:
            self.train_progress_bar_id = self._add_task(self._position.total, description)
        else:
            self.progress.update(self.train_progress_bar_id, description=description)

    def show(self, done: int, loss: float, probability: float) -> None:
        """Move on to ``done`` facts of the present batch; the mean loss (nats) and probability are of those at work.

        Of several processes this one's share stands for all.
        """
        if self.progress is not None and self.train_progress_bar_id is not None:
            self.progress.update(self.train_progress_bar_id, completed=self._position.facts(done))
            assert self._metric_component is not None
            self._metric_component.update({"loss": loss, "p(new)": probability})
            self.refresh()

    @override
    def on_train_batch_end(self, *_: Any) -> None:
        """Nothing: ``show`` was told."""

    @override
    def on_train_epoch_end(self, *_: Any) -> None:
        """Nothing: ``show`` was told."""


class EditLog(RankZeroBar):
    """What ``EditProgress`` shows, as lines of a log: one at least once a minute, from the first hook to the last.

    Args:
        every: seconds between two lines; default 60.
        clock: seconds.
    """

    def __init__(self, every: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every, self._clock = every, clock
        self._beat: Heartbeat | None = None
        self._phase = ""  # the batch of edits at work

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.shown and self._beat is None:
            text = "before the first batch of edits" if stage == "fit" else "evaluation"
            self._phase = ""
            self._beat = Heartbeat(console(stderr=True), text, self._every, self._clock)
            self._beat.start()

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began: tuple[float, int] | None = None

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._position = BatchPosition.of(trainer, pl_module)
        if self._began is None:
            self._began = self._clock(), self._position.before
        self._phase = f"batch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._update(f"{self._phase}: value search")

    def show(self, done: int, loss: float, probability: float) -> None:
        """Take note of ``done`` facts of the present batch; the mean loss (nats) and probability are of those at work.

        Of several processes this one's share stands for all.
        """
        facts, total = self._position.facts(done), self._position.total
        left = ""
        if self._began is not None and facts > self._began[1]:
            began, before = self._began
            seconds = (self._clock() - began) / (facts - before) * (total - facts)
            left = f", {timedelta(seconds=int(seconds))} left"
        self._update(
            f"{self._phase}: {facts:,} of {counted(total, 'fact')}, loss {loss:.3f}, p(new) {probability:.3f}{left}"
        )

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._rows = self._steps = 0
        self._update(self._evaluation(trainer))

    @override
    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._rows += len(batch) if isinstance(batch, Sized) else 0
        self._steps += 1
        self._update(self._evaluation(trainer))

    def _evaluation(self, trainer: L.Trainer) -> str:
        steps = sum(trainer.num_val_batches)
        return (
            f"{self._phase or 'evaluation'}: {counted(self._rows, 'row')} measured, step {self._steps:,} of {steps:,}"
        )

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.close()

    def _update(self, text: str) -> None:
        if self._beat is not None:
            self._beat.update(text)

    @override
    def close(self) -> None:
        if self._beat is not None:
            self._beat.stop()
            self._beat = None
