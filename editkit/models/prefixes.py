"""What attention keeps of the text before an edit: keys and values of prefixes, each token run as seldom as can be.

Text that many prefixes begin with (a context template's prefix) is run once for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_tensor

from editkit.models.caches import GrowingCache, PrefixKVCache
from editkit.models.editable import EditableModel, watching
from editkit.models.fused import fused_activations
from editkit.models.spans import pad, positions

Tokens = tuple[int, ...]


def shared_starts(prefixes: Sequence[Tokens]) -> list[int]:
    """Per prefix, how many of its first tokens to run once for all that begin with them: what saves most tokens.

    >>> shared_starts([(1, 2, 3), (1, 2, 4), (5, 6)])
    [2, 2, 0]
    """
    begins = Counter(prefix[:n] for prefix in prefixes for n in range(1, len(prefix) + 1))

    def saved(prefix: Tokens, n: int) -> int:
        return n * (begins[prefix[:n]] - 1)

    return [max(range(len(p) + 1), key=lambda n: (saved(p, n) if n else 0, -n)) for p in prefixes]


def run_prefixes(editable: EditableModel, prefixes: Sequence[Tokens]) -> tuple[PrefixKVCache, dict[Tokens, int]]:
    """Keys and values of all blocks on distinct ``prefixes`` (none empty), and the row of each; starts run once."""
    starts = shared_starts(prefixes)
    distinct = list(dict.fromkeys(p[:n] for p, n in zip(prefixes, starts, strict=True) if n))
    place = {start: i for i, start in enumerate(distinct)}
    shared = grow(editable, *pad(distinct, editable.device, left=True), None) if distinct else None

    # what remains is run with what has exactly as many tokens left: padding between a start and its continuation
    # would shift the distances that sliding windows and ALiBi go by
    parts: dict[tuple[bool, int], list[tuple[Tokens, int]]] = {}
    for prefix, n in zip(prefixes, starts, strict=True):
        parts.setdefault((n > 0, len(prefix) - n if n else 0), []).append((prefix, n))
    found: list[PrefixKVCache] = []
    for (continues, left), members in parts.items():
        if not continues or shared is None:
            found.append(grow(editable, *pad([p for p, _ in members], editable.device, left=True), None))
            continue
        start = shared.select(torch.tensor([place[p[:n]] for p, n in members], device=editable.device))
        if left:
            rest = torch.tensor([p[n:] for p, n in members], device=editable.device)
            start = grow(editable, rest, torch.cat([start.mask, torch.ones_like(rest)], 1), start)
        found.append(start)
    rows = [prefix for members in parts.values() for prefix, _ in members]
    return _joined(found), {prefix: i for i, prefix in enumerate(rows)}


def grow(editable: EditableModel, ids: Tensor, mask: Tensor, start: PrefixKVCache | None) -> PrefixKVCache:
    """Keys and values of all blocks on rows of prefixes, after those of ``start``.

    Args:
        editable: the model.
        ids: (rows, length).
        mask: (rows, started + length), 1 for tokens, 0 for padding, on the left.
        start: what attention kept of the tokens before these, or None where there are none.
    """
    cache = GrowingCache(editable.depth, start)
    with torch.no_grad(), fused_activations(editable.model), watching():
        editable.model(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask)[:, -ids.shape[1] :],
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
    layers: list[Any] = cache.layers
    return PrefixKVCache([(layer.keys, layer.values) for layer in layers], mask)


def _joined(parts: list[PrefixKVCache]) -> PrefixKVCache:
    """One under the other, padded on the left to the longest."""
    width = max(part.mask.shape[1] for part in parts)
    missing = [width - part.mask.shape[1] for part in parts]
    layers: list[tuple[Tensor, Tensor] | None] = []
    for pairs in zip(*(part.layers for part in parts), strict=True):
        keys, values = zip(*pairs, strict=True)
        layers.append(
            (
                torch.cat([pad_tensor(k, (0, 0, n, 0)) for k, n in zip(keys, missing, strict=True)]),
                torch.cat([pad_tensor(v, (0, 0, n, 0)) for v, n in zip(values, missing, strict=True)]),
            )
        )
    return PrefixKVCache(
        layers, torch.cat([pad_tensor(part.mask, (n, 0)) for part, n in zip(parts, missing, strict=True)])
    )
