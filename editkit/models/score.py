"""Log-likelihoods of targets after prompts, and greedy continuations, in padded batches under a token budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from editkit.functional.values import group_mean, token_nll
from editkit.models.family import Family, StopForward, hidden_of, watching
from editkit.models.spans import encode, length_batches, pad, positions


@torch.no_grad()
def target_nll(
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    targets: Sequence[str],
    max_tokens: int = 8192,
) -> Tensor:
    """Mean negative log-likelihood per token of each target after its prompt and one space.

    Equal pairs are run once; the head is applied only where a target token is predicted.

    Args:
        family: the model.
        tokenizer: its fast tokenizer.
        prompts: N prompts; trailing spaces are dropped.
        targets: N targets, without their leading space.
        max_tokens: tokens per padded batch.

    Returns:
        (N,) float32 on the CPU, nats per token.
    """
    pairs = [(p.rstrip(), t) for p, t in zip(prompts, targets, strict=True)]
    distinct = list(dict.fromkeys(pairs))
    spans = encode(tokenizer, [f"{p} {t}" for p, t in distinct], target_starts=[len(p) for p, _ in distinct])
    found = torch.zeros(len(distinct))
    for batch in length_batches([len(s.ids) for s in spans], max_tokens):
        ids, mask = pad([spans[i].ids[:-1] for i in batch], family.device)
        hidden = last_hidden(family, ids, mask)
        row = [r for r, i in enumerate(batch) for _ in spans[i].ids[spans[i].target :]]
        place = [p for i in batch for p in range(spans[i].target - 1, len(spans[i].ids) - 1)]
        wanted = torch.tensor([t for i in batch for t in spans[i].ids[spans[i].target :]], device=ids.device)
        nll = group_mean(
            token_nll(family.head(hidden[row, place]), wanted), torch.tensor(row, device=ids.device), len(batch)
        )
        found[batch] = nll.float().cpu()
    where = {pair: i for i, pair in enumerate(distinct)}
    return found[[where[pair] for pair in pairs]]


def last_hidden(family: Family, ids: Tensor, mask: Tensor) -> Tensor:
    """Output of the last block, (rows, length, hidden), before final norm and head."""
    kept: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: object) -> None:
        kept.append(hidden_of(output))
        raise StopForward

    with watching(family.blocks[-1].register_forward_hook(keep)):
        family.model(input_ids=ids, attention_mask=mask, use_cache=False)
    return kept[0]


@torch.no_grad()
def continue_greedily(
    family: Family, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], new_tokens: int = 8
) -> list[str]:
    """The model's most likely words after each prompt, ``new_tokens`` tokens of them, without the prompt."""
    if not prompts:
        return []
    ids, mask = pad([s.ids for s in encode(tokenizer, [p.rstrip() for p in prompts])], family.device, left=True)
    cache, made = None, []
    step_ids, step_positions = ids, positions(mask)
    for _ in range(new_tokens):
        output = family.model(
            input_ids=step_ids, attention_mask=mask, position_ids=step_positions, past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        cache, step_ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
        made.append(step_ids)
        mask = torch.cat([mask, torch.ones_like(step_ids)], 1)
        step_positions = positions(mask)[:, -1:]
    words = torch.cat(made, 1).tolist()
    end = tokenizer.eos_token_id
    return [str(tokenizer.decode(w[: w.index(end)] if end in w else w)) for w in words]
