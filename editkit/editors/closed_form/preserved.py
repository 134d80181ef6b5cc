"""What is to be preserved at each edited layer: keys of text by their second moments, and keys of earlier batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from editkit.functional import FactoredSecondMoment, with_keys


class PreservedKeys:
    """Second moments that may grow with each batch, the batches' keys, and their sum.

    Args:
        second_moments: block to the factored C; empty where nothing is preserved by it.
        in_sum: whether the keys' products are summed up apart, as M, and C stays as it is.

    Attributes:
        second_moments: block to the factored C + βKKᵀ, K the keys of the batches so far.
    """

    def __init__(self, second_moments: Mapping[int, FactoredSecondMoment], in_sum: bool = False) -> None:
        self.second_moments, self._in_sum = dict(second_moments), in_sum
        self._earlier: dict[int, list[Tensor]] = {}
        self._past: dict[int, Tensor] = {}

    def add(self, state: Mapping[str, Tensor], layers: Sequence[int], weight: float) -> None:
        """Add the keys of a batch.

        Args:
            state: an edit's: "keys.LAYER", (d_in, E); other entries are passed over.
            layers: the edited blocks.
            weight: β ≥ 0; 0 leaves C and M as they are.
        """
        for layer in layers:
            if (keys := state.get(f"keys.{layer}")) is None:
                continue
            self._earlier.setdefault(layer, []).append(keys)
            if weight and self._in_sum:
                wide = keys.to(torch.float64)
                past = self._past.setdefault(layer, wide.new_zeros(len(wide), len(wide)))
                past.addmm_(wide, wide.T, alpha=weight)
            elif weight:
                self.second_moments[layer] = with_keys(self.second_moments[layer], keys, weight)

    def earlier(self, layer: int, like: Tensor) -> Tensor:
        """(d_in, N) keys of the batches so far, with the dtype and on the device of ``like`` (d_in, E)."""
        return torch.cat([like[:, :0], *(keys.to(like) for keys in self._earlier.get(layer, []))], 1)

    def past(self, layer: int, like: Tensor) -> Tensor | None:
        """M = ΣKKᵀ of the batches so far, (d_in, d_in) float64, on ``like``'s device; None where there are none."""
        past = self._past.get(layer)
        return None if past is None else past.to(like.device)
