"""The keys that later edits are to preserve: those of the second moments, and those of earlier batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from editkit.functional import FactoredSecondMoment, with_keys


@dataclass
class PreservedKeys:
    """Second moments that grow with each batch, and the batches' keys themselves.

    Attributes:
        second_moments: block to the factored C + βKKᵀ, K the keys of the batches so far.
        weight: β; 0 leaves C as it is.
    """

    second_moments: dict[int, FactoredSecondMoment]
    weight: float = 0.0
    _earlier: dict[int, list[Tensor]] = field(default_factory=dict)

    def add(self, state: Mapping[str, Tensor]) -> None:
        """Add the keys of a batch: "keys.LAYER", (d_in, E), of an edit's state; other entries are passed over."""
        for layer, second_moment in self.second_moments.items():
            if (keys := state.get(f"keys.{layer}")) is not None:
                self._earlier.setdefault(layer, []).append(keys)
                if self.weight:
                    self.second_moments[layer] = with_keys(second_moment, keys, self.weight)

    def earlier(self, layer: int, like: Tensor) -> Tensor:
        """(d_in, N) keys of the batches so far, with the dtype and on the device of ``like`` (d_in, E)."""
        return torch.cat([like[:, :0], *(keys.to(like) for keys in self._earlier.get(layer, []))], 1)
