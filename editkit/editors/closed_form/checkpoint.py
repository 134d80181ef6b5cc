"""Value vectors found so far in the batch of edits at work, on disk: a run that is killed does not lose them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from editkit.editors.closed_form.search import Group, SearchTotals
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.utils.distributed import rank_and_size
from editkit.utils.files import digest
from editkit.utils.sealed import BrokenSeal, read_sealed, write_sealed


class ValueCheckpoint:
    """One file per training step and process, beside the ledger's batches; removed once their batch is done.

    Args:
        folder: the ledger's folder; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else folder / "found"

    def write(self, batch: int, step: int, vectors: ValueVectors, totals: SearchTotals) -> None:
        """Keep what a step found, and the totals of the batch after it."""
        if self._folder is None:
            return
        tensors = {"keys": vectors.keys, "values": vectors.values}
        about = {"groups": _digest(vectors.groups), "totals": asdict(totals)}
        write_sealed(self._file(self._folder, batch, step), tensors, about, "edits")

    def read(
        self, batch: int, step: int, groups: Sequence[Group], device: torch.device
    ) -> tuple[ValueVectors, SearchTotals] | None:
        """What a step found for these groups, or None where that is not known."""
        if self._folder is None:
            return None
        try:
            tensors, about = read_sealed(self._file(self._folder, batch, step))
        except (OSError, BrokenSeal):
            return None
        if about["groups"] != _digest(groups):
            return None
        vectors = ValueVectors(tuple(groups), tensors["keys"].to(device), tensors["values"].to(device))
        return vectors, SearchTotals(**about["totals"])

    def remove(self, batch: int) -> None:
        """Forget what this process kept of a batch."""
        if self._folder is not None:
            for file in self._folder.glob(f"batch_{batch:05d}.*.{_process()}.safetensors"):
                with contextlib.suppress(OSError):
                    file.unlink()

    def clear(self) -> None:
        """Forget everything, once the run is done."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @staticmethod
    def _file(folder: Path, batch: int, step: int) -> Path:
        return folder / f"batch_{batch:05d}.step_{step:05d}.{_process()}.safetensors"


def _process() -> str:
    rank, world = rank_and_size()
    return f"process_{rank}_of_{world}"


def _digest(groups: Sequence[Group]) -> str:
    return digest([[fact.subject, fact.prompt, fact.target_new] for group in groups for fact in group])
