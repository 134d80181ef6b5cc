"""A memory beside the weights: what is near a stored key gets that key's residual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from editkit import ClosedFormEditor, EditModule, Fact, ModuleEdit
from editkit.data.plan import RunPlan
from editkit.editors.closed_form.vectors import ValueVectors


class Codebook(EditModule):
    """Adds the residual of the nearest key to a projection's output, where that key is near enough."""

    def __init__(self, entries: int, d_in: int, d_out: int, radius: float) -> None:
        super().__init__()
        self.radius = radius
        self.register_buffer("keys", torch.zeros(entries, d_in))
        self.register_buffer("residuals", torch.zeros(entries, d_out))

    def settings(self) -> dict[str, Any]:
        return {"entries": len(self.keys), "d_in": self.keys.shape[1], "d_out": self.residuals.shape[1],
                "radius": self.radius}  # fmt: skip

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        distance = torch.cdist(inputs.float(), self.keys.expand(*inputs.shape[:-2], -1, -1))
        near, entry = distance.min(-1)
        found = (near < self.radius * self.keys[entry].norm(dim=-1))[..., None]
        return outputs + torch.where(found, self.residuals[entry], 0).to(outputs)


class CodebookEditor(ClosedFormEditor):
    """Value vectors as a closed-form editor finds them, kept beside the weights."""

    def prepare(self, plan: RunPlan) -> None:
        """No second moments."""

    def edit(self, batch: Sequence[Fact]) -> ModuleEdit:
        vectors = ValueVectors.cat(self._found)
        residuals = vectors.values - self.searcher.states(vectors.groups)
        book = Codebook(len(vectors.groups), len(vectors.keys), len(residuals), radius=0.2)
        book.keys.copy_(vectors.keys.T)
        book.residuals.copy_(residuals.T)
        return ModuleEdit(self.editable.parameter_of(self.edited_layers[-1]).removesuffix(".weight"), book)
