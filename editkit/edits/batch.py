"""What one batch of edits did: its facts and, per block, a weight change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from editkit.data.facts import Fact
from editkit.functional.delta import Delta, DenseDelta, LowRankDelta, SparseDelta, ZeroDelta, smallest


@dataclass
class EditBatch:
    """One batch of edits.

    Attributes:
        facts: its facts.
        deltas: block to weight change, float32 on the CPU; empty for an editor that changes no weights.
        hashes: block to the hash of every bit of the weight after this batch.
        samples: block to up to 512 entries of that weight, in its dtype, for machines that round otherwise.
        keys: block to the (d_in, E) float32 keys that later batches are to preserve; empty unless they are.
        notes: what was found out about the batch before it was solved (JSON values).
        prompt: text that acts in place of weights, for editors that work in the prompt.
    """

    facts: list[Fact]
    deltas: dict[int, Delta] = field(default_factory=dict)
    hashes: dict[int, str] = field(default_factory=dict)
    samples: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    prompt: str | None = None


def stored(delta: Delta) -> Delta:
    """A delta rounded to float32 in its smallest form: what is kept, and so what is applied."""
    delta = smallest(delta)
    if isinstance(delta, LowRankDelta):
        return LowRankDelta(_kept(delta.left), None if delta.right is None else _kept(delta.right))
    if isinstance(delta, DenseDelta):
        return DenseDelta(_kept(delta.matrix))
    if isinstance(delta, SparseDelta):
        return SparseDelta(delta.indices.cpu(), _kept(delta.values), delta.shape)
    return ZeroDelta(delta.shape)


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()
