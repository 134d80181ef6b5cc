"""The ledger on disk: one ``batch_00000.safetensors`` per batch, each whole in itself, and ``edits.json``.

A batch file holds the tensors of its batch and, in its header, everything else about it as JSON; once it is there, the
batch is done. ``edits.json`` says what holds for all of them (model, editor, hyperparameters, templates, versions) and
repeats the batches for people to read; it is written when a run begins and again when it ends. Both have hashes of all
that is in them: a file of which one bit is not what was written is refused.

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
from torch import Tensor

from editkit.data.facts import Fact
from editkit.edits.batch import EditBatch
from editkit.edits.edit import Edit
from editkit.edits.module_edit import ModuleEdit
from editkit.edits.prompt_edit import PromptEdit
from editkit.edits.weight_edit import WeightEdit
from editkit.models.fingerprint import SAMPLED
from editkit.utils.errors import InputError
from editkit.utils.files import atomic_write
from editkit.utils.sealed import BrokenSeal, is_sealed, read_sealed, seal, write_sealed

SCHEMA = 4
SEALED = 4  # the first schema with hashes of all that is in its files
INDEX = "edits.json"
EDIT_TYPES: dict[str, type[Edit]] = {e.kind: e for e in (WeightEdit, PromptEdit, ModuleEdit)}
#: groups of tensors in a batch's file: of the edit itself, of the editor's state, of the edited weights
EDIT, STATE, SKETCH, SAMPLE = "edit", "state", "sketch", "sample"

Entry = dict[str, Any]
Tensors = dict[str, Tensor]


def batch_file(folder: Path, index: int) -> Path:
    """Where a batch is kept."""
    return folder / f"batch_{index:05d}.safetensors"


def write_batch(folder: Path, index: int, batch: EditBatch, model: str | None = None) -> None:
    """Write one batch, whole or not at all; with this it is done.

    Args:
        folder: of the ledger.
        index: the batch's number.
        batch: the batch.
        model: the unedited model's fingerprint, so that no file of another ledger is taken for one of this; None: not
            said.
    """
    groups = {EDIT: batch.edit.tensors(), STATE: batch.edit.state, SKETCH: batch.sketches, SAMPLE: batch.samples}
    tensors = {f"{group}:{name}": tensor for group, part in groups.items() for name, tensor in part.items()}
    about = {"schema": SCHEMA, "number": index, "model": model, "batch": entry_of(batch)}
    write_sealed(batch_file(folder, index), tensors, about, "edits")


def write_index(folder: Path, header: dict[str, Any], batches: Sequence[EditBatch]) -> None:
    """Write ``edits.json``."""
    sealed = {"schema": SCHEMA, **header}
    listed = [entry_of(batch) for batch in batches]  # which the batches' own files tell to be right or not
    text = json.dumps({**sealed, "sha256": seal(sealed), "batches": listed}, indent=1, ensure_ascii=False)
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
        InputError: no ledger there, a truncated, altered or foreign file, a missing batch, or a newer schema.
    """
    try:
        header, listed, schema = _read_index(folder)
        count = len(listed)
        while batch_file(folder, count).exists():  # finished after the index was last written
            count += 1
        batches = [_read_file(batch_file(folder, i), i, header["model"], listed, schema) for i in range(count)]
        if schema < SEALED:
            header["model"] = SAMPLED + header["model"]
        if schema < 3:
            header["about"] = _renamed(header["about"])
        return header, batches
    except InputError:
        raise
    except BrokenSeal as error:
        raise InputError(
            f"edits: expected {folder} as editkit wrote it, but {error}; copy it again, or repeat the run"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise InputError(
            f"edits: expected a folder written by editkit with {INDEX} and batch_*.safetensors, but {folder} could "
            f"not be read ({type(error).__name__}: {' '.join(str(error).split())}); copy it again, or repeat the run"
        ) from error


def _read_index(folder: Path) -> tuple[dict[str, Any], list[Entry], int]:
    """What holds for all batches, the batches as ``edits.json`` lists them, and its schema."""
    content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(schema := content.get("schema"), int):
        raise ValueError(f"{INDEX} names no schema")
    if schema > SCHEMA:
        raise InputError(
            f"edits: expected a ledger of schema {SCHEMA} or lower, but {folder} has {schema}; update editkit"
        )
    listed = content.pop("batches")
    if schema >= SEALED and content.pop("sha256", None) != seal(content):
        raise BrokenSeal(f"{INDEX} is not what was written; it is for reading alone")
    del content["schema"]
    kinds = {"sequential": bool, "model": str, "about": dict}
    if content.keys() != kinds.keys() or not all(isinstance(content[name], kind) for name, kind in kinds.items()):
        raise ValueError(f"{INDEX} must have {', '.join(kinds)} and nothing else beside its batches")
    return content, listed, schema


def _read_file(file: Path, number: int, model: str, listed: list[Entry], schema: int) -> EditBatch:
    """A batch from its file, of any schema.

    A run that was begun by an older editkit and resumed by this one has files of both.

    Args:
        file: the file.
        number: of the batch.
        model: the ledger's fingerprint of the unedited model.
        listed: batches as ``edits.json`` has them.
        schema: of ``edits.json``.
    """
    try:
        if not is_sealed(file):
            return _read_older(file, listed[number] if schema == 1 else None)
        tensors, about = read_sealed(file)
    except BrokenSeal as error:
        raise BrokenSeal(f"{file.name}: {error}") from error
    if about["number"] != number or about["model"] not in (model, None):
        raise BrokenSeal(f"{file.name} is batch {about['number']} of a ledger of the model {about['model']}")
    batch = _batch(about["batch"], tensors)
    if schema == SCHEMA and number < len(listed) and seal(listed[number]) != seal(about["batch"]):
        raise BrokenSeal(f"{file.name} is not the batch that {INDEX} lists")
    return batch


def _read_older(file: Path, listed: Entry | None) -> EditBatch:
    """A batch of a schema without hashes; of schema 1, what ``edits.json`` lists of it is ``listed``."""
    with safe_open(file, framework="pt") as content:
        metadata = content.metadata() or {}
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    schema, entry = (1, listed) if listed is not None else (int(metadata["schema"]), json.loads(metadata["batch"]))
    for number in range(schema, SEALED - 1):
        entry, tensors = MIGRATIONS[number](entry, tensors)
    return _batch(entry, tensors)


def _batch(entry: Entry, tensors: Tensors) -> EditBatch:
    groups: dict[str, Tensors] = {EDIT: {}, STATE: {}, SKETCH: {}, SAMPLE: {}}
    for name, tensor in tensors.items():
        group, _, own = name.partition(":")
        groups[group][own] = tensor
        if group == EDIT and tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")
    header = dict(entry["edit"])
    edit = EDIT_TYPES[header.pop("kind")].read(header, groups[EDIT])
    edit.state, edit.notes = groups[STATE], entry["notes"]
    facts = [Fact.from_record(record) for record in entry["facts"]]
    return EditBatch(facts, edit, entry["hashes"], groups[SKETCH], groups[SAMPLE])


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


#: schema number to what turns a batch of it into one of the next number; 3 differs from 4 in its files alone
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
