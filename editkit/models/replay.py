"""Replaying the blocks above an edit on the few tokens that it can reach.

Attention is causal and an edit at block L is felt first at the lookup token. So the tokens before it are run once and
leave keys and values behind; the tail, from the lookup token on, is run once to see what the model itself hands each
block (masks, positions, rotary tables, caches); and after that each gradient step calls only the blocks above L on the
tail, with those same arguments. Number for number this is the full forward, for every family, and no family is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from editkit.models.family import Family, hidden_of, watching
from editkit.models.spans import pad


class FrozenCache(DynamicCache):
    """A prefix's keys and values, to be attended to but never grown: ``update`` concatenates and stores nothing."""

    def __init__(self, prefix: DynamicCache) -> None:
        super().__init__()
        self.layers = prefix.layers
        self.layer_class_to_replicate = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Prefix and new keys and values of one block, (rows, heads, prefix + tail, head size) each."""
        layer: Any = self.layers[layer_idx]
        return torch.cat([layer.keys, key_states], -2), torch.cat([layer.values, value_states], -2)


class Replay:
    """Rows of text stopped at block ``layer``, ready to be continued from any change of the lookup token there.

    Args:
        family: the model.
        rows: token ids per row.
        lookup: per row, the index of its lookup token; what precedes it is the prefix, the rest the tail.
        layer: L, the block at whose output the change is made.
        key_layer: a block ≤ L whose projection's input at the lookup token is kept as ``keys``.

    Attributes:
        start: (rows, hidden) output of block L at the lookup token.
        keys: (rows, d_in) of ``key_layer``, or None.
    """

    def __init__(
        self, family: Family, rows: Sequence[Sequence[int]], lookup: Sequence[int], layer: int, key_layer: int
    ) -> None:
        self.family, self.layer = family, layer
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._hidden: Tensor
        prefixes = [row[:at] for row, at in zip(rows, lookup, strict=True)]
        tail, tail_mask = pad([row[at:] for row, at in zip(rows, lookup, strict=True)], family.device)
        mask, cache = tail_mask, None
        if any(prefixes):
            cache, prefix_mask = self._prefix(prefixes)
            mask = torch.cat([prefix_mask, tail_mask], 1)
        self.keys = self._capture(tail, mask, cache, key_layer)
        self.start = self._hidden[:, 0].float()

    def _prefix(self, prefixes: list[Sequence[int]]) -> tuple[FrozenCache, Tensor]:
        """Keys and values of the tokens before the lookup token; equal prefixes are run once."""
        distinct = list(dict.fromkeys(map(tuple, prefixes)))
        ids, mask = pad(distinct, self.family.device, left=True)
        cache = DynamicCache()
        with torch.no_grad():
            self.family.model(
                input_ids=ids, attention_mask=mask, position_ids=positions(mask), past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
        place = {prefix: i for i, prefix in enumerate(distinct)}
        index = torch.tensor([place[tuple(p)] for p in prefixes], device=ids.device)
        cache.batch_select_indices(index)
        return FrozenCache(cache), mask[index]

    def _capture(self, tail: Tensor, mask: Tensor, cache: FrozenCache | None, key_layer: int) -> Tensor:
        """Run the tail once, keep block L's output and the arguments that the model hands each block above it."""
        keys: list[Tensor] = []

        def keep_key(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            keys.append(inputs[0].reshape(*tail.shape, -1)[:, 0].detach().float())

        def keep_state(module: nn.Module, inputs: Any, output: Any) -> None:
            self._hidden = hidden_of(output).detach()

        def keep_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kwargs = dict(kwargs)
            args = args[1:] if args else (kwargs.pop("hidden_states"), ())[1]
            self._calls.append((args, kwargs))

        blocks: list[Callable[..., Any]] = list(self.family.blocks)
        hooks = [
            self.family.projection(key_layer).register_forward_pre_hook(keep_key),
            self.family.blocks[self.layer].register_forward_hook(keep_state),
            *(
                block.register_forward_pre_hook(keep_call, with_kwargs=True)
                for block in self.family.blocks[self.layer + 1 :]
            ),
        ]
        self._above = blocks[self.layer + 1 :]
        with torch.no_grad(), watching(*hooks):
            self.family.model(
                input_ids=tail, attention_mask=mask, position_ids=positions(mask)[:, -tail.shape[1] :],
                past_key_values=cache, use_cache=cache is not None, logits_to_keep=1,
            )  # fmt: skip
        return keys[0]

    def logits(self, offset: Tensor, row: Tensor, position: Tensor) -> Tensor:
        """Logits where they are asked for, with ``offset`` added to block L's output at the lookup token.

        Args:
            offset: (rows, hidden) float32; gradients flow into it.
            row: (T,) long, row of each wanted position.
            position: (T,) long, its index in the row's tail (0 is the lookup token).

        Returns:
            (T, vocabulary) float32.
        """
        hidden = self._hidden.clone()
        hidden[:, 0] += offset.to(hidden.dtype)
        for block, (args, kwargs) in zip(self._above, self._calls, strict=True):
            hidden = hidden_of(block(hidden, *args, **kwargs))
        return self.family.head(hidden[row, position])


def positions(mask: Tensor) -> Tensor:
    """Position ids of padded rows: 0 at each row's first token, (rows, length) long.

    >>> positions(torch.tensor([[0, 1, 1]]))
    tensor([[0, 0, 1]])
    """
    return (mask.cumsum(-1) - 1).clamp(min=0)
