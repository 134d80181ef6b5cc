"""``model.generate`` of transformers under prompt edits: the context goes in front, and does not come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate_in_context(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context_of: Callable[[str], str]
) -> Callable[[], None]:
    """Let text stand before each prompt that ``model.generate`` is called with.

    The prompt is decoded, its context found, both are tokenised together, and what comes back is the caller's own
    prompt followed by the continuation. The call on several rows is padded on the left as transformers wants it.

    Args:
        model: whose ``generate`` is replaced, on this object alone.
        tokenizer: its tokenizer.
        context_of: from a prompt to the text before it; empty for none.

    Returns:
        What puts ``generate`` back.
    """
    before = model.__dict__.get("generate")
    generate: Callable[..., Any] = model.generate  # type: ignore[assignment]

    def in_context(inputs: Tensor | None = None, *args: Any, **options: Any) -> Any:
        ids = options.pop("input_ids", None) if inputs is None else inputs
        if ids is None:
            return generate(*args, **options)
        given = options.pop("attention_mask", None)
        mask = torch.ones_like(ids) if given is None else given
        texts = [
            str(tokenizer.decode(row[keep.bool()], skip_special_tokens=True))
            for row, keep in zip(ids, mask, strict=True)
        ]
        contexts = [context_of(text) for text in texts]
        if not any(contexts):
            return generate(ids, *args, attention_mask=given, **options)
        rows = [
            torch.tensor(tokenizer(context + text)["input_ids"], device=ids.device) if context else row[keep.bool()]
            for context, text, row, keep in zip(contexts, texts, ids, mask, strict=True)
        ]
        width = max(map(len, rows))
        longer = torch.zeros(len(rows), width, dtype=ids.dtype, device=ids.device)
        longer_mask = torch.zeros_like(longer)
        for i, row in enumerate(rows):
            longer[i, width - len(row) :], longer_mask[i, width - len(row) :] = row, 1
        for name in ("max_length", "min_length"):  # which count the prompt
            if options.get(name) is not None:
                options[name] += width - ids.shape[1]
        found = generate(longer, *args, attention_mask=longer_mask, **options)
        sequences = found if isinstance(found, Tensor) else found.sequences
        times = len(sequences) // len(ids)  # sequences that are returned for each prompt
        shown = torch.cat([ids.repeat_interleave(times, 0), sequences[:, width:]], 1)
        if isinstance(found, Tensor):
            return shown
        found.sequences = shown
        return found

    model.__dict__["generate"] = in_context

    def put_back() -> None:
        if before is None:
            model.__dict__.pop("generate", None)
        else:
            model.__dict__["generate"] = before

    return put_back
