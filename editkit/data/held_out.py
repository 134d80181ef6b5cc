"""Held-out text, cut into windows whose likelihood is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from jsonargparse.typing import PositiveInt
from transformers import PreTrainedTokenizerBase

from editkit.atlas.builtin import DEFAULT
from editkit.data.rows import TextRow
from editkit.data.text import TextSource, open_text
from editkit.data.windows import windows, within_budget
from editkit.utils.errors import InputError


@dataclass
class HeldOutText(TextSource):
    """Text whose perplexity is measured.

    Args:
        text: as for ``TextSource``; default the atlas's.
        num_tokens: tokens of it, from its start.
    """

    text: str = DEFAULT
    seed: int = 1  # the atlas's text for second moments is drawn with 0
    num_tokens: PositiveInt = 20_000


def text_rows(source: HeldOutText, tokenizer: PreTrainedTokenizerBase, context: int) -> list[TextRow]:
    """The windows of a text, each at most as long as the model's context window.

    Raises:
        InputError: the text cannot be read, or has no window of two tokens.
    """
    source = replace(source, max_length=min(source.max_length, context))
    with named_as("data.text."):
        found = within_budget(windows(tokenizer, open_text(source), source), source.num_tokens)
        rows = [TextRow(i, w.ids) for i, w in enumerate(found) if len(w.ids) > 1]
    if not rows:
        raise InputError(
            f"data.text: expected windows of at least two tokens, but {source.text!r} has none with max_length "
            f"{source.max_length}; give another text, or a larger max_length"
        )
    return rows


@contextmanager
def named_as(prefix: str) -> Iterator[None]:
    """Errors about a text inside the block name its options by another prefix than that of second moments."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("second_moment.", prefix)) from error
