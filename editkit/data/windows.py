"""Text as rounds of token windows: the same batches, in the same order, on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from editkit.data.text import Text, TextSource
from editkit.models.spans import length_batches, pad
from editkit.utils.distributed import rank_and_size
from editkit.utils.errors import InputError

DOCUMENTS = 256  # tokenised at once
CHUNK = 65_536  # tokens among which windows of like lengths are batched


@dataclass(frozen=True)
class Window:
    """Tokens of one forward row.

    Attributes:
        ids: at most ``max_length`` of them.
        documents: documents begun by the end of this window, from the start of the text.
        number: its place among the text's windows.
    """

    ids: tuple[int, ...]
    documents: int
    number: int


@dataclass
class Round:
    """One batch for each process, or none for some.

    Attributes:
        ids: (rows, length) this process's tokens, padded on the right; no rows where it has none this time.
        mask: (rows, length) 1 for tokens, 0 for padding.
        batches: number of batches, over all processes and from the start of the text, that end with this round.
        tokens: their tokens.
        documents: documents in them.
        check: whether the token count has doubled since the last check.
        numbers: of the rows' windows, their places in the text.
    """

    ids: Tensor
    mask: Tensor
    batches: int
    tokens: int
    documents: int
    check: bool
    numbers: tuple[int, ...] = ()


def windows(
    tokenizer: PreTrainedTokenizerBase, text: Text, source: TextSource, num_documents: int | None = None
) -> Iterator[Window]:
    """Cut text, or its first ``num_documents``, into windows, lazily.

    Raises:
        InputError: packing is asked of a tokenizer without an end-of-text token.
    """
    first = tokenizer("a", return_special_tokens_mask=True)
    prefix = []  # such as a BOS; what a tokenizer puts at the end is dropped
    for token, special in zip(first["input_ids"], first["special_tokens_mask"], strict=True):
        if not special:
            break
        prefix.append(token)
    if source.packing and tokenizer.eos_token_id is None:
        raise InputError(
            "second_moment.packing: expected a tokenizer with an end-of-text token, but it has none; set false"
        )
    documents, begun, numbers = islice(text.documents(), num_documents), 0, count()
    buffer: list[int] = []
    while pending := list(islice(documents, DOCUMENTS)):
        coded = tokenizer(pending, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        for ids in coded:
            if not ids:
                continue
            begun += 1
            buffer += [*prefix, *ids]
            if source.packing:
                buffer.append(tokenizer.eos_token_id)
            end = len(buffer) - len(buffer) % source.max_length if source.packing else len(buffer)
            for start in range(0, end, source.max_length):
                yield Window(tuple(buffer[start : start + source.max_length]), begun, next(numbers))
            buffer = buffer[end:]
    if buffer:
        yield Window(tuple(buffer), begun, next(numbers))


def within_budget(found: Iterator[Window], num_tokens: int | None) -> Iterator[Window]:
    """The windows of the first ``num_tokens`` tokens, the last one cut to fit."""
    left = num_tokens
    for window in found:
        if left is None:
            yield window
            continue
        yield replace(window, ids=window.ids[:left])
        left -= len(window.ids)
        if left <= 0:
            return


class Rounds(IterableDataset[Round]):
    """Batches dealt out to processes in turn: batch b of a round goes to rank b.

    Every process reads and tokenises all the text (cheap beside a forward) and keeps its own share of batches, so
    nothing depends on how many processes there are, and a run may go on with another number of them.

    Args:
        data: says how large batches are, how many were done before, and when to stop.
        found: windows of the text, from its start.
    """

    def __init__(self, data: TextDataModule, found: Iterator[Window]) -> None:
        self.data, self.found = data, found

    @override
    def __iter__(self) -> Iterator[Round]:
        rank, world = rank_and_size()
        mine: list[Window] = []
        tokens = documents = number = slot = 0
        check_at = self.data.first_check
        for batch in self._batches():
            if self.data.stopped:
                return
            number += 1
            tokens += sum(len(w.ids) for w in batch)
            documents = max(documents, max(w.documents for w in batch))
            check = check_at is not None and tokens >= check_at
            while check_at is not None and tokens >= check_at:
                check_at *= 2
            if number <= self.data.batches_done:
                continue
            if slot == rank:
                mine = batch
            slot += 1
            if slot == world or check:  # a check ends a round early, so that it falls on the same token for all
                yield self._round(mine, number, tokens, documents, check)
                mine, slot = [], 0
        if slot:
            yield self._round(mine, number, tokens, documents, False)

    def _batches(self) -> Iterator[list[Window]]:
        found = iter(self.found)
        while chunk := list(_chunk(found)):
            for batch in length_batches([len(w.ids) for w in chunk], self.data.max_tokens):
                yield [chunk[i] for i in batch]

    @staticmethod
    def _round(mine: list[Window], number: int, tokens: int, documents: int, check: bool) -> Round:
        cpu = torch.device("cpu")
        ids, mask = pad([w.ids for w in mine], cpu) if mine else torch.zeros(2, 0, 1, dtype=torch.long)
        return Round(ids, mask, number, tokens, documents, check, tuple(w.number for w in mine))


def _chunk(found: Iterator[Window]) -> Iterator[Window]:
    tokens = 0
    while tokens < CHUNK and (window := next(found, None)) is not None:
        tokens += len(window.ids)
        yield window


class TextDataModule(L.LightningDataModule):
    """Text in rounds, for ``Trainer.predict``.

    Args:
        tokenizer: a fast tokenizer.
        text: the text.
        source: how it is cut.
        num_tokens: tokens to take at most.
        num_documents: documents to take at most.
        max_tokens: tokens per padded batch.
        first_check: token count of the first check for convergence; None for none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text: Text,
        source: TextSource,
        num_tokens: int | None,
        num_documents: int | None,
        max_tokens: int,
        first_check: int | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer, self.text, self.source = tokenizer, text, source
        self.num_tokens, self.num_documents = num_tokens, num_documents
        self.max_tokens, self.first_check = max_tokens, first_check
        self.batches_done, self.stopped = 0, False

    def begin_after(self, batches: int) -> None:
        """Leave out batches that were seen before."""
        self.batches_done = batches

    def stop(self) -> None:
        """Give no more rounds."""
        self.stopped = True

    @override
    def predict_dataloader(self) -> DataLoader[Round]:
        cut = windows(self.tokenizer, self.text, self.source, self.num_documents)
        found = within_budget(cut, self.num_tokens)
        return DataLoader(Rounds(self, found), batch_size=None)
