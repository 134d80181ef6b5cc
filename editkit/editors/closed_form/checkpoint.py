"""Value vectors found so far in the batch of edits at work, on disk: a run that is killed does not lose them."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from editkit.editors.closed_form.editor import ValueVectors
from editkit.editors.closed_form.search import Group
from editkit.utils.distributed import place
from editkit.utils.files import atomic_write, digest


class ValueCheckpoint:
    """One file per training step and process, beside the ledger's batches; removed once their batch is done.

    Args:
        folder: the ledger's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "found"

    def write(self, batch: int, step: int, groups: Sequence[Group], found: ValueVectors) -> None:
        """Keep what the latest step found, ``groups``, from the end of ``found``."""
        tensors = {"keys": found.keys[-1].cpu(), "values": found.values[-1].cpu()}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        totals = {"facts": found.facts, "loss": found.loss, "probability": found.probability}
        metadata = {"groups": _digest(groups), "totals": json.dumps(totals)}
        atomic_write(self._file(batch, step), lambda part: save_file(tensors, part, metadata), "edits")

    def read(self, batch: int, step: int, groups: Sequence[Group], found: ValueVectors, device: torch.device) -> bool:
        """Append what a step found to ``found``; False, and nothing done, where there is no such file."""
        try:
            with safe_open(self._file(batch, step), framework="pt") as content:
                metadata = content.metadata()
                if metadata["groups"] != _digest(groups):
                    return False
                keys, values = content.get_tensor("keys"), content.get_tensor("values")
                totals = json.loads(metadata["totals"])
        except (OSError, SafetensorError, KeyError, ValueError):
            return False
        found.groups += groups
        found.keys.append(keys.to(device))
        found.values.append(values.to(device))
        found.facts, found.loss, found.probability = totals["facts"], totals["loss"], totals["probability"]
        return True

    def clear(self) -> None:
        """Forget all steps."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self._folder)

    def _file(self, batch: int, step: int) -> Path:
        rank, world = place()
        return self._folder / f"batch_{batch:05d}.step_{step:05d}.process_{rank}_of_{world}.safetensors"


def _digest(groups: Sequence[Group]) -> str:
    return digest([[fact.subject, fact.prompt, fact.target_new] for group in groups for fact in group])
