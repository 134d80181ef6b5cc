"""Replaying the blocks above an edit on the few tokens that it can reach.

Attention is causal and an edit at block L is felt first at the lookup token. So the tokens before it are run once and
leave keys and values behind; the tail, from the lookup token on, is run once to see what the model itself hands each
block (masks, positions, rotary tables, caches); and after that each gradient step calls only the blocks above L on the
tail, with those same arguments. Number for number this is the full forward, for every editable, and no family is named.

Three things keep the matrices full of real tokens: text that many rows begin with (a context template's prefix) is run
once for all of them, rows are replayed with those of the very same tail length, so that tails are never padded, and
rows that are done leave without anything being run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from editkit.models.caches import FrozenCache, PrefixKVCache
from editkit.models.editable import EditableModel, StopForward, forward_replaced, hidden_of, watching
from editkit.models.fused import fused_activations
from editkit.models.prefixes import run_prefixes
from editkit.models.spans import positions


class Replay:
    """Rows of text stopped at block ``layer``, ready to be continued from any change of the lookup token there.

    Args:
        editable: the model.
        rows: token ids per row.
        lookup: per row, the index of its lookup token; what precedes it is the prefix, the rest the tail.
        layer: L, the block where the change is made.
        key_layer: a block ≤ L whose projection's input at the lookup token is kept as ``keys``.
        at_projection: the change is added to the output of block L's projection, and block L is replayed too;
            else to the output of the block.

    Attributes:
        start: (rows, hidden) float32, what stands at the lookup token where the change is to be added.
        keys: (rows, d_in) float32 of ``key_layer``.
    """

    def __init__(
        self,
        editable: EditableModel,
        rows: Sequence[Sequence[int]],
        lookup: Sequence[int],
        layer: int,
        key_layer: int,
        at_projection: bool = False,
    ) -> None:
        self.editable = editable
        prefixes = [tuple(row[:at]) for row, at in zip(rows, lookup, strict=True)]
        distinct = list(dict.fromkeys(p for p in prefixes if p))
        cached, place = run_prefixes(editable, distinct) if distinct else (None, {})
        buckets: dict[tuple[bool, int], list[int]] = {}
        for i, (row, prefix) in enumerate(zip(rows, prefixes, strict=True)):
            buckets.setdefault((bool(prefix), len(row) - len(prefix)), []).append(i)

        self._buckets: list[_Bucket] = []
        starts, keys = [], []
        for (has_prefix, _), members in buckets.items():
            tail = torch.tensor([list(rows[i][lookup[i] :]) for i in members], device=editable.device)
            prefix_of = None
            if has_prefix and cached is not None:
                index = torch.tensor([place[prefixes[i]] for i in members], device=editable.device)
                prefix_of = cached.select(index)
            bucket = _Bucket(editable, tail, prefix_of, layer, at_projection)
            start, key = bucket.run(key_layer)
            self._buckets.append(bucket)
            starts.append(start)
            keys.append(key)
        order = torch.tensor([i for members in buckets.values() for i in members], device=editable.device)
        self._place(order)
        back = order.argsort()
        self.start, self.keys = torch.cat(starts)[back].float(), torch.cat(keys)[back].float()

    def _place(self, order: Tensor) -> None:
        """Remember which row each bucket's rows are, and where each row's tail begins when all are concatenated."""
        self._rows = order.split([len(b.tail) for b in self._buckets])
        lengths = torch.cat([torch.full((len(b.tail),), b.tail.shape[1]) for b in self._buckets]).to(order.device)
        self._base = (lengths.cumsum(0) - lengths)[order.argsort()]

    def select(self, rows: Tensor) -> Replay:
        """The replay of some of the rows, in that order: exact, and no block is run for it."""
        chosen = Replay.__new__(Replay)
        chosen.editable = self.editable
        chosen.start, chosen.keys = self.start[rows], self.keys[rows]
        chosen._buckets = []
        order = []
        for bucket, members in zip(self._buckets, self._rows, strict=True):
            position = torch.full((len(self._base),), -1, device=rows.device)
            position[members] = torch.arange(len(members), device=rows.device)
            wanted = (position[rows] >= 0).nonzero().flatten()
            if len(wanted):
                chosen._buckets.append(bucket.select(position[rows[wanted]]))
                order.append(wanted)
        chosen._place(torch.cat(order))
        return chosen

    def hidden(self, offset: Tensor, row: Tensor, position: Tensor) -> Tensor:
        """The last block's output where it is asked for, with ``offset`` added at the lookup tokens.

        Args:
            offset: (rows, hidden) float32; gradients flow into it.
            row: (T,) long, row of each wanted position.
            position: (T,) long, its index in the row's tail (0 is the lookup token).

        Returns:
            (T, hidden) in the model's dtype; ``EditableModel.head`` makes logits of it.
        """
        states = [
            bucket.replay(offset[rows]).flatten(0, 1) for bucket, rows in zip(self._buckets, self._rows, strict=True)
        ]
        return torch.cat(states)[self._base[row] + position]


class _Bucket:
    """Rows whose tails have the same number of tokens.

    Args:
        editable: the model.
        tail: (rows, tail length) token ids.
        prefix: their prefixes, or None where there are none.
        layer: L.
        at_projection: see ``Replay``.
    """

    def __init__(
        self, editable: EditableModel, tail: Tensor, prefix: PrefixKVCache | None, layer: int, at_projection: bool
    ) -> None:
        self.editable, self.tail, self.prefix = editable, tail, prefix
        self.layer, self.at_projection = layer, at_projection
        self.first = layer if at_projection else layer + 1  # the first block that is replayed
        self.in_tuple = editable.returns_tuple  # found by a forward pass of its own, so before there are hooks
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.states: Tensor  # (rows, tail length, hidden), input of the first replayed block

    def run(self, key_layer: int) -> tuple[Tensor, Tensor]:
        """Run the tail up to block L; returns what stands at the lookup token where the change goes, and the keys."""
        projection = self.editable.projection(self.layer)
        seen: dict[str, Tensor] = {}

        def at_lookup(flat: Tensor) -> Tensor:
            return flat.reshape(*self.tail.shape, -1)[:, 0].detach()

        def keep_key(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen["key"] = at_lookup(inputs[0])

        def keep_output(module: nn.Module, inputs: Any, output: Any) -> None:
            seen["start"] = at_lookup(hidden_of(output))
            if self.first == self.editable.depth:  # no block is left to be replayed
                self.states = hidden_of(output).detach()

        self._capture(
            bypass=range(self.layer + 1, self.editable.depth),
            hooks=[
                self.editable.projection(key_layer).register_forward_pre_hook(keep_key),
                (projection if self.at_projection else self.editable.blocks[self.layer]).register_forward_hook(
                    keep_output
                ),
            ],
        )
        if self.prefix is not None:
            self.prefix.layers[: self.first] = [None] * self.first  # what no step looks at any more
        return seen["start"], seen["key"]

    def select(self, rows: Tensor) -> _Bucket:
        """Some rows. What the model hands each block does not depend on hidden states: only that is asked for anew."""
        prefix = self.prefix.select(rows, self.first) if self.prefix else None
        chosen = _Bucket(self.editable, self.tail[rows], prefix, self.layer, self.at_projection)
        chosen._capture(bypass=range(self.editable.depth), hooks=[])
        chosen.states = self.states[rows]
        return chosen

    def _capture(self, bypass: range, hooks: list[Any]) -> None:
        """Run the model on the tail without the blocks of ``bypass``; keep what the replayed ones are called with."""

        def keep_call(index: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                kwargs = dict(kwargs)
                hidden = args[0] if args else kwargs.pop("hidden_states")
                if index == self.first:
                    self.states = hidden.detach()
                self.calls.append((args[1:], kwargs))
                if index == self.editable.depth - 1 and index in bypass:
                    raise StopForward

            return hook

        def passed(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            return (hidden, None) if self.in_tuple else hidden

        blocks = list(self.editable.blocks)
        mask, cache = torch.ones_like(self.tail), None
        if self.prefix is not None:
            mask, cache = torch.cat([self.prefix.mask, mask], 1), FrozenCache(self.prefix)
        with torch.no_grad(), fused_activations(self.editable.model), ExitStack() as stack:
            for index in bypass:
                stack.enter_context(forward_replaced(blocks[index], passed))
            watched = [
                blocks[index].register_forward_pre_hook(keep_call(index), with_kwargs=True)
                for index in range(self.first, self.editable.depth)
            ]
            stack.enter_context(watching(*hooks, *watched))
            self.editable.model(
                input_ids=self.tail, attention_mask=mask, position_ids=positions(mask)[:, -self.tail.shape[1] :],
                past_key_values=cache, use_cache=cache is not None, logits_to_keep=1,
            )  # fmt: skip

    def replay(self, offset: Tensor) -> Tensor:
        """Output of the last block, (rows, tail length, hidden), with ``offset`` (rows, hidden) added at the lookup."""
        hidden = self.states
        hooks = []
        if self.at_projection:
            hooks.append(
                self.editable.projection(self.layer).register_forward_hook(lambda m, i, out: self._moved(out, offset))
            )
        else:
            hidden = self._moved(hidden, offset)
        with fused_activations(self.editable.model), watching(*hooks), _attention_kernel(hidden):
            for block, (args, kwargs) in zip(self.editable.blocks[self.first :], self.calls, strict=True):
                hidden = hidden_of(block(hidden, *args, **kwargs))
        return hidden

    def _moved(self, output: Tensor, offset: Tensor) -> Tensor:
        states = output.reshape(*self.tail.shape, -1).clone()
        states[:, 0] += offset.to(states.dtype)
        return states.reshape(output.shape)


def _attention_kernel(hidden: Tensor) -> AbstractContextManager[None]:
    """On short tails in half precision, PyTorch's CPU flash kernel is slower backwards than plain matrix products."""
    if hidden.device.type == "cpu" and hidden.dtype != torch.float32:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
