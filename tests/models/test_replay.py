"""Replayed logits equal a full forward's, for every family that a tiny random config can build."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from editkit.models.family import Family, hidden_of, orient, with_hidden
from editkit.models.replay import Replay

SMALL = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
WINDOWED = {**GROUPED, "sliding_window": 4}
GPT = {
    "vocab_size": 90,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neox": SMALL,
    "gpt_neo": {
        "vocab_size": 90, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "max_position_embeddings": 64,
        "attention_types": [[["global", "local", "global"], 1]], "window_size": 4, "bos_token_id": 1, "eos_token_id": 2,
    },
    "llama": GROUPED,
    "mistral": WINDOWED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "gemma2": {**WINDOWED, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": WINDOWED,
    "phi": SMALL,
    "phi3": GROUPED,
    "opt": {
        "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 48,
        "max_position_embeddings": 64, "word_embed_proj_dim": 32,
    },
    "falcon": {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    "stablelm": GROUPED,
    "olmo2": GROUPED,
    "cohere": {**GROUPED, "logit_scale": 0.25},
    "bloom": {"vocab_size": 90, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "mpt": {"vocab_size": 90, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64},
}  # fmt: skip


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(1)
    config = AutoConfig.for_model(name, **FAMILIES[name])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", FAMILIES)
def test_replay_equals_full_forward(name: str) -> None:
    model = build(name)
    family = Family(model)
    layer = 1
    projection = family.projection(layer)
    assert orient(projection, projection.weight).shape[0] == 32
    rows = [[5, 6, 7, 8, 9, 10, 11, 12], [13, 14, 15], [16, 17, 18, 19, 20], [5, 6, 7, 21, 22]]
    lookup = [6, 0, 2, 3]
    replay = Replay(family, rows, lookup, layer, layer)
    offset = torch.randn(4, 32, requires_grad=True)
    row = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3])
    place = torch.tensor([0, 1, 0, 1, 2, 2, 0, 1])
    logits = family.head(replay.hidden(offset, row, place))

    expected = []
    for r, p in zip(row.tolist(), place.tolist(), strict=True):

        def add(module: object, inputs: object, output: object, r: int = r) -> object:
            hidden = hidden_of(output).clone()
            hidden[0, lookup[r]] += offset[r]
            return with_hidden(output, hidden)

        hook = family.blocks[layer].register_forward_hook(add)
        ids = torch.tensor([rows[r]])
        expected.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, lookup[r] + p])
        hook.remove()
    full = torch.stack(expected)
    torch.testing.assert_close(logits, full, rtol=1e-5, atol=1e-5)
    loss = torch.sin(torch.arange(90.0))
    (ours,) = torch.autograd.grad((logits @ loss).sum(), offset, retain_graph=True)
    (theirs,) = torch.autograd.grad((full @ loss).sum(), offset)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
