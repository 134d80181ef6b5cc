"""What attention keeps, in the forms that editkit needs: of prefixes, growing, frozen, and with room for what comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from typing_extensions import override

from editkit.models.editable import StopForward


@dataclass
class PrefixKVCache:
    """What attention kept of some rows' prefixes, padded on the left.

    Attributes:
        layers: per block, keys and values (rows, heads, length, head size), or None where no longer needed.
        mask: (rows, length) 1 for tokens, 0 for padding.
    """

    layers: list[tuple[Tensor, Tensor] | None]
    mask: Tensor

    def select(self, rows: Tensor, first: int = 0) -> PrefixKVCache:
        """Some rows, in that order; blocks below ``first`` are dropped, and padding that none of the rows needs."""
        mask = self.mask[rows]
        padding = int((mask.sum(0) == 0).sum())

        def taken(states: Tensor) -> Tensor:
            return states[:, :, padding:].index_select(0, rows)

        layers = [
            None if pair is None or i < first else (taken(pair[0]), taken(pair[1]))
            for i, pair in enumerate(self.layers)
        ]
        return PrefixKVCache(layers, mask[:, padding:])


class GrowingCache(DynamicCache):
    """Continues ``PrefixKVCache``; ends the forward pass once the last block's keys and values are known."""

    def __init__(self, depth: int, start: PrefixKVCache | None) -> None:
        super().__init__()
        self.depth = depth
        for i, pair in enumerate(start.layers if start else []):
            if pair is not None:
                super().update(*pair, i)

    @override
    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of one block so far, (rows, heads, length, head size) each."""
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == self.depth - 1:
            raise StopForward
        return keys, values


class FrozenCache(DynamicCache):
    """A prefix's keys and values, to be attended to but never grown: ``update`` concatenates and stores nothing."""

    def __init__(self, prefix: PrefixKVCache) -> None:
        super().__init__()
        self.prefix = prefix

    @override
    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Prefix and new keys and values of one block, (rows, heads, prefix + tail, head size) each."""
        pair = self.prefix.layers[layer_idx]
        assert pair is not None
        return torch.cat([pair[0], key_states], -2), torch.cat([pair[1], value_states], -2)

    @override
    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the prefix, padding included."""
        return self.prefix.mask.shape[1]

    @override
    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask must cover."""
        return self.get_seq_length() + query_length, 0


class PreallocatedCache(DynamicCache):
    """Keys and values in buffers of their final length: a step writes its own and moves nothing.

    Args:
        room: tokens that there is room for, padding included.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.length = room, 0
        self.layer_states: dict[int, tuple[Tensor, Tensor]] = {}

    @override
    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of one block so far, (rows, heads, length, head size) each; views of the buffers."""
        if layer_idx not in self.layer_states:
            self.layer_states[layer_idx] = (self._buffer(key_states), self._buffer(value_states))
        end = self.length + key_states.shape[-2]
        for buffer, new in zip(self.layer_states[layer_idx], (key_states, value_states), strict=True):
            buffer[:, :, self.length : end] = new
        keys, values = self.layer_states[layer_idx]
        return keys[:, :, :end], values[:, :, :end]

    def _buffer(self, like: Tensor) -> Tensor:
        return like.new_empty(*like.shape[:2], self.room, like.shape[-1])

    @override
    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the steps that are over, padding included."""
        return self.length

    @override
    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask must cover."""
        return self.length + query_length, 0

    def advance(self, tokens: int) -> None:
        """A step of so many tokens is over."""
        self.length += tokens

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        for layer, (keys, values) in self.layer_states.items():
            self.layer_states[layer] = (keys[rows], values[rows])
