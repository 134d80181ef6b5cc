"""The replaceable parts of a closed form: what each is asked, and what it may carry from batch to batch.

    Δ = Π[ R (KᵀHK + ρI)⁻¹ KᵀH ]

| part | decides | base |
|---|---|---|
| residual R | what must change | ``ResidualRule`` (``residuals``) |
| preservation H | what must not | ``PreservationRule`` (``preservations``) |
| spread | over which layers | ``Spread`` |
| restraint Π | what is trimmed | ``RestraintRule`` (``restraints``) |

A part holds its settings and, between ``begin`` and the end of a run, what it gathered of that run's batches, layer by
layer. All of that follows from the batches' edits, so that a run that is resumed, or of which a batch is undone, shows
them to ``observe`` again and the part is, bit for bit, where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from jsonargparse.typing import restricted_number_type
from torch import Tensor
from typing_extensions import override

from editkit.data.plan import RunPlan
from editkit.editors.closed_form.problem import LayerProblem
from editkit.functional import Delta, FactoredSecondMoment
from editkit.functional.preservation import Preservation
from editkit.utils.errors import InputError, describe
from editkit.utils.words import listed

if TYPE_CHECKING:
    from editkit.editors.closed_form.editor import ClosedFormEditor
    from editkit.editors.closed_form.layers import Goal
    from editkit.editors.closed_form.search import Group
    from editkit.editors.closed_form.value_editor import FoundPart
    from editkit.editors.closed_form.vectors import ValueVectors


@dataclass(frozen=True)
class EditedLayer:
    """A layer after a batch of edits, as parts observe it.

    Attributes:
        layer: the block.
        keys: (d_in, E) float32, of the batch; None where its ledger has none.
        weight: (d_out, d_in), with the batch's change in it.
        original: (d_out, d_in), before the run; None where no part wants it.
        second_moment: factored, C of text; None where nothing is preserved by it.
    """

    layer: int
    keys: Tensor | None
    weight: Tensor
    original: Tensor | None
    second_moment: FactoredSecondMoment | None


class Part:
    """What all parts have in common."""

    #: whether it is to be shown the weights before the run
    needs_original: bool = False

    @classmethod
    def missing(cls) -> str:
        """The method that a base leaves to its subclasses to define; else empty."""
        return ""

    def check(self, editor: ClosedFormEditor, plan: RunPlan) -> None:
        """Raise an ``InputError`` where it does not go with the editor or the plan."""

    def begin(self) -> None:
        """Forget what was gathered of another run."""

    def prepare(self, editor: ClosedFormEditor, plan: RunPlan) -> None:
        """Get ready for a run, on the unedited model, after second moments are there."""

    def findings(self) -> dict[str, Any]:
        """What ``prepare`` found out (JSON values), for the ledger and for a resumed run."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What the ledger is to keep with the present batch, under names of the part's own."""
        return {}

    def observe(self, state: Mapping[str, Tensor], layers: Sequence[EditedLayer]) -> None:
        """Take note of a batch that now acts on the model.

        Args:
            state: what ``state`` gave of it.
            layers: the edited ones.
        """


Share = restricted_number_type(None, float, [(">", 0), ("<=", 1)])
SomePart = TypeVar("SomePart", bound=Part)


def checked_part(part: SomePart, kind: type[Part], field: str) -> SomePart:
    """A part that was asked for.

    Raises:
        InputError: it is none of that kind.
    """
    if not isinstance(part, kind):
        raise InputError(
            f"{field}: expected a {kind.__name__}, but got {describe(part)}; choose one of "
            f"{listed(sorted(sub.__name__ for sub in kind.__subclasses__()), 8)}"
        )
    return part


class PreservationRule(Part):
    """What must not change: H."""

    #: whether it needs C, the second moments of text
    needs_second_moment: bool = True

    @classmethod
    @override
    def missing(cls) -> str:
        return "of" if cls.of is PreservationRule.of else ""

    def of(self, problem: LayerProblem) -> Preservation:
        """H for one layer's problem."""
        raise TypeError(f"{type(self).__name__} must override of(problem)")

    def restoring(self, problem: LayerProblem, preservation: Preservation) -> Tensor | None:
        """Δ₀, (d_out, d_in) float64: a change made whatever the facts are; None for none."""
        return None


class ResidualRule(Part):
    """What must change: R."""

    #: whether value vectors are searched for, of which R is the difference to what the model gives
    searches: bool = True

    def revised(self, editor: ClosedFormEditor, vectors: ValueVectors) -> ValueVectors:
        """Value vectors as they are asked for, from those that the search found."""
        return vectors

    def configure_optimizers(self, editor: ClosedFormEditor) -> Any:
        """What Lightning is to give ``training_step`` as optimisers."""
        return editor.optimizer([editor.offset])

    def synchronize(self, editor: ClosedFormEditor) -> None:
        """Bring together what several processes found and no ``FoundPart`` has."""

    def step(self, editor: ClosedFormEditor, groups: Sequence[Group], batch_idx: int) -> FoundPart:
        """What one training step finds out about some facts, where no value vectors are searched for."""
        raise TypeError(f"{type(self).__name__} must override step(editor, groups, batch_idx), or set searches")

    def goal(self, editor: ClosedFormEditor, found: Sequence[Any]) -> Goal:
        """What the edited layers are asked for, from what the steps of a batch found."""
        raise TypeError(f"{type(self).__name__} must override goal(editor, found), or set searches")


class RestraintRule(Part):
    """What is trimmed from a change: Π."""

    @classmethod
    @override
    def missing(cls) -> str:
        return "apply" if cls.apply is RestraintRule.apply else ""

    def apply(self, delta: Delta, problem: LayerProblem) -> Delta:
        """The change as it is made.

        Args:
            delta: as solved for.
            problem: the layer's, with its weight as it is.
        """
        raise TypeError(f"{type(self).__name__} must override apply(delta, problem)")
