"""What a run folder has of a run: nothing, all, or what was done when it was killed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from editkit import Edits, Fact, InputError, WeightEdit
from editkit.edits import EditBatch
from editkit.edits.files import batch_file, write_batch
from editkit.evaluation.files import write_part, write_records
from editkit.functional import DenseDelta
from editkit.runs.resume import EDITS, read_run

BATCHES = [
    EditBatch([Fact(f"S{n}", "{} is", "x", fact_id=str(n))], WeightEdit(deltas={"w": DenseDelta(torch.ones(2, 2) * n)}))
    for n in range(3)
]


def rows(phase: str, batch: int | None) -> list[dict[str, Any]]:
    return [{"phase": phase, "batch": batch, "kind": "rewrite", "fact": "0", "number": n} for n in range(2)]


def measured(folder: Path, *batches: int | None) -> None:
    for batch in batches:
        phase = "before" if batch is None else "after"
        write_part(folder, phase, batch, rows(phase, batch))


def begun(folder: Path, listed: int = 0, kept: Sequence[int] = ()) -> None:
    """An index that lists some batches, as it was last written, and the files of those that are kept."""
    Edits(BATCHES[:listed], True, "fingerprint", {"editor": "none"}).save_index(folder / EDITS)
    for n in kept:
        write_batch(folder / EDITS, n, BATCHES[n])


def parts(records: Sequence[dict[str, Any]]) -> list[tuple[str, int | None]]:
    return list(dict.fromkeys((r["phase"], r["batch"]) for r in records))


def test_a_new_folder_has_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not yet there"):
        found = read_run(folder)
        assert (found.edits, found.records, found.start, found.batches) == (None, [], 0, 0)
    assert not (tmp_path / "not yet there").exists()


def test_killed_before_the_first_batch(tmp_path: Path) -> None:
    measured(tmp_path, None)  # the unedited model is measured before the ledger is begun
    found = read_run(tmp_path)
    assert found.edits is None
    assert parts(found.records) == [("before", None)]
    begun(tmp_path)
    found = read_run(tmp_path)
    assert found.edits is not None
    assert (found.start, found.batches) == (0, 0)
    assert parts(found.records) == [("before", None)]


def test_killed_between_batches(tmp_path: Path) -> None:
    begun(tmp_path, kept=(0, 1))
    measured(tmp_path, None, 0, 1)
    found = read_run(tmp_path)
    assert (found.start, found.batches) == (2, 2)
    assert found.edits is not None
    assert [b.facts for b in found.edits.batches] == [b.facts for b in BATCHES[:2]]
    assert found.edits.about == {"editor": "none"}
    assert parts(found.records) == [("before", None), ("after", 0), ("after", 1)]


def test_killed_with_a_batch_kept_but_not_measured(tmp_path: Path) -> None:
    """It is begun with that one: edited from the ledger, and measured."""
    begun(tmp_path, kept=(0, 1))
    measured(tmp_path, None, 0)
    found = read_run(tmp_path)
    assert (found.start, found.batches) == (1, 2)
    assert parts(found.records) == [("before", None), ("after", 0)]


def test_rows_of_batches_that_are_lost_do_not_count(tmp_path: Path) -> None:
    begun(tmp_path, kept=(0,))
    measured(tmp_path, None, 0, 1)
    found = read_run(tmp_path)
    assert (found.start, found.batches) == (1, 1)
    assert parts(found.records) == [("before", None), ("after", 0)]


def test_a_finished_run_has_all(tmp_path: Path) -> None:
    begun(tmp_path, listed=3, kept=(0, 1, 2))
    every = [*rows("before", None), *(r for n in range(3) for r in rows("after", n)), *rows("final", 2)]
    write_records(tmp_path, every)
    found = read_run(tmp_path)
    assert (found.start, found.batches) == (3, 3)
    assert found.records == every


def test_without_a_measure_of_any_batch_the_last_one_is_begun_with(tmp_path: Path) -> None:
    begun(tmp_path, listed=3, kept=(0, 1, 2))
    assert read_run(tmp_path).start == 2


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    begun(tmp_path, listed=1, kept=(0,))
    measured(tmp_path, None)
    (part,) = (tmp_path / "records").iterdir()
    whole = part.read_text(encoding="utf-8")
    for harmed in (whole[:-9], json.dumps({"batch": 1}) + "\n", "[]\n"):
        part.write_text(harmed, encoding="utf-8")
        with pytest.raises(InputError, match="run_dir: expected rows in JSON"):
            read_run(tmp_path)
    part.write_text(whole, encoding="utf-8")
    batch_file(tmp_path / EDITS, 0).write_bytes(b"none")
    with pytest.raises(InputError, match=r"edits: expected .* as editkit wrote it"):
        read_run(tmp_path)
