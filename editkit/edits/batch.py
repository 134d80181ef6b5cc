"""One batch of edits as the ledger has it: its facts, what was done, and what the weights were then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from editkit.data.facts import Fact
from editkit.edits.edit import Edit
from editkit.models.editable import EditableModel
from editkit.models.fingerprint import sketch
from editkit.utils.hashes import tensor_hash


@dataclass
class EditBatch:
    """One batch of edits.

    Attributes:
        facts: its facts.
        edit: what was done.
        hashes: parameter name to the hash of every bit of it after this batch, for each parameter that was changed.
        sketches: parameter name to its ``sketch`` then, (32, 32) float64 over all its entries, for machines that round
            otherwise.
        samples: parameter name to up to 512 entries of it then: what ledgers of editkit 0.2 and before have instead.
    """

    facts: Sequence[Fact]
    edit: Edit
    hashes: dict[str, str] = field(default_factory=dict)
    sketches: dict[str, Tensor] = field(default_factory=dict)
    samples: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: Sequence[Fact], edit: Edit, model: EditableModel) -> EditBatch:
        """The batch of an edit that was just applied to ``model``, less the facts that the edit left out."""
        dropped = set(edit.notes.get("dropped", []))
        return cls(
            [fact for fact in facts if fact.fact_id not in dropped],
            edit,
            hashes_of(model, edit.parameters),
            {name: sketch(model.parameter(name)) for name in edit.parameters},
        )


def hashes_of(model: EditableModel, names: Sequence[str]) -> dict[str, str]:
    """Hash of every bit of some parameters as they are now."""
    return {name: tensor_hash(model.parameter(name)) for name in names}
