"""The edited layers, one after the other: what is asked of each, and what it is solved to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.editors.closed_form.preserved import PreservedKeys
from editkit.editors.closed_form.searcher import ValueSearcher
from editkit.editors.closed_form.spread import Spread
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.edits import WeightEdit, WeightSnapshot
from editkit.edits.weight_edit import apply_delta, rounded_delta
from editkit.functional import Delta, FactoredSecondMoment
from editkit.models.editable import EditableModel


@dataclass(frozen=True)
class LayerProblem:
    """What ``solve`` is asked: the change of one layer's projection by which its keys give what is missing.

    Attributes:
        layer: the block.
        keys: (d_in, E) float32, its keys with the weights as they are.
        residuals: (d_out, E) float32, the layer's share of what is missing.
        second_moment: factored, of the keys to preserve: C, and βKKᵀ of earlier batches where ``earlier_keys`` is β.
        earlier_keys: (d_in, N) float32, the keys of earlier batches, where the editor keeps them; N may be 0.
        names: E subjects, for error messages.
    """

    layer: int
    keys: Tensor
    residuals: Tensor
    second_moment: FactoredSecondMoment
    earlier_keys: Tensor
    names: Sequence[str]


Solve = Callable[[LayerProblem], Delta]


@dataclass(frozen=True)
class SolvedLayers:
    """Block to weight change, rounded as the ledger keeps it, and to the keys for which it was solved."""

    deltas: Mapping[int, Delta]
    keys: Mapping[int, Tensor]

    def edit(self, model: EditableModel) -> WeightEdit:
        """The edit of the blocks' projections."""
        return WeightEdit(deltas={model.parameter_of(layer): delta for layer, delta in self.deltas.items()})


@dataclass(frozen=True)
class LayerSolver:
    """Goes through the edited layers, keys and residuals measured anew on the partly edited model.

    Attributes:
        model: the model.
        searcher: what reads keys and states off it.
        spread: rule that divides what is missing among the layers.
        preserved: the keys to preserve.
    """

    model: EditableModel
    searcher: ValueSearcher
    spread: Spread
    preserved: PreservedKeys

    @property
    def layers(self) -> Sequence[int]:
        """The edited blocks, ascending."""
        return self.searcher.layers

    def problem(self, vectors: ValueVectors, index: int) -> LayerProblem:
        """What is to be solved for the ``index``-th edited layer, on the model as it is now.

        The first layer's keys came with the value search; later ones are felt through the edits before them.
        """
        layer = self.layers[index]
        keys = self.searcher.keys(vectors.groups, layer) if index else vectors.keys
        missing = vectors.values - self.searcher.states(vectors.groups)
        return LayerProblem(
            layer,
            keys,
            missing * self.spread.share(len(self.layers) - index),
            self.preserved.second_moments[layer],
            self.preserved.earlier(layer, keys),
            vectors.names,
        )

    @torch.no_grad()
    def solve(self, vectors: ValueVectors, solve: Solve, first: LayerProblem | None = None) -> SolvedLayers:
        """Solve each layer in turn.

        The model is edited for as long as it takes, and then as before, bit for bit, whatever happens.

        Args:
            vectors: what is to be memorized.
            solve: from a layer's problem to its change.
            first: the first layer's problem, where it is known already.
        """
        names = [self.model.parameter_of(layer) for layer in self.layers]
        deltas: dict[int, Delta] = {}
        keys: dict[int, Tensor] = {}
        before = WeightSnapshot(self.model, names[:-1])
        try:
            for index, (layer, name) in enumerate(zip(self.layers, names, strict=True)):
                problem = first if index == 0 and first is not None else self.problem(vectors, index)
                deltas[layer], keys[layer] = rounded_delta(solve(problem)), problem.keys
                if index < len(names) - 1:
                    apply_delta(self.model, name, deltas[layer])
        finally:
            before.restore()
        return SolvedLayers(deltas, keys)
