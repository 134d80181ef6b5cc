"""What one batch of edits does to a model: the protocol that the ledger, undo, export and evaluation work with.

An ``Edit`` knows how to act on a model and how to be kept; nothing else in editkit asks which editor made it.

| kind | holds | made by |
|---|---|---|
| ``WeightEdit`` | parameter name → ``Delta``, of any parameter | closed form, fine-tuning, LoRA, hypernetworks |
| ``PromptEdit`` | text that goes before a prompt, and when | in-context editing, retrieval |
| ``ModuleEdit`` | a module put around another one's output | codebooks, side memories |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from editkit.functional.delta import Delta
from editkit.models.editable import EditableModel
from editkit.utils.errors import InputError

Undo = Callable[[], None]


@dataclass(kw_only=True)
class Edit(ABC):
    """A change of a model that can be applied, taken back bit for bit, and kept.

    Attributes:
        state: what the editor that made it needs for later batches (any names; no part of the change). It is kept in
            the ledger, and comes back in ``Editor.observe`` when a run is resumed.
        notes: what was found out about the batch (JSON values); "dropped" lists the ids of facts left out of it.
    """

    kind: ClassVar[str]

    state: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that ``apply`` changes in place."""
        return ()

    def check(self, model: EditableModel) -> None:  # noqa: B027 - an edit that fits every model has nothing to check
        """Raise an ``InputError`` unless the edit fits the model."""

    @abstractmethod
    def apply(self, model: EditableModel) -> Undo | None:
        """Let the edit act on a model.

        Returns:
            What takes it off again. None where only ``parameters`` were changed: whoever applies it has copies of them.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors to be kept, by name."""

    @abstractmethod
    def header(self) -> dict[str, Any]:
        """All else to be kept, as JSON values."""

    @classmethod
    @abstractmethod
    def read(cls, header: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
        """The edit that ``header`` and ``tensors`` were of."""

    def rounded(self) -> Edit:
        """The edit as the ledger keeps it, on the CPU, which is also what is applied."""
        return self

    def weight_changes(self) -> dict[str, Delta]:
        """Parameter name to its change: what a checkpoint or an adapter is made of.

        Raises:
            InputError: the edit acts otherwise, and cannot be shipped without editkit.
        """
        raise InputError(
            f"edits: expected a ledger of weight changes alone, but these edits act {self.acts}, which no checkpoint "
            "or adapter holds; use them through editkit"
        )

    #: where it acts, for messages
    acts: ClassVar[str]
