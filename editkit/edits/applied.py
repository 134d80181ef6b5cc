"""Edits on a model, and the way back."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from editkit.edits.batch import EditBatch
from editkit.edits.edit import Edit, Undo
from editkit.models.editable import EditableModel
from editkit.models.fingerprint import sampled, tensor_hash
from editkit.utils.errors import InputError

AGREEMENT = 1e-6  # of float32 weights edited on different machines; a rounding step of narrower dtypes is larger


class WeightSnapshot:
    """Bit-exact copies of parameters, on the CPU, to go back to.

    Args:
        model: the model.
        names: parameters to remember.
    """

    def __init__(self, model: EditableModel, names: Iterable[str] = ()) -> None:
        self._model = model
        self._copies: dict[str, Tensor] = {}
        self.extend(names)

    def extend(self, names: Iterable[str]) -> None:
        """Remember more parameters, as they are now; those already remembered stay as they were."""
        for name in map(self._model.canonical, names):
            if name not in self._copies:
                self._copies[name] = self._model.parameter(name).detach().cpu().clone()

    @torch.no_grad()
    def restore(self) -> None:
        """Put the remembered bits back."""
        for name, copy in self._copies.items():
            self._model.parameter(name).copy_(copy)


class AppliedEdits:
    """Edits that act on one model, in their order, and how the model was before the first.

    Args:
        model: the model, unedited.
    """

    def __init__(self, model: EditableModel) -> None:
        self.model = model
        self._before = WeightSnapshot(model)
        self._removals: list[Undo] = []

    def apply(self, edit: Edit) -> Undo:
        """Let an edit act; where it fails, it leaves the model as it found it.

        Returns:
            What takes this edit back, bit for bit, as long as it is the last one.
        """
        self._before.extend(edit.parameters)
        found = WeightSnapshot(self.model, edit.parameters)
        try:
            remove = edit.apply(self.model)
        except BaseException:
            found.restore()
            raise
        if remove is not None:
            self._removals.append(remove)

        def undo() -> None:
            if remove is not None:
                self._removals.remove(remove)
                remove()
            found.restore()

        return undo

    def restore(self) -> None:
        """Take all edits back, bit for bit."""
        while self._removals:
            self._removals.pop()()
        self._before.restore()


def matches_record(model: EditableModel, batch: EditBatch) -> bool:
    """Whether the weights are, bit for bit, those that the run had after ``batch``.

    Raises:
        InputError: they are not even equal to rounding.
    """
    equal = True
    for name, recorded in batch.hashes.items():
        parameter = model.parameter(name)
        if tensor_hash(parameter) == recorded:
            continue
        equal = False
        if name not in batch.samples:  # of schema 1
            continue
        then, now = batch.samples[name].double(), sampled(parameter).cpu().double()
        tolerance = max(AGREEMENT, torch.finfo(parameter.dtype).eps)
        if then.shape != now.shape or not (now - then).norm() <= tolerance * then.norm():
            raise InputError(
                f"edits: expected {name} to have the weights that the run recorded, but they differ by more than "
                f"rounding ({tolerance:.0e}); the ledger's files are not those of one run"
            )
    return equal
