"""What the search for value vectors takes: bounded in memory, in micro-batches of like cost."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editkit.data.module import FactsDataModule
from editkit.editors.closed_form.search import MicroBatch, group_rows, search_bytes
from editkit.models.editable import EditableModel

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
TEMPLATES = [["{}"], ["And so it was. {}", "Long ago, {}"]]


def test_what_the_search_keeps_for_backward_is_within_the_stated_bound(atlas: Loaded) -> None:
    model, tokenizer = atlas
    editable = EditableModel(model)
    flat = [t for group in TEMPLATES for t in group]
    data = FactsDataModule(num_facts=6)
    data.setup()
    groups = group_rows(tokenizer, [[f] for f in data.selected], flat, "{} is a")
    work = MicroBatch(editable, groups, 0, 0, False)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not any(tensor.data_ptr() == p.data_ptr() for p in model.parameters()):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    offset = torch.zeros(len(groups), editable.hidden_size, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        nll, kl = work.losses(offset)
        (nll + kl).sum().backward()
    assert 0 < sum(kept.values()) <= sum(search_bytes(editable, 0, group) for group in groups)
