"""Progress in tokens or documents, with the time left."""

from __future__ import annotations

from typing import Any

import lightning as L
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typing_extensions import override

from editkit.data.windows import TextDataModule
from editkit.utils.console import print_line
from editkit.utils.progress import progress_bar
from editkit.utils.rank_zero_bar import RankZeroBar
from editkit.utils.words import counted


class TokenProgress(RankZeroBar):
    """Shows how much of the text ``SecondMoments`` has seen: a bar on a terminal, else lines on standard error."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None

    @override
    def on_predict_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not self.shown or not isinstance(data, TextDataModule):
            return
        self._unit = "documents" if data.num_tokens is None else "tokens"
        self._bar = progress_bar(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), transient=False,
        )  # fmt: skip
        blocks = ", ".join(map(str, pl_module.layers))
        self._task = self._bar.add_task(
            f"{pl_module.of.title} of block {blocks}", total=data.num_tokens or data.num_documents, unit=self._unit
        )
        self._bar.start()
        if pl_module.resumed:
            resumed = f"going on after {counted(pl_module.resumed, 'token')} of a run that was cut short"
            print_line(self._bar.console, resumed)
            self._bar.update(self._task, completed=getattr(pl_module, self._unit))

    @override
    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=getattr(pl_module, self._unit))

    @override
    def on_predict_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.close()

    @override
    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
