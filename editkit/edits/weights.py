"""Writing weight changes into a model, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from editkit.edits.batch import EditBatch
from editkit.functional.delta import Delta, ZeroDelta
from editkit.models.editable import EditableModel, orient
from editkit.models.fingerprint import sampled, tensor_hash
from editkit.utils.errors import InputError

AGREEMENT = 1e-6  # of float32 weights edited on different machines; a rounding step of narrower dtypes is larger


@torch.no_grad()
def apply_delta(editable: EditableModel, layer: int, delta: Delta) -> None:
    """Add a delta to a block's projection weight: multiplied out and summed in float64, one cast to its dtype."""
    if isinstance(delta, ZeroDelta):
        return
    weight = editable.weight(layer)
    widened = type(delta)(**{**vars(delta), **{name: _wide(t) for name, t in delta.tensors().items()}})
    change = orient(editable.projection(layer), widened.dense()).to(weight.device)
    weight.copy_((weight.double() + change).to(weight.dtype))


def apply_batch(editable: EditableModel, batch: EditBatch) -> None:
    """Add all weight changes of a batch."""
    for layer, delta in batch.deltas.items():
        apply_delta(editable, layer, delta)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def check_shapes(editable: EditableModel, batch: EditBatch) -> None:
    """Raise an ``InputError`` unless every delta of ``batch`` fits the weight that it is for."""
    for layer, delta in batch.deltas.items():
        expected = tuple(orient(editable.projection(layer), editable.weight(layer)).shape)
        if delta.shape != expected:
            raise InputError(
                f"edits: expected a weight change of shape {expected} for block {layer} of "
                f"{type(editable.model).__name__}, but got {delta.shape}; load the model that the edits were made for"
            )


def as_recorded(editable: EditableModel, batch: EditBatch) -> bool:
    """Whether the weights are, bit for bit, those that the run had after ``batch``.

    Raises:
        InputError: they are not even equal to rounding.
    """
    equal = True
    for layer, recorded in batch.hashes.items():
        weight = editable.weight(layer)
        if tensor_hash(weight) == recorded:
            continue
        equal = False
        if layer not in batch.samples:  # of schema 1
            continue
        kept, now = batch.samples[layer].double(), sampled(weight).cpu().double()
        tolerance = max(AGREEMENT, torch.finfo(weight.dtype).eps)
        if kept.shape != now.shape or not (now - kept).norm() <= tolerance * kept.norm():
            raise InputError(
                f"edits: expected block {layer} to have the weights that the run recorded, but they differ by more "
                f"than rounding ({tolerance:.0e}); the ledger's files are not those of one run"
            )
    return equal


class WeightSnapshot:
    """Bit-exact copies of the projections' weights, on the CPU, to go back to.

    Args:
        editable: the model.
        layers: blocks to remember.
    """

    def __init__(self, editable: EditableModel, layers: Sequence[int]) -> None:
        self._editable = editable
        self._weights = {layer: editable.weight(layer).detach().cpu().clone() for layer in layers}

    @torch.no_grad()
    def restore(self) -> None:
        """Put the remembered bits back."""
        for layer, weight in self._weights.items():
            self._editable.weight(layer).copy_(weight)


def hashes(editable: EditableModel, layers: Mapping[int, object] | Sequence[int]) -> dict[int, str]:
    """Hash of each block's projection weight as it is now."""
    return {layer: tensor_hash(editable.weight(layer)) for layer in layers}


def samples(editable: EditableModel, layers: Mapping[int, object] | Sequence[int]) -> dict[int, Tensor]:
    """Evenly spaced entries of each block's projection weight as it is now, on the CPU."""
    return {layer: sampled(editable.weight(layer)).cpu().clone() for layer in layers}
