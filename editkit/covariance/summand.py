"""What second moments are of: the keys of a block's output projection, or the gradients of the loss by its outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from editkit.models.editable import EditableModel, orient

SummandName = Literal["keys", "output_gradients"]


@dataclass(frozen=True)
class Summand:
    """What a second moment averages the outer products of, one vector for each token of text.

    Attributes:
        name: as the command line and files have it.
        title: the moments' name in messages.
        width_name: of the vectors' dimensions, d_in or d_out.
        axis: of the projection's weight (d_out, d_in) along which they lie.
        suffix: of its files' names, which stand beside those of other summands.
        of_all_weights: whether a vector depends on all of the model, rather than on what is before the projection.
        factored: whether it is solved with: there must be as many tokens as dimensions, and its factor is kept.
    """

    name: SummandName
    title: str
    width_name: str
    axis: int
    suffix: str
    of_all_weights: bool
    factored: bool

    @property
    def noun(self) -> str:
        """Its name in a sentence."""
        return self.name.replace("_", " ")

    def width(self, editable: EditableModel, layer: int) -> int:
        """Dimensions of a block's vectors."""
        return int(orient(editable.projection(layer), editable.weight(layer)).shape[self.axis])


#: C = E[k kᵀ] of the projection's inputs
KEYS = Summand("keys", "second moments", "d_in", 1, "", of_all_weights=False, factored=True)
#: B = E[g gᵀ] of the gradients by the projection's outputs
OUTPUT_GRADIENTS = Summand(
    "output_gradients", "second moments of output gradients", "d_out", 0, ".output_gradients",
    of_all_weights=True, factored=False,
)  # fmt: skip
SUMMANDS: dict[SummandName, Summand] = {summand.name: summand for summand in (KEYS, OUTPUT_GRADIENTS)}
