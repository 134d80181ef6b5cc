"""How a run that was interrupted goes on: what its folder has, and where the next one begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from editkit.edits import Edits, load_edits
from editkit.edits.files import INDEX
from editkit.evaluation.files import read_records
from editkit.evaluation.results import Record

EDITS = "edits"  # the ledger's folder in a run folder


@dataclass(frozen=True)
class Resumption:
    """What a run folder has of a run.

    Attributes:
        edits: its ledger; None where there is none.
        records: what was measured of the unedited model and of the ledger's batches.
        start: the batch to begin with: the first that the ledger lacks, or its last one where that was edited and kept,
            but not measured any more.
    """

    edits: Edits | None
    records: list[Record]
    start: int

    @property
    def batches(self) -> int:
        """Batches that the ledger has."""
        return 0 if self.edits is None else len(self.edits.batches)


def read_run(folder: Path | None) -> Resumption:
    """Look at what a run folder has; nothing where it is new, or there is none.

    Raises:
        InputError: a ledger or rows that cannot be read.
    """
    if folder is None:
        return Resumption(None, [], 0)
    edits = load_edits(folder / EDITS) if (folder / EDITS / INDEX).exists() else None
    batches = 0 if edits is None else len(edits.batches)
    records = [r for r in read_records(folder) if r["batch"] is None or r["batch"] < batches]
    measured = any(r["phase"] == "after" and r["batch"] == batches - 1 for r in records)
    return Resumption(edits, records, batches if measured or not batches else batches - 1)
