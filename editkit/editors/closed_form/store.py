"""A store of value vectors: v* depends on the unedited model, the fact, the block and the search, on nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from editkit.editors.closed_form.search import Group, SearchTotals
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.utils.files import digest, user_path
from editkit.utils.sealed import BrokenSeal, read_sealed, write_sealed

FIELD = "model.values.store"


class ValueStore:
    """One sealed file per group of facts in a folder that is named by all that values depend on.

    Files appear whole or not at all, whoever else writes; one of which a bit differs is as if it were not there.

    Args:
        folder: as the user gave it.
        depends_on: JSON values: weights by content, blocks, templates, search, tokenizer, versions.
    """

    def __init__(self, folder: str | Path, depends_on: Any) -> None:
        self._folder = user_path(folder, FIELD) / digest(depends_on)

    def read(self, group: Group, device: torch.device) -> tuple[ValueVectors, SearchTotals] | None:
        """What is known of a group, and its share of the totals; None where nothing is."""
        try:
            tensors, about = read_sealed(self._file(group))
        except (OSError, BrokenSeal):
            return None
        vectors = ValueVectors((group,), tensors["keys"].to(device), tensors["values"].to(device))
        return vectors, SearchTotals(len(group), len(group) * about["loss"], len(group) * about["probability"])

    def write(self, vectors: ValueVectors, totals: SearchTotals) -> None:
        """Keep what a search found, with its mean loss and probability."""
        means = {"loss": totals.loss / totals.facts, "probability": totals.probability / totals.facts}
        for column, group in enumerate(vectors.groups):
            one = vectors.select([column]).to("cpu")
            tensors = {"keys": one.keys.contiguous(), "values": one.values.contiguous()}
            with contextlib.suppress(FileExistsError):
                write_sealed(self._file(group), tensors, means, FIELD)

    def _file(self, group: Group) -> Path:
        texts = [[fact.subject, fact.prompt, fact.target_new] for fact in group]
        return self._folder / f"{digest(texts)}.safetensors"


def split(
    store: ValueStore, groups: Sequence[Group], device: torch.device
) -> tuple[dict[int, tuple[ValueVectors, SearchTotals]], list[int]]:
    """What is known of each group by its number, and the numbers of those of which nothing is."""
    known = {n: kept for n, group in enumerate(groups) if (kept := store.read(group, device)) is not None}
    return known, [n for n in range(len(groups)) if n not in known]
