"""Context templates: short prefixes sampled from the model itself, so that keys are averages over contexts."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from editkit.models.editable import EditableModel
from editkit.models.spans import encode, pad, positions

OPENINGS = ("The", "Therefore", "Because", "I", "You")


@torch.no_grad()
def generate_templates(
    editable: EditableModel, tokenizer: PreTrainedTokenizerBase, tokens: int = 10, seed: int = 0, top_k: int = 5
) -> list[str]:
    """Five prefixes "… {}", one per opening word, ``tokens`` tokens sampled each (top-k, a generator of its own).

    Braces in what the model says are dropped, since "{}" marks the prompt's place.
    """
    generator = torch.Generator().manual_seed(seed)
    ids, mask = pad([s.ids for s in encode(tokenizer, list(OPENINGS))], editable.device, left=True)
    for _ in range(tokens):
        logits = editable.model(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False, logits_to_keep=1
        ).logits[:, -1]
        if tokenizer.eos_token_id is not None:
            logits[:, tokenizer.eos_token_id] = -torch.inf
        best, index = logits.float().cpu().topk(top_k)
        chosen = index.gather(1, torch.multinomial(best.softmax(-1), 1, generator=generator)).to(ids.device)
        ids, mask = torch.cat([ids, chosen], 1), torch.cat([mask, torch.ones_like(chosen)], 1)
    texts = tokenizer.batch_decode([row[keep.bool()] for row, keep in zip(ids, mask, strict=True)])
    return [" ".join(t.replace("{", "").replace("}", "").split()) + ". {}" for t in texts]
