"""An editor with a trained network: how far to go along the gradient is learned before the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from editkit import Editor, Fact, WeightEdit
from editkit.data.plan import RunPlan
from editkit.functional import DenseDelta
from editkit.models.gradients import differentiable_nll

MODULE = "transformer.h.0.mlp.c_proj"


class LearnedStep(Editor):
    """Δ = −g ⊙ exp(net), a step size for each output, trained on the first batch's facts.

    Args:
        steps: of training.
        kwargs: see ``editkit.Editor``.
    """

    def __init__(self, steps: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps = steps

    def prepare(self, plan: RunPlan) -> None:
        if "net" in plan.findings:
            self.net = nn.Parameter(torch.tensor(plan.findings["net"]))
            return
        facts = plan.batch(0)
        gradient = self.gradients(facts, [f"{MODULE}.weight"])[f"{MODULE}.weight"]
        self.net = nn.Parameter(torch.full((len(gradient),), -2.0))
        optimizer = torch.optim.Adam([self.net], 0.2)
        hook = self.editable.submodule(MODULE).register_forward_hook(
            lambda _, inputs, outputs: outputs + inputs[0] @ self._change(gradient).T
        )
        try:
            for _ in range(self.steps):
                prompts, targets = [f.text() for f in facts], [f.target_new for f in facts]
                optimizer.zero_grad()
                with torch.enable_grad():
                    differentiable_nll(self.editable, self.tokenizer, prompts, targets).mean().backward()
                optimizer.step()
        finally:
            hook.remove()

    def findings(self) -> dict[str, Any]:
        return {"net": self.net.tolist()}

    def edit(self, batch: Sequence[Fact]) -> WeightEdit:
        name = f"{MODULE}.weight"
        return WeightEdit(deltas={name: DenseDelta(self._change(self.gradients(batch, [name])[name]).detach())})

    def _change(self, gradient: Tensor) -> Tensor:
        return -self.net.exp()[:, None] * gradient
