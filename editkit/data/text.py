"""Text as token windows, for second moments: the atlas's own text, or a file or folder of plain text."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from editkit.errors import InputError
from editkit.models.spans import encode, length_batches, pad


def read_documents(text: str, seed: int = 0) -> Iterator[str]:
    """Documents of a source, in a fixed order.

    Args:
        text: "atlas" (endless: the mix of prose, facts and probes that the atlas's model was trained on), a text file,
            or a folder of .txt files. Blank lines separate documents.
        seed: of the atlas's text.
    """
    if text == "atlas":
        from editkit.atlas.corpus import documents

        yield from documents(random.Random(f"moments {seed}"))
        return
    path = Path(text).expanduser()
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files or not all(f.is_file() for f in files):
        raise InputError(f"text: expected 'atlas', a text file or a folder of .txt files, but {text!r} is none of them")
    for file in files:
        try:
            content = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"text: {file} could not be read as UTF-8 text ({error}); convert it") from error
        yield from (part.strip() for part in content.split("\n\n") if part.strip())


def token_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, num_tokens: int, max_length: int, seed: int = 0
) -> list[tuple[int, ...]]:
    """Windows of at most ``max_length`` tokens, each within one document, ``num_tokens`` in all (or all there is).

    Raises:
        InputError: the text has no tokens.
    """
    windows: list[tuple[int, ...]] = []
    left = num_tokens
    documents = read_documents(text, seed)
    while left > 0 and (pending := list(islice(documents, 256))):
        for span in encode(tokenizer, pending):
            for start in range(0, len(span.ids), max_length):
                window = span.ids[start : min(start + max_length, start + left)]
                if window and left > 0:
                    windows.append(window)
                    left -= len(window)
    if not windows:
        raise InputError(f"text: expected at least one token of text, but {text!r} is empty; give a larger text")
    return windows


def window_loader(windows: list[tuple[int, ...]], max_tokens: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Right-padded (ids, mask) batches of windows of like lengths, at most ``max_tokens`` tokens each."""
    batches = [
        pad([windows[i] for i in batch], torch.device("cpu"))
        for batch in length_batches([len(w) for w in windows], max_tokens)
    ]
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
