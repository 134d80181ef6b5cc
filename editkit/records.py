"""Every row measured in a run, on disk: part by part as the run goes on, one ``records.jsonl`` at its end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from editkit.errors import InputError
from editkit.files import write_whole

FINAL = "records.jsonl"
PARTS = "records"

Row = dict[str, Any]


def write_part(folder: Path, phase: str, batch: int | None, rows: Iterable[Row]) -> None:
    """Keep the rows of one evaluation, whole or not at all: of the unedited model, or after a batch of edits."""
    name = phase if batch is None else f"{phase}_{batch:05d}"
    _write(folder / PARTS / f"{name}.jsonl", rows)


def read_records(folder: Path) -> list[Row]:
    """All rows of a run, finished or not, in the order in which they were measured."""
    parts = sorted((folder / PARTS).glob("*.jsonl"), key=lambda file: (file.stem != "before", file.stem))
    files = [folder / FINAL] if (folder / FINAL).exists() else parts
    try:
        return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise InputError(
            f"run_dir: expected rows in JSON, but {folder} has others ({error}); choose another run_dir"
        ) from error


def join_parts(folder: Path) -> None:
    """Make one file of all parts."""
    _write(folder / FINAL, read_records(folder))
    shutil.rmtree(folder / PARTS, ignore_errors=True)


def _write(file: Path, rows: Iterable[Row]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(file, lambda part: part.write_text(text, encoding="utf-8"), "run_dir")
