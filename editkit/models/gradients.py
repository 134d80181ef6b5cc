"""Likelihoods of targets with gradients, for editors that train something; ``models.scoring`` is for measuring.

Also what a gradient at an MLP's output projection says where an answer is predicted, for editors that search for no
value (UltraEdit), and the keys of all tokens (SimIE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from editkit.functional.values import group_mean, row_wise, token_nll
from editkit.models.caches import FrozenCache
from editkit.models.editable import EditableModel, StopForward, check_layers, frozen, watching
from editkit.models.fused import fused_activations
from editkit.models.prefixes import grow
from editkit.models.scoring import run
from editkit.models.spans import Span, encode, length_batches, pad, positions
from editkit.utils.errors import InputError, shorten

MAX_TOKENS = 2048  # per padded batch


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
    spans = _encode_answers(editable, tokenizer, prompts, targets)
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


@dataclass(frozen=True)
class AnswerRows:
    """What stands at projections where the tokens of N facts' targets are predicted; a row per token.

    Rows are ordered by fact, then by position: from a prompt's last token to its target's last but one.

    Attributes:
        keys: block to (d_in, rows) float32, the input of its projection.
        gradients: block to (d_out, rows) float32, the gradient of the fact's mean target NLL per token (nats) by what
            its projection gives.
        owners: (rows,) int64, which fact each row is of.
        nll: (N,) float32, mean negative log-likelihood per target token, nats.
    """

    keys: dict[int, Tensor]
    gradients: dict[int, Tensor]
    owners: Tensor
    nll: Tensor


def answer_gradients(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    targets: Sequence[str],
    layers: Sequence[int],
    max_tokens: int = MAX_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> AnswerRows:
    """Keys and gradients of answers, from one forward and one backward pass per fact.

    Attention is causal: what a projection gives at a prompt's last token is felt from there on. So all tokens before
    it are run without gradients and leave keys and values behind, and gradients go through the few tokens that follow,
    down to the lowest of ``layers``. The head is applied where a target token is predicted.

    Each fact's loss is its own mean, and losses are summed: a fact's rows do not depend on those beside it.

    Args:
        editable: the model; no parameter gets a gradient.
        tokenizer: its fast tokenizer.
        prompts: N prompts, at least one; trailing spaces are dropped.
        targets: N targets, without their leading space.
        layers: blocks, ascending, each once.
        max_tokens: tokens per padded batch; bounds memory, not results.
        progress: told after each batch how many facts are done.

    Returns:
        The rows, on the model's device.

    Raises:
        InputError: no prompt, a target without a token or with none before it, a text that does not fit into the
            context window, or blocks that are none of the model's.
    """
    spans = _answers_for(editable, tokenizer, prompts, targets, layers, unrun=1)
    parts: list[tuple[dict[int, Tensor], dict[int, Tensor], Tensor]] = []
    nll = torch.zeros(len(spans), device=editable.device)
    done = 0
    for batch in length_batches([len(span.ids) - 1 for span in spans], max_tokens):
        # a row without any token before its tail has nothing to attend to, and is run with its like
        for chosen in ([i for i in batch if spans[i].target > 1], [i for i in batch if spans[i].target == 1]):
            if chosen:
                found = _answer_rows(editable, [spans[i] for i in chosen], layers)
                index = torch.tensor(chosen, device=editable.device)
                nll[index] = found.nll
                parts.append((found.keys, found.gradients, index[found.owners]))
                done += len(chosen)
        if progress is not None:
            progress(done)
    owners, order = torch.cat([part[2] for part in parts]).sort(stable=True)
    keys = {layer: torch.cat([part[0][layer] for part in parts], 1)[:, order] for layer in layers}
    gradients = {layer: torch.cat([part[1][layer] for part in parts], 1)[:, order] for layer in layers}
    return AnswerRows(keys, gradients, owners, nll)


@torch.no_grad()
def all_keys(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    targets: Sequence[str],
    layers: Sequence[int],
    max_tokens: int = MAX_TOKENS,
) -> tuple[dict[int, Tensor], Tensor]:
    """Inputs of projections at every token of prompt and target, a BOS included.

    Args:
        editable: the model; nothing runs above the highest of ``layers``.
        tokenizer: its fast tokenizer.
        prompts: N prompts, at least one; trailing spaces are dropped.
        targets: N targets, without their leading space.
        layers: blocks, ascending, each once.
        max_tokens: tokens per padded batch; bounds memory, not results.

    Returns:
        Block to (d_in, tokens) float32 on the model's device, ordered by fact and then by position, and (tokens,)
        int64, which fact each token is of.

    Raises:
        InputError: as ``answer_gradients``.
    """
    spans = _answers_for(editable, tokenizer, prompts, targets, layers)
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    owners: list[Tensor] = []
    for batch in length_batches([len(span.ids) for span in spans], max_tokens):
        ids, mask = pad([spans[i].ids for i in batch], editable.device)
        row, at = mask.nonzero(as_tuple=True)
        owners.append(torch.tensor(batch, device=editable.device)[row])
        with fused_activations(editable.model), _watched(editable, layers, ids, stop=True) as seen:
            editable.model(
                input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False, logits_to_keep=1
            )
        for layer in layers:
            parts[layer].append(_columns(seen[layer][0], row, at))
    owner, order = torch.cat(owners).sort(stable=True)
    return {layer: torch.cat(parts[layer], 1)[:, order] for layer in layers}, owner


def _answer_rows(editable: EditableModel, spans: Sequence[Span], layers: Sequence[int]) -> AnswerRows:
    """One padded batch of answers, of which all have tokens before their last prompt token, or none has any."""
    cache = None
    ids, mask = pad([span.ids[span.target - 1 : -1] for span in spans], editable.device)
    whole = mask
    if spans[0].target > 1:
        # padded on the left, so that no padding stands between them and their tail
        prefix = grow(editable, *pad([s.ids[: s.target - 1] for s in spans], editable.device, left=True), None)
        cache, whole = FrozenCache(prefix), torch.cat([prefix.mask, mask], 1)
    row, at = mask.nonzero(as_tuple=True)
    wanted = torch.tensor([token for span in spans for token in span.ids[span.target :]], device=ids.device)
    with torch.enable_grad(), frozen(editable.model):
        with _watched(editable, layers, ids) as seen:
            hidden = run(editable, ids, whole, cache)[row, at]
        losses = row_wise(
            lambda part, rows: token_nll(editable.head(part), wanted[rows]), hidden, editable.logits_at_a_time
        )
        nll = group_mean(losses, row, len(spans))
        slopes = torch.autograd.grad(nll.sum(), [seen[layer][1] for layer in layers])
    return AnswerRows(
        {layer: _columns(seen[layer][0], row, at) for layer in layers},
        {layer: _columns(slope.reshape(*ids.shape, -1), row, at) for layer, slope in zip(layers, slopes, strict=True)},
        row,
        nll.detach(),
    )


@contextmanager
def _watched(
    editable: EditableModel, layers: Sequence[int], ids: Tensor, stop: bool = False
) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Within the block, what the model puts into projections, (rows, length, d_in), and what they give, by block.

    The lowest one's output is where gradients begin. ``stop``: the forward ends at the highest.
    """
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def watch(layer: int) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            given = output.detach().requires_grad_() if layer == layers[0] and torch.is_grad_enabled() else output
            seen[layer] = (inputs[0].detach().reshape(*ids.shape, -1), given)
            if stop and layer == layers[-1]:
                raise StopForward
            return given.clone()  # what comes next may change it in place

        return hook

    projections = {layer: editable.projection(layer) for layer in layers}  # all found before anything is hooked
    with watching(*(module.register_forward_hook(watch(layer)) for layer, module in projections.items())):
        yield seen


def _columns(states: Tensor, row: Tensor, at: Tensor) -> Tensor:
    """(d, n) float32 of states (rows, length, d), which a model spread over devices may have elsewhere."""
    return states[row.to(states.device), at.to(states.device)].T.float().to(row.device)


def _answers_for(
    editable: EditableModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    targets: Sequence[str],
    layers: Sequence[int],
    unrun: int = 0,
) -> list[Span]:
    """Prompts with their targets, once they and the blocks are found to be such; ``unrun`` last tokens are not run."""
    check_layers(layers)
    for layer in layers:
        editable.check_layer(layer)
    if not prompts:
        raise InputError("prompts: expected at least one, but got none; give the facts to edit")
    spans = _encode_answers(editable, tokenizer, prompts, targets)
    for prompt, target, span in zip(prompts, targets, spans, strict=True):
        if span.target == 0 or span.target == len(span.ids):
            raise InputError(
                f"prompt: expected at least one token before the target {shorten(target)} and one of it, but "
                f"{shorten(prompt)} leaves none; give a longer prompt"
            )
        if len(span.ids) - unrun > editable.context:
            raise InputError(
                f"prompt: expected prompt and target to fit into the context window of {editable.context} tokens, but "
                f"{shorten(prompt)} with {shorten(target)} takes {len(span.ids) - unrun}; shorten it"
            )
    return spans


def _encode_answers(
    editable: EditableModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], targets: Sequence[str]
) -> list[Span]:
    """Each target after its prompt, in the context that prompt edits ask for, and one space."""
    begun = [prompt.rstrip(" ") for prompt in editable.in_context(prompts)]
    texts = [f"{prompt} {target}" for prompt, target in zip(begun, targets, strict=True)]
    return encode(tokenizer, texts, target_starts=[len(prompt) for prompt in begun])


def answer_tokens(
    editable: EditableModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], targets: Sequence[str]
) -> int:
    """How many columns ``answer_gradients`` would give: tokens of the targets."""
    return sum(len(span.ids) - span.target for span in _encode_answers(editable, tokenizer, prompts, targets))
