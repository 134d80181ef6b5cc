"""From text to tokens: where the subject ends and which tokens are the target, found by character offsets.

Offsets, not token counts of pieces: a subject's last token may merge with what follows, tokenisers may put a marker
for a leading space or a BOS in front, and a piece tokenised alone need not be what it is inside the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from editkit.utils.errors import InputError


class SubjectPrompt(Protocol):
    """What has a prompt about a subject, such as ``editkit.Fact``."""

    @property
    def subject(self) -> str:
        """What it is about."""

    @property
    def prompt(self) -> str:
        """Text with one "{}" where the subject goes."""


@dataclass(frozen=True)
class Span:
    """One tokenised text.

    Attributes:
        ids: token ids, BOS included where the tokenizer adds one.
        lookup: index of the token that holds the subject's last character, or -1.
        target: index of the first target token, or len(ids).
    """

    ids: tuple[int, ...]
    lookup: int = -1
    target: int = -1


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    subject_ends: Sequence[int] | None = None,
    target_starts: Sequence[int] | None = None,
) -> list[Span]:
    """Tokenise texts and find their lookup tokens and targets.

    Args:
        tokenizer: a fast tokenizer (one that gives offsets).
        texts: the texts, special tokens not included.
        subject_ends: per text, the character index just after the subject.
        target_starts: per text, the character index at which the target (with its leading space) starts.

    Returns:
        One ``Span`` per text. Special tokens that the tokenizer appends at the end are dropped.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"tokenizer: expected a fast tokenizer, which gives character offsets, but got {type(tokenizer).__name__}; "
            "load it with AutoTokenizer.from_pretrained(..., use_fast=True)"
        )
    if not texts:
        return []
    # not verbose: a text longer than the model's context window is whoever runs it's to report, by name
    coded = tokenizer(list(texts), return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    spans = []
    for i, ids in enumerate(coded["input_ids"]):
        offsets, special = coded["offset_mapping"][i], coded["special_tokens_mask"][i]
        length = len(ids)
        while length and special[length - 1]:
            length -= 1
        lookup, target = -1, length
        for t in range(length):
            start, end = offsets[t]
            if special[t]:
                continue
            if subject_ends is not None and start < subject_ends[i] <= max(end, start + 1):
                lookup = t
            # a target token is one that holds a character of the target other than its leading space
            if target_starts is not None and target == length and end > target_starts[i] + 1:
                target = t
        spans.append(Span(tuple(ids[:length]), lookup, target))
    return spans


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[SubjectPrompt],
    templates: Sequence[str],
    target: str | None = None,
) -> list[Span]:
    """Every fact in every context template (fact-major), with the target appended where one is asked for.

    Args:
        tokenizer: a fast tokenizer.
        facts: the facts.
        templates: context templates with one "{}" for the prompt.
        target: None for the text up to the subject's end only (all that a key depends on), else the name of the
            ``Fact`` field to append after one space, e.g. "target_new".
    """
    texts, ends, starts = [], [], []
    for fact in facts:
        for template in templates:
            before, after = template.split("{}")
            head, tail = fact.prompt.split("{}")
            text = before + head + fact.subject
            ends.append(len(text))
            text += tail + after
            if target is not None:
                text = text.rstrip()
                starts.append(len(text))
                text += " " + getattr(fact, target)
            texts.append(text)
    spans = encode(tokenizer, texts, ends, starts if target is not None else None)
    if target is None:
        # the whole prompt was tokenised, so that the subject's last token is what it is in the prompt
        spans = [Span(s.ids[: s.lookup + 1], s.lookup) for s in spans]
    for i, span in enumerate(spans):
        if span.lookup < 0:
            fact = facts[i // len(templates)]
            raise InputError(f"subject: no token of {texts[i]!r} holds the end of {fact.subject!r}; check the prompt")
    return spans


def pad(rows: Iterable[Sequence[int]], device: torch.device, left: bool = False) -> tuple[Tensor, Tensor]:
    """Token rows as (rows, length) ids and mask, padded on the right or the left with id 0 under a 0 mask."""
    rows = list(rows)
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = 1
    return ids.to(device), mask.to(device)


def positions(mask: Tensor) -> Tensor:
    """Position ids of padded rows: 0 at each row's first token, (rows, length) long.

    >>> positions(torch.tensor([[0, 1, 1]]))
    tensor([[0, 0, 1]])
    """
    return (mask.cumsum(-1) - 1).clamp(min=0)


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices grouped so that each padded batch has at most ``max_tokens`` tokens, rows of like lengths together.

    >>> length_batches([5, 1, 4, 1], max_tokens=8)
    [[0], [2, 1], [3]]
    """
    batches: list[list[int]] = []
    width = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * width > max_tokens:
            batches.append([])
            width = lengths[i]
        batches[-1].append(i)
    return batches
