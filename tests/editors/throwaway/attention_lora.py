"""A LoRA on attention, trained for each batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from editkit import Editor, Fact, WeightEdit
from editkit.functional import LowRankDelta
from editkit.models.gradients import differentiable_nll


class AttentionLoRA(Editor):
    """B A on one linear map of attention, by Adam.

    Args:
        module: its name in the model.
        rank: rows of A.
        steps: gradient steps.
        lr: learning rate.
        kwargs: see ``editkit.Editor``.
    """

    def __init__(
        self,
        module: str = "transformer.h.0.attn.c_attn",
        rank: int = 2,
        steps: int = 10,
        lr: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.module, self.rank, self.steps, self.lr = module, rank, steps, lr

    def edit(self, batch: Sequence[Fact]) -> WeightEdit:
        name = f"{self.module}.weight"
        d_out, d_in = self.editable.oriented(name, self.editable.parameter(name)).shape
        generator = torch.Generator().manual_seed(0)
        left = torch.zeros(d_out, self.rank, requires_grad=True)
        right = (0.1 * torch.randn(d_in, self.rank, generator=generator)).requires_grad_()
        optimizer = torch.optim.Adam([left, right], self.lr)
        hook = self.editable.submodule(self.module).register_forward_hook(
            lambda _, inputs, outputs: outputs + inputs[0] @ right @ left.T
        )
        try:
            for _ in range(self.steps):
                prompts, targets = [f.text() for f in batch], [f.target_new for f in batch]
                loss = differentiable_nll(self.editable, self.tokenizer, prompts, targets).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        finally:
            hook.remove()
        return WeightEdit(deltas={name: LowRankDelta(left.detach().double(), right.detach().double())})
