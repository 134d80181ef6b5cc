"""Continuations of many prompts at once: greedy or seeded top-k, with keys and values written where they will stay.

Generation reads all weights once a step whatever the number of rows, so rows of many records go together. Rows that are
done leave. What a row says does not depend on its neighbours: padding stands on the left, under a mask, and each row
draws from a generator of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from editkit.models.caches import PreallocatedCache
from editkit.models.editable import EditableModel
from editkit.models.fused import fused_activations
from editkit.models.prefixes import Tokens
from editkit.models.scoring import run
from editkit.models.spans import encode, pad, positions
from editkit.utils.files import digest
from editkit.utils.memory import free_bytes

CPU_BYTES = 1 << 30  # of keys and values at a time
COMPACT = 8  # rows that are done leave once they are one in so many


@torch.no_grad()
def generate(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: int | Sequence[int],
    top_k: int = 1,
    seed: int = 0,
    names: Sequence[str] | None = None,
    max_rows: int | None = None,
) -> list[Tokens]:
    """Continue each prompt.

    Args:
        editable: the model.
        tokenizer: its fast tokenizer; its end-of-text token ends a continuation.
        prompts: N prompts; trailing spaces are dropped.
        new_tokens: tokens of a continuation at most, one number for all or one each. Fewer where the model's context
            window ends, none where the prompt alone fills it.
        top_k: 1: the most likely token; k: one of the k most likely, drawn by their probabilities.
        seed: of the draws.
        names: N names; a row's draws depend on ``seed`` and its name alone. Default: the prompt, and which of several
            equal ones it is.
        max_rows: rows at a time; default: as many as 1 GiB of keys and values takes (on a GPU, a third of what is
            free).

    Returns:
        N continuations, the end-of-text token excluded.
    """
    spans = [s.ids for s in encode(tokenizer, [p.rstrip(" ") for p in editable.in_context(prompts)])]
    limits = [new_tokens] * len(spans) if isinstance(new_tokens, int) else list(new_tokens)
    lengths = [min(n, editable.context - len(ids)) for n, ids in zip(limits, spans, strict=True)]
    continuations: list[Tokens] = [()] * len(spans)
    rows = sorted((i for i, n in enumerate(lengths) if n > 0 and spans[i]), key=lambda i: -len(spans[i]))
    if not rows:
        return continuations
    names = names or _names(prompts)
    many = max_rows or _rows_at_a_time(editable, max(len(spans[i]) + lengths[i] for i in rows))
    many = -(-len(rows) // -(-len(rows) // many))  # batches of like sizes
    for first in range(0, len(rows), many):
        batch = rows[first : first + many]
        uniform = torch.stack([_uniform(seed, names[i], max(lengths)) for i in batch]) if top_k > 1 else None
        found = _together(
            editable, [spans[i] for i in batch], [lengths[i] for i in batch], top_k, uniform, tokenizer.eos_token_id
        )
        for i, tokens in zip(batch, found, strict=True):
            continuations[i] = tokens
    return continuations


def continue_greedily(
    editable: EditableModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], new_tokens: int = 8
) -> list[str]:
    """The model's most likely words after each prompt, ``new_tokens`` tokens of them, without the prompt."""
    return [str(tokenizer.decode(list(tokens))) for tokens in generate(editable, tokenizer, prompts, new_tokens)]


def _together(
    editable: EditableModel,
    prompts: Sequence[Tokens],
    lengths: Sequence[int],
    top_k: int,
    uniform: Tensor | None,
    end: int | None,
) -> list[Tokens]:
    """Continuations of one batch of rows; ``uniform`` is (rows, steps), one number in [0, 1) for each token."""
    device, steps = editable.device, max(lengths)
    step_ids, mask = pad(prompts, device, left=True)
    cache = PreallocatedCache(mask.shape[1] + steps)
    left = torch.tensor(lengths, device=device)
    row = torch.arange(len(prompts), device=device)  # which prompt each row is
    continuations = torch.full((len(prompts), steps), -1, dtype=torch.long, device=device)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    uniform = None if uniform is None else uniform.to(device)
    with fused_activations(editable.model):
        for step in range(steps):
            if step == 0:  # the head on rows cut out of a batch of prompts takes a slow path on a CPU
                logits = editable.head(run(editable, step_ids, mask, cache)[:, -1])
            else:
                at = positions(mask)[:, -1:].clamp(max=editable.context - 1)  # rows that are done go on
                logits = editable.model(
                    input_ids=step_ids, attention_mask=mask, position_ids=at, past_key_values=cache, use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]  # fmt: skip
            cache.advance(step_ids.shape[1])
            chosen = _choose(logits, top_k, None if uniform is None else uniform[row, step])
            if end is not None:
                done |= chosen == end
            continuations[row[~done], step] = chosen[~done]
            done |= left[row] <= step + 1
            finished = int(done.sum())
            if finished == len(row):
                break
            if finished * COMPACT >= len(row):
                stay = (~done).nonzero().flatten()
                cache.keep(stay)
                row, mask, chosen, done = row[stay], mask[stay], chosen[stay], done[stay]
            step_ids = chosen[:, None]
            mask = torch.cat([mask, torch.ones_like(step_ids)], 1)
    return [tuple(t for t in tokens if t >= 0) for tokens in continuations.tolist()]


def _choose(logits: Tensor, top_k: int, uniform: Tensor | None) -> Tensor:
    """(rows,) token ids: the most likely, or by inverting the distribution function of the ``top_k`` most likely."""
    if uniform is None:
        return logits.argmax(-1)
    best, index = logits.topk(min(top_k, logits.shape[-1]))
    below = best.float().softmax(-1).cumsum(-1)
    place = (below < uniform[:, None] * below[:, -1:]).sum(-1, keepdim=True)
    return index.gather(1, place.clamp(max=index.shape[1] - 1)).squeeze(1)


def _uniform(seed: int, name: str, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(int(digest(seed, name), 16) % 2**63)
    return torch.rand(count, generator=generator)


def _names(prompts: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    names = []
    for prompt in prompts:
        names.append(f"{prompt}\0{seen[prompt]}")
        seen[prompt] += 1
    return names


def _rows_at_a_time(editable: EditableModel, length: int) -> int:
    """How many rows of ``length`` tokens: as if keys and values were as wide as the residual stream."""
    config = editable.model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    width = max(editable.hidden_size, heads * (getattr(config, "head_dim", None) or 0))
    dtype = editable.model.dtype
    row = 2 * editable.depth * width * length * dtype.itemsize
    limit = free_bytes(editable.device) // 3 if editable.device.type == "cuda" else CPU_BYTES
    return max(1, limit // row)
