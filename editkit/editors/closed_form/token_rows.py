"""What one forward and one backward pass find out about facts: keys and gradients at their answers' tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.editors.closed_form.search import Group


@dataclass(frozen=True)
class TokenRows:
    """A column for each token that predicts one of a target's, of some groups of facts.

    Attributes:
        groups: facts with the same text up to the subject's end.
        keys: block to (d_in, N) float32, the input of its projection.
        gradients: block to (d_out, N) float32, of each fact's mean target NLL by what the projection gives.
        owners: (N,) int64, ascending: which group each column is of.
    """

    groups: tuple[Group, ...]
    keys: Mapping[int, Tensor]
    gradients: Mapping[int, Tensor]
    owners: Tensor

    @property
    def names(self) -> list[str]:
        """N subjects, for messages."""
        return [self.groups[owner][0].subject for owner in self.owners.tolist()]

    def to(self, device: torch.device | str) -> TokenRows:
        """The same on another device."""
        keys, gradients = ({n: t.to(device) for n, t in part.items()} for part in (self.keys, self.gradients))
        return TokenRows(self.groups, keys, gradients, self.owners.to(device))

    @classmethod
    def cat(cls, parts: Sequence[TokenRows]) -> TokenRows:
        """Groups of one after those of the other."""
        starts = [sum(len(part.groups) for part in parts[:i]) for i in range(len(parts))]
        numbers = [torch.arange(start, start + len(part.groups)) for start, part in zip(starts, parts, strict=True)]
        return cls._renumbered(parts, numbers)

    @classmethod
    def deal_in(cls, parts: Sequence[TokenRows | None]) -> TokenRows:
        """What all processes found, in the groups' order: of n processes the r-th had groups[r::n], perhaps none."""
        present = [(rank, part) for rank, part in enumerate(parts) if part is not None]
        numbers = [torch.arange(len(part.groups)) * len(parts) + rank for rank, part in present]
        return cls._renumbered([part for _, part in present], numbers)

    @classmethod
    def _renumbered(cls, parts: Sequence[TokenRows], numbers: Sequence[Tensor]) -> TokenRows:
        """The groups of all parts in the order of their numbers, and their columns in that of the groups."""
        groups = [group for part in parts for group in part.groups]
        rank = torch.cat(list(numbers)).argsort()
        owners = torch.cat([n.to(p.owners.device)[p.owners] for n, p in zip(numbers, parts, strict=True)])
        owners, order = owners.sort(stable=True)
        layers = parts[0].keys
        return cls(
            tuple(groups[i] for i in rank.tolist()),
            {layer: torch.cat([part.keys[layer] for part in parts], 1)[:, order] for layer in layers},
            {layer: torch.cat([part.gradients[layer] for part in parts], 1)[:, order] for layer in layers},
            owners,
        )
