"""The ledger of a run's edits: low-rank weight changes with the facts that they are for; kept, applied and undone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from editkit.data.facts import Fact
from editkit.errors import InputError
from editkit.files import write_whole
from editkit.functional import LowRankDelta
from editkit.models.family import Family, orient
from editkit.models.fingerprint import fingerprint, tensor_hash

SCHEMA = 1


def stored(delta: LowRankDelta) -> LowRankDelta:
    """A delta rounded to the dtype in which it is kept (float32), so that what is applied is what is saved."""
    return LowRankDelta(delta.left.float().cpu(), None if delta.right is None else delta.right.float().cpu())


@torch.no_grad()
def apply_delta(family: Family, layer: int, delta: LowRankDelta) -> None:
    """Add a delta to a block's projection weight: summed in float64, one cast to the weight's dtype."""
    weight = family.weight(layer)
    wide = LowRankDelta(delta.left.double(), None if delta.right is None else delta.right.double())
    change = orient(family.projection(layer), wide.dense()).to(weight.device)
    weight.copy_((weight.double() + change).to(weight.dtype))


@dataclass
class EditBatch:
    """What one batch of edits did.

    Attributes:
        facts: its facts.
        deltas: block to weight change, float32 factors on the CPU.
        hashes: block to the hash of the weight after this batch.
    """

    facts: list[Fact]
    deltas: dict[int, LowRankDelta]
    hashes: dict[int, str] = field(default_factory=dict)


@dataclass
class Edits:
    """A ledger.

    Attributes:
        batches: in the order in which they were made.
        sequential: whether each batch was made on top of those before it (else each on the unedited weights).
        model: fingerprint of the unedited model.
        about: editor, hyperparameters, templates, versions: whatever the run recorded (JSON values).
    """

    batches: list[EditBatch] = field(default_factory=list)
    sequential: bool = False
    model: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write ``edits.json`` and one ``batch_*.safetensors`` per batch into the folder ``path``."""
        folder = Path(path)
        for i in range(len(self.batches)):
            self.save_batch(folder, i)
        self.save_index(folder)

    def save_batch(self, folder: Path, index: int) -> None:
        """Write one batch's factors."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for layer, delta in self.batches[index].deltas.items():
            tensors[f"{layer}.left"] = delta.left.contiguous()
            if delta.right is not None:
                tensors[f"{layer}.right"] = delta.right.contiguous()
        write_whole(folder / f"batch_{index:05d}.safetensors", lambda part: save_file(tensors, part), "edits")

    def save_index(self, folder: Path) -> None:
        """Write ``edits.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        index = {
            "schema": SCHEMA,
            "sequential": self.sequential,
            "model": self.model,
            "about": self.about,
            "batches": [
                {"facts": [asdict(f) for f in b.facts], "hashes": {str(k): v for k, v in b.hashes.items()}}
                for b in self.batches
            ],
        }
        text = json.dumps(index, indent=1, ensure_ascii=False)
        write_whole(folder / "edits.json", lambda part: part.write_text(text, encoding="utf-8"), "edits")

    def apply(self, model: PreTrainedModel, batch: int | None = None, force: bool = False) -> PreTrainedModel:
        """Put the edits into a model, in place.

        Args:
            model: an unedited copy of the model that they were made for.
            batch: of independent batches, the one to apply; default the only one, and all of sequential ones.
            force: apply to another model than the one on record.

        Raises:
            InputError: another model (fingerprints named), or several independent batches and none chosen.
        """
        came = fingerprint(model)
        if came != self.model and not force:
            raise InputError(
                f"edits: expected the unedited model with fingerprint {self.model}, but got {came}; load the model "
                "that the edits were made for, unedited and in the same dtype, or pass force=True"
            )
        if self.sequential:
            chosen = self.batches if batch is None else self.batches[: batch + 1]
        elif batch is None and len(self.batches) != 1:
            raise InputError(
                f"batch: these are {len(self.batches)} independent batches, each for the unedited model; expected the "
                "number of one of them"
            )
        else:
            chosen = [self.batches[batch or 0]]
        family = Family(model)
        for done in chosen:
            for layer, delta in done.deltas.items():
                apply_delta(family, layer, delta)
        return model


def load_edits(path: str | Path) -> Edits:
    """Read a ledger written by ``Edits.save``.

    Raises:
        InputError: no ledger there, a truncated or foreign file, or a newer schema.
    """
    folder = Path(path)
    try:
        index = json.loads((folder / "edits.json").read_text(encoding="utf-8"))
        if index["schema"] > SCHEMA:
            raise InputError(f"edits: {folder} has schema {index['schema']}, this editkit reads up to {SCHEMA}; update")
        batches = []
        for i, entry in enumerate(index["batches"]):
            tensors = load_file(folder / f"batch_{i:05d}.safetensors")
            layers = sorted({int(name.split(".")[0]) for name in tensors})
            deltas = {n: LowRankDelta(tensors[f"{n}.left"], tensors.get(f"{n}.right")) for n in layers}
            facts = [Fact.from_record(f) for f in entry["facts"]]
            batches.append(EditBatch(facts, deltas, {int(k): v for k, v in entry["hashes"].items()}))
    except (OSError, json.JSONDecodeError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(
            f"edits: expected a folder written by editkit with edits.json and batch_*.safetensors, but {folder} could "
            f"not be read ({type(error).__name__}: {error})"
        ) from error
    return Edits(batches, index["sequential"], index["model"], index["about"])


class WeightSnapshot:
    """Bit-exact copies of the projections' weights, on the CPU, to go back to.

    Args:
        family: the model.
        layers: blocks to remember.
    """

    def __init__(self, family: Family, layers: Sequence[int]) -> None:
        self._family = family
        self._weights = {layer: family.weight(layer).detach().cpu().clone() for layer in layers}

    @torch.no_grad()
    def restore(self) -> None:
        """Put the remembered bits back."""
        for layer, weight in self._weights.items():
            self._family.weight(layer).copy_(weight)

    def hashes(self) -> dict[int, str]:
        """Hash of each watched weight as it is now."""
        return {layer: tensor_hash(self._family.weight(layer)) for layer in self._weights}
