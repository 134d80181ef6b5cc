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
    """

    second_moments: dict[int, FactoredSecondMoment]
    _earlier: dict[int, list[Tensor]] = field(default_factory=dict)

    def add(self, state: Mapping[str, Tensor], weight: float) -> None:
        """Add the keys of a batch.

        Args:
            state: an edit's: "keys.LAYER", (d_in, E); other entries are passed over.
            weight: β; 0 leaves C as it is.
        """
        for layer, second_moment in self.second_moments.items():
            if (keys := state.get(f"keys.{layer}")) is not None:
                self._earlier.setdefault(layer, []).append(keys)
                if weight:
                    self.second_moments[layer] = with_keys(second_moment, keys, weight)

    def earlier(self, layer: int, like: Tensor) -> Tensor:
        """(d_in, N) keys of the batches so far, with the dtype and on the device of ``like`` (d_in, E)."""
        return torch.cat([like[:, :0], *(keys.to(like) for keys in self._earlier.get(layer, []))], 1)
