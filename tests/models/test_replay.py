"""Replayed logits equal a full forward's, for every family that a tiny random config can build."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from editkit.models.editable import EditableModel, hidden_of, orient
from editkit.models.prefixes import run_prefixes
from editkit.models.replay import Replay

Build = Callable[..., PreTrainedModel]
#: families whose block does not simply add the projection's output to the residual stream
NOT_ADDED = {
    "gemma2": {},
    "gemma3_text": {},
    "olmo2": {},
    "granite": {"residual_multiplier": 0.3},
    "opt": {"do_layer_norm_before": False},
}


@pytest.mark.parametrize("layer", [0, 1, 2])  # of three: nothing is left to be replayed above the last
def test_replay_equals_full_forward(build_model: Build, family_name: str, layer: int) -> None:
    model = build_model(family_name)
    editable = EditableModel(model)
    projection = editable.projection(layer)
    assert orient(projection, projection.weight).shape[0] == 32
    rows = [[5, 6, 7, 8, 9, 10, 11, 12], [13, 14, 15], [16, 17, 18, 19, 20], [5, 6, 7, 21, 22]]
    lookup = [6, 0, 2, 3]
    replay = Replay(editable, rows, lookup, layer, layer)
    offset = torch.randn(4, 32, requires_grad=True)
    row = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3])
    place = torch.tensor([0, 1, 0, 1, 2, 2, 0, 1])
    logits = editable.head(replay.hidden(offset, row, place))

    expected = []
    for r, p in zip(row.tolist(), place.tolist(), strict=True):

        def add(module: object, inputs: object, output: object, r: int = r) -> object:
            hidden = hidden_of(output).clone()
            hidden[0, lookup[r]] += offset[r]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        hook = editable.blocks[layer].register_forward_hook(add)
        ids = torch.tensor([rows[r]])
        expected.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, lookup[r] + p])
        hook.remove()
    full = torch.stack(expected)
    torch.testing.assert_close(logits, full, rtol=1e-5, atol=1e-5)
    loss = torch.sin(torch.arange(90.0))
    (ours,) = torch.autograd.grad((logits @ loss).sum(), offset, retain_graph=True)
    (theirs,) = torch.autograd.grad((full @ loss).sum(), offset)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [1, 2])
def test_some_rows_of_a_replay_equal_a_replay_of_them(build_model: Build, family_name: str, layer: int) -> None:
    editable = EditableModel(build_model(family_name))
    rows = [[5, 6, 7, 8, 9, 10, 11, 12], [13, 14, 15], [16, 17, 18, 19, 20], [5, 6, 7, 21, 22], [5, 6, 7, 23]]
    lookup = [6, 0, 2, 3, 2]
    chosen = [4, 1, 0]
    some = Replay(editable, rows, lookup, layer, 0).select(torch.tensor(chosen))
    fresh = Replay(editable, [rows[i] for i in chosen], [lookup[i] for i in chosen], layer, 0)
    torch.testing.assert_close(some.start, fresh.start, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(some.keys, fresh.keys, rtol=1e-5, atol=1e-6)
    row, place = torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 1])
    offset = torch.randn(3, 32)
    torch.testing.assert_close(some.hidden(offset, row, place), fresh.hidden(offset, row, place), rtol=1e-5, atol=1e-5)


def test_where_a_change_of_the_projection_is_one_of_the_block(build_model: Build, family_name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert EditableModel(build_model(family_name).to(dtype)).adds_projection(1) == (
            family_name not in {"gemma2", "gemma3_text", "olmo2"}
        )


@pytest.mark.parametrize("name", NOT_ADDED)
def test_replay_from_the_projection_equals_full_forward(build_model: Build, name: str) -> None:
    model = build_model(name, **NOT_ADDED[name])
    editable = EditableModel(model)
    assert not editable.adds_projection(1)
    rows, lookup = [[5, 6, 7, 8, 9], [10, 11, 12], [5, 6, 13]], [2, 0, 2]
    replay = Replay(editable, rows, lookup, 1, 1, at_projection=True)
    offset = torch.randn(3, 32, requires_grad=True)
    row, place = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 1, 0])
    logits = editable.head(replay.hidden(offset, row, place))
    for i, (r, p) in enumerate(zip(row.tolist(), place.tolist(), strict=True)):

        def add(module: object, inputs: object, output: torch.Tensor, r: int = r) -> torch.Tensor:
            flat = output.reshape(len(rows[r]), -1).clone()
            if r == 0:
                torch.testing.assert_close(flat[lookup[r]], replay.start[r], rtol=1e-4, atol=1e-5)
            flat[lookup[r]] += offset[r]
            return flat.reshape(output.shape)

        hook = editable.projection(1).register_forward_hook(add)
        full = model(input_ids=torch.tensor([rows[r]])).logits[0, lookup[r] + p]
        hook.remove()
        torch.testing.assert_close(logits[i], full, rtol=1e-5, atol=1e-5)


def test_text_that_rows_begin_with_is_run_once(build_model: Build) -> None:
    editable = EditableModel(build_model("gpt2"))
    seen: list[int] = []
    embedding = editable.model.get_input_embeddings()
    hook = embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].numel()))
    template, others = (5, 6, 7, 8), [(20, 21), (22, 23), (24, 25)]
    states, place = run_prefixes(editable, [template + other for other in others])
    hook.remove()
    assert sum(seen) == len(template) + 6
    for other in others:
        (alone, _) = run_prefixes(editable, [template + other])
        for ours, theirs in zip(states.layers, alone.layers, strict=True):
            assert ours is not None
            assert theirs is not None
            torch.testing.assert_close(ours[0][place[template + other]], theirs[0][0], rtol=1e-5, atol=1e-6)
