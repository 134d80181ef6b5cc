"""Likelihoods of targets with gradients, for editors that train something; ``models.scoring`` is for measuring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from editkit.functional.values import group_mean, token_nll
from editkit.models.editable import EditableModel
from editkit.models.spans import encode, pad


def differentiable_nll(
    editable: EditableModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], targets: Sequence[str]
) -> Tensor:
    """Mean negative log-likelihood per token of each target after its prompt and one space, with gradients.

    One plain forward over all rows, whose gradients reach whatever of the model wants some.

    Args:
        editable: the model.
        tokenizer: its fast tokenizer.
        prompts: N prompts; trailing spaces are dropped.
        targets: N targets, without their leading space.

    Returns:
        (N,) float32, nats.
    """
    begun = [prompt.rstrip(" ") for prompt in editable.in_context(prompts)]
    texts = [f"{prompt} {target}" for prompt, target in zip(begun, targets, strict=True)]
    spans = encode(tokenizer, texts, target_starts=[len(prompt) for prompt in begun])
    ids, mask = pad([span.ids for span in spans], editable.device)
    logits = editable.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    places = [(row, at) for row, span in enumerate(spans) for at in range(span.target, len(span.ids))]
    row, at = torch.tensor(places, device=ids.device).T
    return group_mean(token_nll(logits[row, at - 1], ids[row, at]), row, len(spans))


def parameter_gradients(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    targets: Sequence[str],
    parameters: Sequence[str],
) -> dict[str, Tensor]:
    """Gradient of the mean target NLL by parameters, which are left as they were.

    Args:
        editable: the model.
        tokenizer: its fast tokenizer.
        prompts: N prompts.
        targets: N targets.
        parameters: names, as in ``model.named_parameters()``.

    Returns:
        Name to gradient: (d_out, d_in) for the weight of a linear map, else in the parameter's own shape.
    """
    found = [editable.parameter(name) for name in parameters]
    before = [parameter.requires_grad for parameter in found]
    try:
        for parameter in found:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            loss = differentiable_nll(editable, tokenizer, prompts, targets).mean()
            slopes = torch.autograd.grad(loss, found)
    finally:
        for parameter, wanted in zip(found, before, strict=True):
            parameter.requires_grad_(wanted)
    return {name: editable.oriented(name, slope.detach()) for name, slope in zip(parameters, slopes, strict=True)}
