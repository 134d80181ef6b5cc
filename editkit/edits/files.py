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
from editkit.edits.edit import Edit
from editkit.edits.module_edit import ModuleEdit
from editkit.edits.prompt_edit import PromptEdit
from editkit.edits.weight_edit import WeightEdit
from editkit.utils.errors import InputError
from editkit.utils.files import atomic_write

SCHEMA = 3
INDEX = "edits.json"
EDIT_TYPES: dict[str, type[Edit]] = {e.kind: e for e in (WeightEdit, PromptEdit, ModuleEdit)}
#: groups of tensors in a batch's file: of the edit itself, of the editor's state, entries of the edited weights
EDIT, STATE, SAMPLE = "edit", "state", "sample"

Entry = dict[str, Any]
Tensors = dict[str, Tensor]


def batch_file(folder: Path, index: int) -> Path:
    """Where a batch is kept."""
    return folder / f"batch_{index:05d}.safetensors"


def write_batch(folder: Path, index: int, batch: EditBatch) -> None:
    """Write one batch, whole or not at all; with this it is done."""
    groups = {EDIT: batch.edit.tensors(), STATE: batch.edit.state, SAMPLE: batch.samples}
    tensors = {
        f"{group}:{name}": tensor.detach().cpu().contiguous()
        for group, part in groups.items()
        for name, tensor in part.items()
    }
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
    return {
        "facts": [asdict(fact) for fact in batch.facts],
        "edit": {"kind": batch.edit.kind, **batch.edit.header()},
        "hashes": dict(batch.hashes),
        "notes": batch.edit.notes,
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
        batches = [_read_file(batch_file(folder, i), listed[i] if schema == 1 else None) for i in range(count)]
        if schema < 3:
            header["about"] = _renamed(header["about"])
        return header, batches
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise InputError(
            f"edits: expected a folder written by editkit with {INDEX} and batch_*.safetensors, but {folder} could "
            f"not be read ({type(error).__name__}: {' '.join(str(error).split())}); copy it again, or repeat the run"
        ) from error


def _read_file(file: Path, listed: Entry | None) -> EditBatch:
    """A batch from its file, of any schema; of schema 1, what ``edits.json`` lists of it is ``listed``."""
    with safe_open(file, framework="pt") as content:
        metadata = content.metadata() or {}
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    # a run that was begun by an older editkit and resumed by this one has files of both schemas
    schema, entry = (1, listed) if listed is not None else (int(metadata["schema"]), json.loads(metadata["batch"]))
    for number in range(schema, SCHEMA):
        entry, tensors = MIGRATIONS[number](entry, tensors)
    return _batch(entry, tensors)


def _batch(entry: Entry, tensors: Tensors) -> EditBatch:
    groups: dict[str, Tensors] = {EDIT: {}, STATE: {}, SAMPLE: {}}
    for name, tensor in tensors.items():
        group, _, own = name.partition(":")
        groups[group][own] = tensor
    header = dict(entry["edit"])
    edit = EDIT_TYPES[header.pop("kind")].read(header, groups[EDIT])
    edit.state, edit.notes = groups[STATE], entry["notes"]
    return EditBatch([Fact.from_record(record) for record in entry["facts"]], edit, entry["hashes"], groups[SAMPLE])


def _from_1(entry: Entry, tensors: Tensors) -> tuple[Entry, Tensors]:
    """Schema 1 told everything but tensors in ``edits.json``, and kept a dense change as a lone left factor."""
    deltas: dict[str, Any] = {}
    named: Tensors = {}
    for layer in sorted({name.split(".")[0] for name in tensors}, key=int):
        left, right = tensors[f"{layer}.left"], tensors.get(f"{layer}.right")
        if right is None:
            named[f"{layer}.matrix"], deltas[layer] = left, {"kind": "dense", "shape": list(left.shape)}
        else:
            named[f"{layer}.left"], named[f"{layer}.right"] = left, right
            deltas[layer] = {"kind": "low_rank", "shape": [len(left), len(right)]}
    return {**entry, "deltas": deltas, "notes": {}, "prompt": None}, named


def _from_2(entry: Entry, tensors: Tensors) -> tuple[Entry, Tensors]:
    """Schema 2 named blocks where schema 3 names parameters, and knew no other edits than of projections' weights."""
    named: Tensors = {}
    for name, tensor in tensors.items():
        layer, part = name.split(".")
        new = {"samples": f"{SAMPLE}:block {layer}", "keys": f"{STATE}:keys.{layer}"}
        named[new.get(part, f"{EDIT}:block {layer}:{part}")] = tensor
    edit: dict[str, Any] = {
        "kind": WeightEdit.kind,
        "deltas": {f"block {layer}": delta for layer, delta in entry["deltas"].items()},
    }
    if entry["prompt"] is not None:
        edit = {"kind": PromptEdit.kind, "contexts": [{"text": entry["prompt"], "when": None}]}
    hashes = {f"block {layer}": value for layer, value in entry["hashes"].items()}
    return {"facts": entry["facts"], "edit": edit, "hashes": hashes, "notes": entry["notes"]}, named


#: schema number to what turns a batch of it into one of the next number
MIGRATIONS: dict[int, Callable[[Entry, Tensors], tuple[Entry, Tensors]]] = {1: _from_1, 2: _from_2}


def _renamed(about: dict[str, Any]) -> dict[str, Any]:
    """What a run recorded of itself, in the words of schema 3."""
    about = dict(about)
    settings = dict(about.get("hyperparameters") or {})
    settings.pop("protocol", None)  # of the evaluation, not of the editor
    if "moments" in settings:
        settings["second_moment"] = settings.pop("moments")
    settings |= {name: about.pop(name) for name in ("earlier_keys", "dependent") if name in about}
    moved = {f"editkit.editors.{name.lower()}.{name}": name for name in ("ROME", "MEMIT", "EMMET")}
    if (name := moved.get(about.get("editor", ""))) is not None:
        about["editor"] = f"editkit.editors.closed_form.{name.lower()}.{name}"
    return {**about, "hyperparameters": settings} if settings else about
