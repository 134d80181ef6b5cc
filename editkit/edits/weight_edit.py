"""Edits that change parameters."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from editkit.edits.edit import Edit
from editkit.functional.delta import Delta, DenseDelta, LowRankDelta, SparseDelta, ZeroDelta, smallest
from editkit.models.editable import EditableModel
from editkit.utils.errors import InputError

DELTA_TYPES: dict[str, Any] = {"low_rank": LowRankDelta, "dense": DenseDelta, "sparse": SparseDelta, "none": ZeroDelta}


@dataclass
class WeightEdit(Edit):
    """A change of parameters.

    Attributes:
        deltas: parameter name, as in ``model.named_parameters()``, to its change: (d_out, d_in) for the weight of a
            linear map, whatever the module's orientation; the parameter's own shape for any other.
    """

    kind = "weights"
    acts = "on the weights"

    deltas: dict[str, Delta] = field(default_factory=dict)

    @property
    @override
    def parameters(self) -> tuple[str, ...]:
        return tuple(self.deltas)

    @override
    def check(self, model: EditableModel) -> None:
        for name, delta in self.deltas.items():
            expected = tuple(model.oriented(name, model.parameter(name)).shape)
            if delta.shape != expected:
                raise InputError(
                    f"edits: expected a weight change of shape {expected} for {name} of {type(model.model).__name__}, "
                    f"but got {delta.shape}; load the model that the edits were made for"
                )
            if not all(t.isfinite().all() for t in delta.tensors().values()):
                raise InputError(f"edits: expected a finite weight change for {name}, but it has infinities or NaN")

    @override
    def apply(self, model: EditableModel) -> None:
        for name, delta in self.deltas.items():
            apply_delta(model, name, delta)

    @override
    def tensors(self) -> dict[str, Tensor]:
        return {f"{name}:{part}": t for name, delta in self.deltas.items() for part, t in delta.tensors().items()}

    @override
    def header(self) -> dict[str, Any]:
        names = {delta_type: name for name, delta_type in DELTA_TYPES.items()}
        return {"deltas": {n: {"kind": names[type(d)], "shape": list(d.shape)} for n, d in self.deltas.items()}}

    @classmethod
    @override
    def read(cls, header: dict[str, Any], tensors: dict[str, Tensor]) -> WeightEdit:
        deltas: dict[str, Delta] = {}
        for name, about in header["deltas"].items():
            own: dict[str, Any] = {
                key.removeprefix(f"{name}:"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}:")
            }
            if about["kind"] in ("sparse", "none"):
                own["shape"] = tuple(about["shape"])
            deltas[name] = delta = DELTA_TYPES[about["kind"]](**own)
            if delta.shape != tuple(about["shape"]):
                raise ValueError(
                    f"the change of {name} has shape {delta.shape}, but {tuple(about['shape'])} is on record"
                )
        return cls(deltas=deltas)

    @override
    def rounded(self) -> WeightEdit:
        return replace(self, deltas={name: rounded_delta(delta) for name, delta in self.deltas.items()})

    @override
    def weight_changes(self) -> dict[str, Delta]:
        return {name: delta for name, delta in self.deltas.items() if not isinstance(delta, ZeroDelta)}


@torch.no_grad()
def apply_delta(model: EditableModel, name: str, delta: Delta) -> None:
    """Add a delta to a parameter: multiplied out and summed in float64, one cast to its dtype."""
    if isinstance(delta, ZeroDelta):
        return
    parameter = model.parameter(name)
    widened = type(delta)(**{**vars(delta), **{part: _wide(t) for part, t in delta.tensors().items()}})
    change = model.oriented(name, widened.dense()).to(parameter.device)
    edited = (parameter.double() + change).to(parameter.dtype)
    if not edited.isfinite().all():
        raise InputError(
            f"edits: expected weights that {parameter.dtype} can hold, but {name} has infinities or NaN after the "
            "edit; use a wider dtype, or a smaller change"
        )
    parameter.copy_(edited)


def rounded_delta(delta: Delta) -> Delta:
    """A delta rounded to float32 in its smallest form: what is kept, and so what is applied."""
    delta = smallest(delta)
    if isinstance(delta, LowRankDelta):
        return LowRankDelta(_float32(delta.left), None if delta.right is None else _float32(delta.right))
    if isinstance(delta, DenseDelta):
        return DenseDelta(_float32(delta.matrix))
    if isinstance(delta, SparseDelta):
        return SparseDelta(delta.indices.cpu(), _float32(delta.values), delta.shape)
    return ZeroDelta(delta.shape)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _float32(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()
