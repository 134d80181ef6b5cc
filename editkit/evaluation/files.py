"""Every row measured in a run, on disk: part by part as the run goes on, one ``records.jsonl`` at its end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from editkit.evaluation.results import Record
from editkit.utils.errors import InputError
from editkit.utils.files import atomic_write

FINAL = "records.jsonl"
PARTS = "records"


def write_part(folder: Path, phase: str, batch: int | None, rows: Iterable[Record]) -> None:
    """Keep the rows of one evaluation, whole or not at all: of the unedited model, or after a batch of edits."""
    name = phase if batch is None else f"{phase}_{batch:05d}"
    _write(folder / PARTS / f"{name}.jsonl", rows)


def read_records(folder: Path) -> list[Record]:
    """All rows of a run, finished or not, in the order in which they were measured; a part replaces what it repeats."""
    parts = sorted((folder / PARTS).glob("*.jsonl"), key=lambda file: (file.stem != "before", file.stem))
    rows: dict[tuple[str, int | None], list[Record]] = {}
    try:
        for file in [folder / FINAL, *parts]:
            if file.exists():
                found: dict[tuple[str, int | None], list[Record]] = {}
                for line in filter(None, file.read_text(encoding="utf-8").split("\n")):
                    row = json.loads(line)
                    found.setdefault((row["phase"], row["batch"]), []).append(row)
                rows |= found
        return [row for part in rows.values() for row in part]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"run_dir: expected rows in JSON, but {folder} has others ({error}); choose another run_dir"
        ) from error


def write_records(folder: Path, rows: Iterable[Record]) -> None:
    """Write the rows of a whole run, in place of its parts."""
    _write(folder / FINAL, rows)
    shutil.rmtree(folder / PARTS, ignore_errors=True)


def _write(file: Path, rows: Iterable[Record]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    atomic_write(file, lambda part: part.write_text(text, encoding="utf-8"), "run_dir")
