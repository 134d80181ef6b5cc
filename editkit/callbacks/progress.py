"""The progress bar of ``fit``: facts done, their loss and the probability of their new targets, facts per second."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import ProgressColumn, Task
from rich.text import Text
from typing_extensions import override

from editkit.data.module import FactsDataModule
from editkit.editors.base import Editor

FACTS = "Batch"  # how the description of the bar that counts facts begins


class Speed(ProgressColumn):
    """Facts or batches of evaluation prompts per second, since the bar began."""

    max_refresh = 0.5

    @override
    def render(self, task: Task) -> Text:
        rate = task.completed / task.elapsed if task.elapsed else 0.0
        return Text(f"{rate:.2f} {'facts' if FACTS in task.description else 'it'}/s")


class EditProgress(RichProgressBar):
    """Counts facts over all batches of edits, moved on after each gradient step rather than after each training step.

    The rate is that of the whole run, evaluation between batches included, so that the time left is right.
    """

    @override
    def configure_columns(self, trainer: L.Trainer) -> list[Any]:
        """Lightning's columns, the last of which is the speed."""
        return [*super().configure_columns(trainer)[:-1], Speed()]

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._before, self._present, self._processes = 0, sys.maxsize, 1

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.is_disabled or self.progress is None:
            return
        plan = FactsDataModule.of_trainer(trainer).plan
        sharded = isinstance(pl_module, Editor) and pl_module.shards_facts
        self._processes = trainer.world_size if sharded else 1
        present = plan.positions(trainer.current_epoch)
        self._before, self._present = present.start, len(present)
        description = f"{FACTS} {trainer.current_epoch + 1}/{trainer.max_epochs}"
        if self.train_progress_bar_id is None:
            self.train_progress_bar_id = self._add_task(len(plan.facts), description)
        else:
            self.progress.update(self.train_progress_bar_id, description=description)

    def show(self, done: int, loss: float, probability: float) -> None:
        """Move on to ``done`` facts of the present batch; the mean loss (nats) and probability are of those at work.

        Of several processes this one's share stands for all.
        """
        if self.progress is not None and self.train_progress_bar_id is not None:
            self.progress.update(
                self.train_progress_bar_id, completed=self._before + min(done * self._processes, self._present)
            )
            assert self._metric_component is not None
            self._metric_component.update({"loss": loss, "p(new)": probability})
            self.refresh()

    @override
    def on_train_batch_end(self, *_: Any) -> None:
        """Nothing: ``show`` was told."""

    @override
    def on_train_epoch_end(self, *_: Any) -> None:
        """Nothing: ``show`` was told."""
