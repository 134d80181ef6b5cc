"""What the search for value vectors found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.editors.closed_form.search import Group


@dataclass(frozen=True)
class ValueVectors:
    """Value vectors of some facts, a column for each group of facts that share a key.

    Attributes:
        groups: the facts of each column.
        keys: (d_in, E) of the first edited layer, float32.
        values: (d_out, E) v*, float32.
    """

    groups: tuple[Group, ...]
    keys: Tensor
    values: Tensor

    @property
    def names(self) -> list[str]:
        """E subjects, for messages."""
        return [group[0].subject for group in self.groups]

    def select(self, columns: Sequence[int]) -> ValueVectors:
        """Some columns, in that order."""
        index = list(columns)
        return ValueVectors(tuple(self.groups[i] for i in index), self.keys[:, index], self.values[:, index])

    def to(self, device: torch.device | str) -> ValueVectors:
        """The same on another device."""
        return ValueVectors(self.groups, self.keys.to(device), self.values.to(device))

    @classmethod
    def cat(cls, parts: Sequence[ValueVectors]) -> ValueVectors:
        """Columns of one after those of the other."""
        groups = tuple(group for part in parts for group in part.groups)
        return cls(groups, torch.cat([p.keys for p in parts], 1), torch.cat([p.values for p in parts], 1))

    @classmethod
    def deal_in(cls, parts: Sequence[ValueVectors | None]) -> ValueVectors:
        """What all processes found, in the groups' order: of n processes the r-th had groups[r::n], perhaps none."""
        total = sum(len(part.groups) for part in parts if part is not None)
        origin = [(i % len(parts), i // len(parts)) for i in range(total)]
        columns = [part.select([i]) for rank, i in origin if (part := parts[rank]) is not None]
        return cls.cat(columns)
