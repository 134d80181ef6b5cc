"""Edits that act by a module put around one of the model's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import override

from editkit.edits.edit import Edit, Undo
from editkit.models.editable import EditableModel
from editkit.utils.errors import InputError


class EditModule(nn.Module):
    """What is put around a module: it sees that module's input and output, and gives the output to go on with.

    Subclass it with a ``forward(inputs, outputs)`` and ``settings``. Its parameters and buffers are kept in the ledger.

    A ledger names the class, and only a class that has been imported is made from it: reading one runs no foreign code.
    """

    _known: ClassVar[dict[str, type[EditModule]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        EditModule._known[cls.path()] = cls

    @classmethod
    def path(cls) -> str:
        """Its import path."""
        return f"{cls.__module__}.{cls.__qualname__}"

    def settings(self) -> dict[str, Any]:
        """Arguments of the constructor, JSON values, that make a module into which the kept tensors can be loaded."""
        return {}

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The output to go on with.

        Args:
            inputs: (…, d_in), what the module was called with.
            outputs: (…, d_out), what it gave.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(inputs, outputs)")


@dataclass
class ModuleEdit(Edit):
    """A module put around another one's output.

    Attributes:
        at: name of the module that it is put around, as in ``model.named_modules()``.
        module: what is put there.
    """

    kind = "module"
    acts = "in a module of their own"

    at: str
    module: EditModule

    @override
    def check(self, model: EditableModel) -> None:
        model.submodule(self.at)

    @override
    def apply(self, model: EditableModel) -> Undo:
        around = model.submodule(self.at)
        place = next(around.parameters(), None)
        module = self.module.to(place.device if place is not None else model.device).eval().requires_grad_(False)
        remove: Undo = around.register_forward_hook(lambda _, inputs, outputs: module(inputs[0], outputs)).remove
        return remove

    @override
    def tensors(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())

    @override
    def header(self) -> dict[str, Any]:
        return {"at": self.at, "module": self.module.path(), "settings": self.module.settings()}

    @classmethod
    @override
    def read(cls, header: dict[str, Any], tensors: dict[str, Tensor]) -> ModuleEdit:
        known = EditModule._known.get(header["module"])
        if known is None:
            raise InputError(
                f"edits: expected the module {header['module']} to be imported, but it is not, and a ledger imports "
                f"nothing by itself; import {header['module'].rpartition('.')[0]} first, or give its editor as --model"
            )
        module = known(**header["settings"])
        module.load_state_dict(tensors)
        return cls(header["at"], module)
