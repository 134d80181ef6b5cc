"""Keys and gradients of answers against autograd on one fact at a time, and keys of all tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editkit.models.editable import EditableModel
from editkit.models.gradients import AnswerRows, all_keys, answer_gradients, differentiable_nll
from editkit.utils.errors import InputError

Build = Callable[..., PreTrainedModel]
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
PROMPTS = [
    "The capital of France is",
    "The",
    "The mother tongue of Danielle Darrieux, as all people know, is",
    "A dog ",
]
TARGETS = ["Rome", "mayor of Paris", "Brazilian Portuguese", "speaks"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def token_rows(tokenizer: PreTrainedTokenizerBase, prompt: str, target: str) -> tuple[Tensor, int]:
    """Ids of prompt and target, and how many of them are the target's."""
    prompt = prompt.rstrip(" ")
    ids = tokenizer(f"{prompt} {target}", return_tensors="pt")["input_ids"]
    return ids, ids.shape[1] - len(tokenizer(prompt)["input_ids"])


def plain(
    model: PreTrainedModel, ids: Tensor, count: int, layers: list[int], moved: dict[int, Tensor] | None = None
) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
    """Mean NLL of the last ``count`` tokens, and all tokens' inputs and outputs of projections, each (length, d).

    Args:
        model: the model, whole.
        ids: (1, length).
        count: tokens of the target.
        layers: blocks.
        moved: block to (length, d_out), to be added to what its projection gives.
    """
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    editable = EditableModel(model)

    def watch(layer: int) -> Callable[..., Tensor]:
        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            change = 0 if moved is None or layer not in moved else moved[layer].reshape(output.shape)
            inputs[layer], outputs[layer] = given[0].flatten(0, -2), output + change
            return outputs[layer].clone()

        return hook

    hooks = [editable.projection(layer).register_forward_hook(watch(layer)) for layer in layers]
    hooks.append(model.get_input_embeddings().register_forward_hook(lambda m, i, out: out.detach().requires_grad_()))
    log_probs = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].log_softmax(-1)
    for hook in hooks:
        hook.remove()
    return -log_probs.gather(1, ids[0, 1:, None])[-count:].mean(), inputs, outputs


def error(found: Tensor, expected: Tensor) -> float:
    """Largest error of a column, relative to the longest one: a short one is a difference of rounded numbers."""
    return float((found - expected).norm(dim=0).max() / expected.norm(dim=0).max())


def check_against_plain_loop(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layers: list[int], found: AnswerRows
) -> None:
    owners: list[int] = []
    keys: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    gradients: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for fact, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        ids, count = token_rows(tokenizer, prompt, target)
        loss, inputs, outputs = plain(model, ids, count, layers)
        slopes = torch.autograd.grad(loss, [outputs[layer] for layer in layers])
        torch.testing.assert_close(found.nll[fact], loss.detach(), **CLOSE)
        owners += [fact] * count
        for layer, slope in zip(layers, slopes, strict=True):
            keys[layer].append(inputs[layer][-count - 1 : -1])
            gradients[layer].append(slope.flatten(0, -2)[-count - 1 : -1])
    assert found.owners.tolist() == owners
    assert list(found.keys) == list(found.gradients) == layers
    for layer in layers:
        torch.testing.assert_close(found.keys[layer], torch.cat(keys[layer]).T, **CLOSE)
        assert error(found.gradients[layer], torch.cat(gradients[layer]).T) < 1e-5


@pytest.mark.parametrize("layers", [[0, 2], [1], [2]])
def test_answers_equal_one_fact_at_a_time(
    build_model: Build, family_name: str, tokenizer: PreTrainedTokenizerBase, layers: list[int]
) -> None:
    model = build_model(family_name, vocab_size=len(tokenizer))
    found = answer_gradients(EditableModel(model), tokenizer, PROMPTS, TARGETS, layers)
    check_against_plain_loop(model, tokenizer, layers, found)


def test_answers_of_the_atlas(atlas: Loaded) -> None:
    model, tokenizer = atlas
    layers = [0, 1, 3]
    editable = EditableModel(model)
    found = answer_gradients(editable, tokenizer, PROMPTS, TARGETS, layers)
    check_against_plain_loop(model, tokenizer, layers, found)
    with torch.no_grad():
        torch.testing.assert_close(found.nll, differentiable_nll(editable, tokenizer, PROMPTS, TARGETS), **CLOSE)
    reverse = answer_gradients(editable, tokenizer, PROMPTS[::-1], TARGETS[::-1], layers)
    for fact in range(4):
        here, there = found.owners == fact, reverse.owners == 3 - fact
        assert error(found.gradients[1][:, here], reverse.gradients[1][:, there]) < 3e-5


@pytest.mark.parametrize("max_tokens", [1, 12, 40])
def test_batches_bound_memory_and_not_results(atlas: Loaded, max_tokens: int) -> None:
    model, tokenizer = atlas
    editable, told = EditableModel(model), []
    whole = answer_gradients(editable, tokenizer, PROMPTS * 3, TARGETS * 3, [0, 2])
    parts = answer_gradients(editable, tokenizer, PROMPTS * 3, TARGETS * 3, [0, 2], max_tokens, told.append)
    assert torch.equal(whole.owners, parts.owners)
    assert told == sorted(told)
    assert len(told) > 1
    assert told[-1] == 12
    torch.testing.assert_close(whole.nll, parts.nll, **CLOSE)
    for layer in (0, 2):
        torch.testing.assert_close(whole.keys[layer], parts.keys[layer], **CLOSE)
        assert error(parts.gradients[layer], whole.gradients[layer]) < 1e-5
    keys, owners = all_keys(editable, tokenizer, PROMPTS, TARGETS, [0, 2])
    others, same_owners = all_keys(editable, tokenizer, PROMPTS, TARGETS, [0, 2], max_tokens)
    assert torch.equal(owners, same_owners)
    for layer in (0, 2):
        torch.testing.assert_close(keys[layer], others[layer], **CLOSE)


def test_a_gradient_is_the_slope_of_the_loss(atlas: Loaded) -> None:
    model, tokenizer = atlas
    layers = [0, 2]
    ids, count = token_rows(tokenizer, PROMPTS[2], TARGETS[2])
    assert count > 1
    found = answer_gradients(EditableModel(model), tokenizer, PROMPTS[2:3], TARGETS[2:3], layers)
    exact = model.double()
    for layer in layers:
        for row, at in enumerate(range(ids.shape[1] - count - 1, ids.shape[1] - 1)):
            direction = torch.randn(256, dtype=torch.float64)
            change = torch.zeros(ids.shape[1], 256, dtype=torch.float64)
            change[at] = 1e-4 * direction
            up, down = (float(plain(exact, ids, count, layers, {layer: s * change})[0]) for s in (1, -1))
            slope = float(found.gradients[layer][:, row].double() @ direction)
            assert abs((up - down) / 2e-4 - slope) < 1e-4 * float(found.gradients[layer][:, row].norm() * 16)


def test_all_tokens_keys(build_model: Build, family_name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = build_model(family_name, vocab_size=len(tokenizer))
    keys, owners = all_keys(EditableModel(model), tokenizer, PROMPTS, TARGETS, [0, 1])
    lengths = []
    expected: dict[int, list[Tensor]] = {0: [], 1: []}
    for prompt, target in zip(PROMPTS, TARGETS, strict=True):
        ids, count = token_rows(tokenizer, prompt, target)
        _, inputs, _ = plain(model, ids, count, [0, 1])
        lengths.append(ids.shape[1])
        for layer in (0, 1):
            expected[layer].append(inputs[layer].detach())
    assert owners.tolist() == [fact for fact, length in enumerate(lengths) for _ in range(length)]
    for layer in (0, 1):
        torch.testing.assert_close(keys[layer], torch.cat(expected[layer]).T, **CLOSE)


def hook_count(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_model_is_left_as_it_was(atlas: Loaded) -> None:
    model, tokenizer = atlas
    editable = EditableModel(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = answer_gradients(editable, tokenizer, PROMPTS, TARGETS, [1, 2])
    wanting = [p for i, p in enumerate(model.parameters()) if i % 2]
    for parameter in wanting:
        parameter.requires_grad_(True)
    found = answer_gradients(editable, tokenizer, PROMPTS, TARGETS, [1, 2])
    all_keys(editable, tokenizer, PROMPTS, TARGETS, [1, 2])
    assert torch.equal(found.gradients[1], frozen.gradients[1])
    assert not any(t.requires_grad for t in (*found.keys.values(), *found.gradients.values(), found.nll))
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [bool(i % 2) for i in range(len(list(model.parameters())))]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not hook_count(model)
    assert all("forward" not in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("block", [0, 2, 3])
def test_nothing_is_left_behind_by_a_failure(atlas: Loaded, block: int) -> None:
    model, tokenizer = atlas
    editable = EditableModel(model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    calls = 0

    def fail(module: nn.Module, inputs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:  # the first pass is that of the tokens before
            raise MemoryError

    hook = editable.blocks[block].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        answer_gradients(editable, tokenizer, PROMPTS[:1], TARGETS[:1], [1, 2])
    hook.remove()
    assert not hook_count(model)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_gradients_go_no_lower_than_asked_and_logits_are_those_that_are_needed(atlas: Loaded) -> None:
    model, tokenizer = atlas
    editable = EditableModel(model)
    wanting: list[list[bool]] = [[] for _ in editable.blocks]
    logits: list[int] = []
    hooks = [  # not on the blocks, which the head's own pass steps over
        editable.projection(n).register_forward_hook(lambda m, i, out, n=n: wanting[n].append(out.requires_grad))
        for n in range(editable.depth)
    ]
    hooks.append(
        model.get_output_embeddings().register_forward_hook(lambda m, i, out: logits.append(out.shape[:-1].numel()))
    )
    found = answer_gradients(editable, tokenizer, PROMPTS, TARGETS, [2, 3])
    for hook in hooks:
        hook.remove()
    assert [any(seen) for seen in wanting] == [False, False, False, True]  # begun at what comes out of block 2's
    assert len(wanting[2]) == 3  # the tokens before, those that predict, and a prompt with none before its last one
    assert sum(logits) == len(found.owners)


def test_in_half_precision_rows_are_float32(build_model: Build, tokenizer: PreTrainedTokenizerBase) -> None:
    model = build_model("llama", vocab_size=len(tokenizer))
    exact = answer_gradients(EditableModel(model), tokenizer, PROMPTS, TARGETS, [1])
    half = answer_gradients(EditableModel(model.to(torch.bfloat16)), tokenizer, PROMPTS, TARGETS, [1])
    assert half.keys[1].dtype == half.gradients[1].dtype == half.nll.dtype == torch.float32
    assert (half.gradients[1] - exact.gradients[1]).norm() < 0.05 * exact.gradients[1].norm()


def test_text_that_prompt_edits_put_before_prompts_is_seen(atlas: Loaded) -> None:
    model, tokenizer = atlas
    editable = EditableModel(model)
    longer = [f"Listen. {prompt}" for prompt in PROMPTS]
    expected = answer_gradients(editable, tokenizer, longer, TARGETS, [1])
    tokens, _ = all_keys(editable, tokenizer, longer, TARGETS, [1])
    remove = editable.add_context(lambda prompt: "Listen. ")
    found = answer_gradients(editable, tokenizer, PROMPTS, TARGETS, [1])
    assert torch.equal(all_keys(editable, tokenizer, PROMPTS, TARGETS, [1])[0][1], tokens[1])
    remove()
    assert torch.equal(found.gradients[1], expected.gradients[1])
    assert torch.equal(found.nll, expected.nll)


@pytest.mark.parametrize(
    ("prompts", "targets", "layers", "message"),
    [
        ([], [], [1], "prompts: expected at least one"),
        ([""], ["Rome"], [1], "prompt: expected at least one token before the target 'Rome'"),
        (["The capital is"], [""], [1], "prompt: expected at least one token before the target '' and one of it"),
        (["The capital is"], ["Rome"], [4], "layers: expected blocks 0 to 3"),
        (["The capital is"], ["Rome"], [], "layers: expected at least one block"),
        (["The capital is"], ["Rome"], [2, 1], "layers: expected blocks in ascending order"),
        (["dog " * 300], ["Rome"], [1], "prompt: expected prompt and target to fit into the context window of 256"),
    ],
)
def test_what_cannot_be_run_is_told(
    atlas: Loaded, prompts: list[str], targets: list[str], layers: list[int], message: str
) -> None:
    model, tokenizer = atlas
    for job in (answer_gradients, all_keys):
        with pytest.raises(InputError, match=message):
            job(EditableModel(model), tokenizer, prompts, targets, layers)
