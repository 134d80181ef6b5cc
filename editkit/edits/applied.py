"""Edits on a model, and the way back, in any order."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from editkit.edits.batch import EditBatch
from editkit.edits.edit import Edit, Undo
from editkit.models.editable import EditableModel
from editkit.models.fingerprint import SAMPLES, sampled, sketch
from editkit.utils.errors import InputError
from editkit.utils.hashes import tensor_hash

STACK = "editkit_applied"  # attribute of a model that edits act on

FLOAT64_AGREEMENT = 1e-13  # of float64 weights, in which another order of summation shows everywhere
SAMPLED_AGREEMENT = 1e-6  # of the entries that ledgers of editkit 0.2 and before have


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


@dataclass(eq=False)
class _Layer:
    """What one ``AppliedEdits`` did to a model, and how the model was before.

    Attributes:
        name: of whose edits they are, for messages.
        model: that they act on.
        edits: in their order, each with what takes it off.
        before: the parameters that they change, as they were.
        held: whether somebody can still take them back.
    """

    name: str
    model: EditableModel
    edits: list[tuple[Edit, Undo | None]] = field(default_factory=list)
    before: WeightSnapshot = field(init=False)
    held: bool = True

    def __post_init__(self) -> None:
        self.before = WeightSnapshot(self.model)

    def put_on(self, edit: Edit) -> WeightSnapshot:
        """Let one more edit act; where it fails, it leaves the model as it found it.

        Returns:
            The parameters that it changed, as they were.
        """
        edit.check(self.model)
        self.before.extend(edit.parameters)
        found = WeightSnapshot(self.model, edit.parameters)
        try:
            self.edits.append((edit, edit.apply(self.model)))
        except BaseException:
            found.restore()
            raise
        return found

    def take_off(self) -> list[Edit]:
        """Put the model back, bit for bit, as it was before these edits; returns them."""
        edits, self.edits = self.edits, []
        for _, remove in reversed(edits):
            if remove is not None:
                remove()
        self.before.restore()
        self.before = WeightSnapshot(self.model)
        return [edit for edit, _ in edits]


class _Stack(list[_Layer]):
    """What acts on one model, the first below. A copy of the model has the edits in its weights, and no way back."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Stack:
        return _Stack()

    def __reduce__(self) -> tuple[type[_Stack], tuple[()]]:
        return _Stack, ()

    def let_go(self, layer: _Layer) -> None:
        """Nobody can take a layer back any more."""
        layer.held = False
        self.forget()

    def forget(self) -> None:
        """Keep no copies for nobody: of layers that cannot be taken back, with none below that can."""
        while self and not self[0].held:
            del self[0]


class AppliedEdits:
    """Edits that act on one model, in their order, and how the model was before the first.

    Those on one model know each other: taking back an earlier one takes the later ones off, puts the model back bit for
    bit, and lets the later ones act again; after all are taken back, in whatever order, the model has its first bits.

    Args:
        model: the model.
        name: whose edits these are, for messages.
    """

    def __init__(self, model: EditableModel, name: str = "edits") -> None:
        self.model = model
        self._stack: _Stack = model.model.__dict__.setdefault(STACK, _Stack())
        self._layer = _Layer(name, model)
        weakref.finalize(self, self._stack.let_go, self._layer).atexit = False

    @property
    def later(self) -> list[str]:
        """Names of the edits that were made on top of these."""
        return [layer.name for layer in self._above]

    @property
    def _above(self) -> list[_Layer]:
        return self._stack[self._stack.index(self._layer) + 1 :] if self._layer in self._stack else []

    def apply(self, edit: Edit) -> Undo:
        """Let an edit act; where it fails, it leaves the model as it found it.

        Returns:
            What takes this edit back, bit for bit, as long as it is the last one.

        Raises:
            InputError: the edit does not fit, or others were made on top of these.
        """
        self.check_last("apply")
        found = self._layer.put_on(edit)
        if self._layer not in self._stack:
            self._stack.append(self._layer)

        def undo() -> None:
            _, remove = self._layer.edits.pop()
            if remove is not None:
                remove()
            found.restore()
            if not self._layer.edits:
                self.restore()

        return undo

    def restore(self) -> None:
        """Take all edits back: the model is then, bit for bit, as if they had not acted.

        Edits that others made on top stay, which is warned about, as they were solved for weights that had these.
        """
        self.replace((), stacklevel=4)

    def replace(self, edits: Sequence[Edit], stacklevel: int = 3) -> None:
        """Let other edits act where these did, below those that were made on top of them, which is warned about."""
        above = self._above
        if above:
            warnings.warn(
                f"edits: {self._layer.name} is taken out and what came later stays ({', '.join(self.later)}): it was "
                "made on top, so the result is not as if these edits had never been made; once all are undone, the "
                "model has its first weights bit for bit",
                stacklevel=stacklevel,
            )
        later = [layer.take_off() for layer in reversed(above)][::-1]
        self._layer.take_off()
        for edit in edits:
            self._layer.put_on(edit)
        for layer, its in zip(above, later, strict=True):
            for edit in its:
                layer.put_on(edit)
        if not edits and self._layer in self._stack:
            self._stack.remove(self._layer)
            self._stack.forget()
        elif edits and self._layer not in self._stack:
            self._stack.append(self._layer)

    def check_last(self, what: str) -> None:
        """Raise an ``InputError`` that names the edits that were made on top of these, if there are any."""
        if self.later:
            raise InputError(
                f"{what}: expected {self._layer.name} to be the last edits of this model, but {', '.join(self.later)} "
                "came later; undo that first"
            )


def matches_record(model: EditableModel, batch: EditBatch) -> bool:
    """Whether the weights are, bit for bit, those that the run had after ``batch``.

    Raises:
        InputError: they are not even equal to the rounding of another machine, over all their entries.
    """
    equal = True
    for name, recorded in batch.hashes.items():
        parameter = model.parameter(name)
        if tensor_hash(parameter) == recorded:
            continue
        equal = False
        if name in batch.sketches:
            then, now = batch.sketches[name], sketch(parameter)
            tolerance = rounding(parameter)
        elif name in batch.samples:  # of schema 2 and 3
            then, now = batch.samples[name].double(), sampled(parameter).cpu().double()
            tolerance = max(SAMPLED_AGREEMENT, torch.finfo(parameter.dtype).eps)
        else:  # of schema 1
            continue
        if then.shape != now.shape or not (now - then).norm() <= tolerance * then.norm():
            raise InputError(
                f"edits: expected {name} to have the weights that the run recorded, but they differ by more than "
                f"rounding ({tolerance:.0e}); load the model in the dtype of the run, or the ledger's files are not "
                "those of one run"
            )
    return equal


def rounding(parameter: Tensor) -> float:
    """Largest relative difference of a parameter, in Frobenius norms, that the rounding of another machine explains.

    Edits are multiplied out and added up in float64. An entry differs only where the exact sum lies within some 1e-14
    of the boundary between two numbers of the dtype, and then by one step between them: one entry in a million, or ten
    of a small matrix, four times as large as the others.

    >>> f"{rounding(torch.zeros(4096, 16384)):.0e}", f"{rounding(torch.zeros(32, 128)):.0e}"
    ('5e-10', '2e-08')
    """
    count = max(1, parameter.numel())
    steps = 4 * math.sqrt((10 + count / 1e6) / count)
    return max(steps * torch.finfo(parameter.dtype).eps, FLOAT64_AGREEMENT)


def unchecked(batch: EditBatch) -> str:
    """What a record cannot show of weights that are not bit for bit the run's; empty where it shows all."""
    if all(name in batch.sketches for name in batch.hashes):
        return ""
    entries = f"more than {SAMPLES} entries of each" if batch.samples else "any entry"
    return f"; it was written by editkit 0.2 or before, and cannot show that {entries} of its parameters agree"
