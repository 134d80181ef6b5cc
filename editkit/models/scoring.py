"""How likely targets are after prompts, and what the model would have said there, each token run as seldom as can be.

A prompt is run once whatever the number of its targets; text that many prompts begin with (the examples of a few-shot
probe) is run once for all of them; a target of one token needs nothing beyond its prompt; the head is applied only
where a target token is predicted, once for all targets of a prompt. Rows of all records share padded batches of like
lengths under a token budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from editkit.functional.values import group_mean, token_nll
from editkit.models.caches import FrozenCache, PrefixKVCache
from editkit.models.editable import EditableModel, StopForward, hidden_of, watching
from editkit.models.fused import fused_activations
from editkit.models.prefixes import Tokens
from editkit.models.spans import encode, length_batches, pad, positions
from editkit.utils.errors import InputError, shorten

SHARED = 16  # tokens that prompts must have in common for these to be run on their own
HEAD_ROWS = 256  # rows of logits at a time


@dataclass(frozen=True)
class TargetScores:
    """What is known of N targets after their prompts.

    Attributes:
        total: (N,) float32, negative log-likelihood of the whole target in nats; NaN where ``fits`` is false.
        wanted: per target its token ids.
        predicted: per target the most likely token at each of its positions, the target's own tokens before it given
            (teacher forcing); empty where ``fits`` is false.
        fits: (N,) bool, whether prompt and target fit into the model's context window; else they were not run.
    """

    total: Tensor
    wanted: tuple[Tokens, ...]
    predicted: tuple[Tokens, ...]
    fits: Tensor

    @property
    def nll(self) -> Tensor:
        """(N,) mean negative log-likelihood per token, nats."""
        return self.total / torch.tensor([float(len(w)) for w in self.wanted])

    @property
    def matches(self) -> Tensor:
        """(N,) share of target tokens that are the most likely one at their place, 0 to 1; NaN where it does not fit.

        1 is an exact match: greedy decoding says the target.
        """
        return agreement(self.predicted, self.wanted)


def agreement(predicted: Sequence[Tokens], wanted: Sequence[Tokens]) -> Tensor:
    """(N,) share of equal tokens, position by position; NaN where nothing was predicted.

    >>> agreement([(3, 4), (), (5,)], [(3, 9), (1,), (5,)])
    tensor([0.5000,    nan, 1.0000])
    """
    shares = [
        sum(a == b for a, b in zip(p, w, strict=True)) / len(w) if p else float("nan")
        for p, w in zip(predicted, wanted, strict=True)
    ]
    return torch.tensor(shares)


@torch.no_grad()
def score_targets(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    targets: Sequence[str],
    separator: str = " ",
    max_tokens: int = 8192,
) -> TargetScores:
    """Score each target after its prompt.

    Args:
        editable: the model.
        tokenizer: its fast tokenizer. Prompt and target are tokenised together; a target's tokens are those that hold
            a character of it, so a BOS or the space before it is none of them.
        prompts: N prompts; trailing spaces are dropped.
        targets: N targets, without their leading space.
        separator: what stands between prompt and target.
        max_tokens: tokens per padded batch.

    Raises:
        InputError: a prompt that leaves no token before its target's first one.
    """
    pairs = [(p.rstrip(" "), t) for p, t in zip(editable.in_context(prompts), targets, strict=True)]
    distinct = list(dict.fromkeys(pairs))
    starts = [len(p) + len(separator) - 1 for p, _ in distinct]
    spans = encode(tokenizer, [f"{p}{separator}{t}" for p, t in distinct], target_starts=starts)
    work = _Work(editable, [s.ids[: s.target] for s in spans], [s.ids[s.target :] for s in spans], max_tokens)
    for (prompt, target), span in zip(distinct, spans, strict=True):
        if span.target == 0 or span.target == len(span.ids):
            raise InputError(
                f"prompt: expected at least one token before the target {shorten(target)} and one of it, but "
                f"{shorten(prompt)} leaves none; give a longer prompt"
            )
    work.run()
    where = {pair: i for i, pair in enumerate(distinct)}
    index = [where[pair] for pair in pairs]
    total = torch.tensor(work.sums).where(work.fits, torch.nan)
    return TargetScores(
        total[index],
        tuple(work.wanted[i] for i in index),
        tuple(tuple(work.predicted[i]) for i in index),
        work.fits[index],
    )


def target_nll(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    targets: Sequence[str],
    max_tokens: int = 8192,
) -> Tensor:
    """Mean negative log-likelihood per token of each target after its prompt and one space; (N,) float32, nats."""
    return score_targets(editable, tokenizer, prompts, targets, max_tokens=max_tokens).nll


@torch.no_grad()
def window_nll(editable: EditableModel, windows: Sequence[Tokens], max_tokens: int = 4096) -> Tensor:
    """Negative log-likelihood of each window of tokens, from its second token on: (N,) float32, nats in all."""
    found = torch.zeros(len(windows))
    for batch in length_batches([len(w) for w in windows], max_tokens):
        ids, mask = pad([windows[i] for i in batch], editable.device)
        hidden = run(editable, ids, mask, None)
        row, at = mask[:, 1:].nonzero(as_tuple=True)
        nll = [
            token_nll(editable.head(hidden[r, a]), ids[r, a + 1])
            for r, a in zip(row.split(HEAD_ROWS), at.split(HEAD_ROWS), strict=True)
        ]
        counts = mask[:, 1:].sum(1).float()
        found[batch] = (group_mean(torch.cat(nll), row, len(batch)) * counts).float().cpu()
    return found


def run(editable: EditableModel, ids: Tensor, mask: Tensor, cache: DynamicCache | None) -> Tensor:
    """Output of the last block on ``ids``, (rows, length, hidden), before final norm and head.

    With gradients where they are enabled and something of the model wants some.

    Args:
        editable: the model.
        ids: (rows, length).
        mask: (rows, cached + length), 1 for tokens, 0 for padding.
        cache: keys and values of the tokens before these, which the model may add to; None: there are none.
    """
    hidden: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: object) -> None:
        hidden.append(hidden_of(output))
        raise StopForward

    hook = editable.blocks[-1].register_forward_hook(keep)
    with fused_activations(editable.model), watching(hook):
        editable.model(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask)[:, -ids.shape[1] :],
            past_key_values=cache, use_cache=cache is not None, logits_to_keep=1,
        )  # fmt: skip
    return hidden[0]


class _Work:
    """Distinct pairs of a prefix (all tokens before the target) and a target's tokens, and what is found of them."""

    def __init__(
        self, editable: EditableModel, prefixes: Sequence[Tokens], wanted: Sequence[Tokens], max_tokens: int
    ) -> None:
        self.editable, self.wanted, self.max_tokens = editable, wanted, max_tokens
        self.sums = [0.0] * len(wanted)
        self.predicted: list[list[int]] = [[] for _ in wanted]
        lengths = torch.tensor([len(p) + len(w) for p, w in zip(prefixes, wanted, strict=True)], dtype=torch.long)
        self.fits = lengths <= editable.context
        self.targets_of: dict[Tokens, list[int]] = {}
        for i, prefix in enumerate(prefixes):
            if self.fits[i]:
                self.targets_of.setdefault(prefix, []).append(i)

    def run(self) -> None:
        """Run every prefix once, and the targets' further tokens after it."""
        alone: list[Tokens] = []
        for shared, members in shared_groups(list(self.targets_of)):
            if not shared:
                alone += members
                continue
            cache = DynamicCache()
            ids, mask = pad([members[0][:shared]], self.editable.device)
            run(self.editable, ids, mask, cache)
            start = _cached(cache, mask)
            # rests of equal length only: padding between what is cached and what follows would shift distances
            for _, same in groupby(sorted(members, key=len), key=len):
                rows = list(same)
                many = max(1, self.max_tokens // len(rows[0]))
                for part in (rows[i : i + many] for i in range(0, len(rows), many)):
                    rest = torch.tensor([prefix[shared:] for prefix in part], device=self.editable.device)
                    self._prompts(part, rest, torch.ones_like(rest), start)
        for batch in length_batches([len(p) for p in alone], self.max_tokens):
            part = [alone[i] for i in batch]
            self._prompts(part, *pad(part, self.editable.device, left=True), None)

    def _prompts(self, prefixes: list[Tokens], ids: Tensor, mask: Tensor, start: PrefixKVCache | None) -> None:
        """Prefixes, padded on the left: first tokens of their targets are read off their last position."""
        targets = [(row, i) for row, prefix in enumerate(prefixes) for i in self.targets_of[prefix]]
        longer = [(row, i) for row, i in targets if len(self.wanted[i]) > 1]
        cache = None
        if start is not None:
            rows = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
            started = start.select(rows)
            mask = torch.cat([started.mask, mask], 1)
            cache = DynamicCache() if longer else FrozenCache(started)
            if longer:
                for layer, pair in enumerate(started.layers):
                    assert pair is not None
                    cache.update(*pair, layer)
        elif longer:
            cache = DynamicCache()
        last = run(self.editable, ids, mask, cache)[:, -1]
        self._read(last, [(row, i, 0) for row, i in targets])
        if longer and cache is not None:
            self._tails(longer, _cached(cache, mask))

    def _tails(self, targets: list[tuple[int, int]], cache: PrefixKVCache) -> None:
        """Tokens after the first of targets that have several: run on what attention kept of their prefixes."""
        device = self.editable.device
        for batch in length_batches([len(self.wanted[i]) - 1 for _, i in targets], self.max_tokens // 8 or 1):
            part = [targets[n] for n in batch]
            ids, mask = pad([self.wanted[i][:-1] for _, i in part], device)
            prefix = cache.select(torch.tensor([row for row, _ in part], device=device))
            hidden = run(self.editable, ids, torch.cat([prefix.mask, mask], 1), FrozenCache(prefix))
            row, at = mask.nonzero(as_tuple=True)
            places = [(n, part[r][1], a + 1) for n, (r, a) in enumerate(zip(row.tolist(), at.tolist(), strict=True))]
            self._read(hidden[row, at], places)

    def _read(self, states: Tensor, places: list[tuple[int, int, int]]) -> None:
        """Add what states say: (n, i, at) is the n-th state, which predicts token ``at`` of target ``i``."""
        for first in range(0, len(states), HEAD_ROWS):
            here = [(n - first, i, at) for n, i, at in places if first <= n < first + HEAD_ROWS]
            logits = self.editable.head(states[first : first + HEAD_ROWS])
            norm, best = logits.logsumexp(-1), logits.argmax(-1).tolist()
            rows = torch.tensor([n for n, _, _ in here], device=states.device)
            wanted = torch.tensor([self.wanted[i][at] for _, i, at in here], device=states.device)
            nll = (norm[rows] - logits[rows, wanted]).tolist()
            for (n, i, _), value in zip(here, nll, strict=True):
                self.sums[i] += value
                self.predicted[i].append(best[n])


def shared_groups(prefixes: Sequence[Tokens]) -> list[tuple[int, list[Tokens]]]:
    """Group distinct prefixes by a long common beginning: (its length, members), length 0 where there is none.

    A beginning leaves at least one token of each member.

    >>> shots = tuple(range(20))
    >>> shared_groups([(*shots, 50), (7, 8), (*shots, 60, 61)])
    [(0, [(7, 8)]), (20, [(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 50), \
(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 60, 61)])]
    """
    groups: list[tuple[int, list[Tokens]]] = []
    for prefix in sorted(prefixes):
        if groups:
            shared, members = groups[-1]
            most = min(len(prefix) - 1, shared if len(members) > 1 else len(members[0]) - 1)
            common = next((n for n in range(most) if prefix[n] != members[0][n]), most)
            if common >= max(SHARED, shared // 2):  # a stranger must not cut short what the others share
                members.append(prefix)
                groups[-1] = (common, members)
                continue
        groups.append((0, [prefix]))
    alone = [members[0] for _, members in groups if len(members) == 1]
    return [(0, alone)] * bool(alone) + [g for g in groups if len(g[1]) > 1]


def _cached(cache: DynamicCache, mask: Tensor) -> PrefixKVCache:
    layers: list[Any] = cache.layers
    return PrefixKVCache([(layer.keys, layer.values) for layer in layers], mask)
