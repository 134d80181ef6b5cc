"""The ledger on disk: one ``batch_00000.safetensors`` per batch, each whole in itself, and ``edits.json``.

A batch file holds the tensors of its batch and, in its header, everything else about it as JSON; once it is there, the
batch is done. ``edits.json`` says what holds for all of them (model, editor, hyperparameters, templates, versions) and
repeats the batches for people to read; it is written when a run begins and again when it ends.

The schema has a number. A change that an older editkit could misread raises it and adds a function to ``MIGRATIONS``
that turns what was read from the number before into it, so that every ledger ever written stays readable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editkit.data.facts import Fact
from editkit.edits.batch import EditBatch
from editkit.functional.delta import Delta, DenseDelta, LowRankDelta, SparseDelta, ZeroDelta
from editkit.utils.errors import InputError
from editkit.utils.files import atomic_write

SCHEMA = 2
INDEX = "edits.json"
KINDS: dict[str, Any] = {"low_rank": LowRankDelta, "dense": DenseDelta, "sparse": SparseDelta, "none": ZeroDelta}
BESIDE = ("samples", "keys")  # tensors per block that are no part of its delta

Entry = dict[str, Any]
Tensors = dict[str, Tensor]


def batch_file(folder: Path, index: int) -> Path:
    """Where a batch is kept."""
    return folder / f"batch_{index:05d}.safetensors"


def write_batch(folder: Path, index: int, batch: EditBatch) -> None:
    """Write one batch, whole or not at all; with this it is done."""
    tensors = {f"{layer}.{name}": t for layer, d in batch.deltas.items() for name, t in d.tensors().items()}
    for name in BESIDE:
        tensors |= {f"{layer}.{name}": t for layer, t in getattr(batch, name).items()}
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    metadata = {"schema": str(SCHEMA), "batch": json.dumps(entry_of(batch), ensure_ascii=False)}
    atomic_write(batch_file(folder, index), lambda part: save_file(tensors, part, metadata), "edits")


def write_index(folder: Path, header: dict[str, Any], batches: Sequence[EditBatch]) -> None:
    """Write ``edits.json``."""
    text = json.dumps(
        {"schema": SCHEMA, **header, "batches": [entry_of(b) for b in batches]}, indent=1, ensure_ascii=False
    )
    atomic_write(folder / INDEX, lambda part: part.write_text(text, encoding="utf-8"), "edits")


def entry_of(batch: EditBatch) -> Entry:
    """All of a batch but its tensors, as JSON values."""
    kinds = {kind: name for name, kind in KINDS.items()}
    return {
        "facts": [asdict(fact) for fact in batch.facts],
        "deltas": {str(n): {"kind": kinds[type(d)], "shape": list(d.shape)} for n, d in batch.deltas.items()},
        "hashes": {str(n): value for n, value in batch.hashes.items()},
        "notes": batch.notes,
        "prompt": batch.prompt,
    }


def read_ledger(folder: Path) -> tuple[dict[str, Any], list[EditBatch]]:
    """The header of a ledger and its batches, of any schema so far.

    Raises:
        InputError: no ledger there, a truncated or foreign file, a missing batch, or a newer schema.
    """
    try:
        header = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        schema, listed = header.pop("schema"), header.pop("batches")
        if schema > SCHEMA:
            raise InputError(
                f"edits: expected a ledger of schema {SCHEMA} or lower, but {folder} has {schema}; update editkit"
            )
        count = len(listed)
        while batch_file(folder, count).exists():  # finished after the index was last written
            count += 1
        parts = [_read_file(batch_file(folder, i), listed[i] if schema == 1 else None) for i in range(count)]
        for number in range(schema, SCHEMA):
            header, parts = MIGRATIONS[number](header, parts)
        return header, [_batch(entry, tensors) for entry, tensors in parts]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise InputError(
            f"edits: expected a folder written by editkit with {INDEX} and batch_*.safetensors, but {folder} could "
            f"not be read ({type(error).__name__}: {' '.join(str(error).split())}); copy it again, or repeat the run"
        ) from error


def _read_file(file: Path, entry: Entry | None) -> tuple[Entry, Tensors]:
    with safe_open(file, framework="pt") as content:
        names = content.keys()
        return entry or json.loads(content.metadata()["batch"]), {name: content.get_tensor(name) for name in names}


def _batch(entry: Entry, tensors: Tensors) -> EditBatch:
    deltas: dict[int, Delta] = {}
    for layer, about in entry["deltas"].items():
        mine = {name.removeprefix(f"{layer}."): t for name, t in tensors.items() if name.startswith(f"{layer}.")}
        own: dict[str, Any] = {name: t for name, t in mine.items() if name not in BESIDE}
        if about["kind"] in ("sparse", "none"):
            own["shape"] = tuple(about["shape"])
        deltas[int(layer)] = KINDS[about["kind"]](**own)
    beside = {
        name: {int(key.split(".")[0]): t for key, t in tensors.items() if key.endswith(f".{name}")} for name in BESIDE
    }
    return EditBatch(
        facts=[Fact.from_record(record) for record in entry["facts"]],
        deltas=deltas,
        hashes={int(layer): value for layer, value in entry["hashes"].items()},
        notes=entry["notes"],
        prompt=entry["prompt"],
        **beside,
    )


def _from_1(
    header: dict[str, Any], parts: list[tuple[Entry, Tensors]]
) -> tuple[dict[str, Any], list[tuple[Entry, Tensors]]]:
    """Schema 1 told everything but tensors in ``edits.json``, and kept a dense change as a lone left factor."""
    moved: list[tuple[Entry, Tensors]] = []
    for entry, tensors in parts:
        deltas: dict[str, Any] = {}
        kept: Tensors = {}
        for layer in sorted({name.split(".")[0] for name in tensors}, key=int):
            left, right = tensors[f"{layer}.left"], tensors.get(f"{layer}.right")
            if right is None:
                kept[f"{layer}.matrix"], deltas[layer] = left, {"kind": "dense", "shape": list(left.shape)}
            else:
                kept[f"{layer}.left"], kept[f"{layer}.right"] = left, right
                deltas[layer] = {"kind": "low_rank", "shape": [len(left), len(right)]}
        moved.append(({**entry, "deltas": deltas, "notes": {}, "prompt": None}, kept))
    return header, moved


#: schema number to what turns a ledger's header and batches into those of the next number
MIGRATIONS: dict[int, Callable[..., tuple[dict[str, Any], list[tuple[Entry, Tensors]]]]] = {1: _from_1}
