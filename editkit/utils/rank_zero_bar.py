"""What progress callbacks of our own have in common."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from typing_extensions import override


class RankZeroBar(ProgressBar):
    """A progress callback that is shown by rank 0 alone, and closed whatever ends the run.

    Attributes:
        shown: whether this process shows anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown = True

    @override
    def disable(self) -> None:
        self.shown = False  # Lightning calls this on all ranks but 0

    @override
    def enable(self) -> None:
        self.shown = True

    def close(self) -> None:
        """Stop showing; called again after an exception, and harmless then."""

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.close()
