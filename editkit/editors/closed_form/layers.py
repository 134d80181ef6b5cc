"""The edited layers, one after the other: what is asked of each, and what it is solved to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from editkit.editors.closed_form.preserved import PreservedKeys
from editkit.editors.closed_form.problem import LayerProblem
from editkit.editors.closed_form.searcher import ValueSearcher
from editkit.editors.closed_form.spread import Spread
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.edits import WeightEdit, WeightSnapshot
from editkit.edits.weight_edit import apply_delta, rounded_delta
from editkit.functional import Delta
from editkit.functional.delta import ZeroDelta, added
from editkit.functional.factored import NoSecondMoment
from editkit.models.editable import EditableModel

Solve = Callable[[LayerProblem], Delta]
#: from what is missing, (d_out, E), to the columns that a round is about
Choose = Callable[[Tensor], Sequence[int]]


class Goal(Protocol):
    """What is asked of the edited layers."""

    @property
    def names(self) -> list[str]:
        """Names of the columns, for messages."""
        ...

    def ask(self, layers: Sequence[int], index: int) -> tuple[Tensor, Tensor]:
        """Keys (d_in, E) of the ``index``-th edited layer, and what it is to add (d_out, E), on the model as it is."""
        ...


@dataclass(frozen=True)
class ReachValues:
    """Value vectors to be reached at the last edited layer, to which all layers add their shares.

    Keys and what is missing are measured anew before each layer. The first layer's keys came with the search.

    Attributes:
        vectors: what was found.
        searcher: what reads keys and states off the model.
        spread: rule that divides what is missing among the layers.
    """

    vectors: ValueVectors
    searcher: ValueSearcher
    spread: Spread

    @property
    def names(self) -> list[str]:
        return self.vectors.names

    def missing(self) -> Tensor:
        """(d_out, E) what the model as it is lacks."""
        return self.vectors.values - self.searcher.states(self.vectors.groups)

    def ask(self, layers: Sequence[int], index: int) -> tuple[Tensor, Tensor]:
        keys = self.searcher.keys(self.vectors.groups, layers[index]) if index else self.vectors.keys
        return keys, self.missing() * self.spread.share(len(layers) - index)

    def prompt_keys(self, layer: int) -> Tensor:
        """(d_in, E) of the bare prompts."""
        return self.searcher.prompt_keys(self.vectors.groups, layer)


@dataclass(frozen=True)
class GivenResiduals:
    """Each layer's own keys and residuals, known beforehand; no layer is asked for what others leave.

    Attributes:
        keys: block to (d_in, N).
        residuals: block to (d_out, N).
        names: N names.
    """

    keys: Mapping[int, Tensor]
    residuals: Mapping[int, Tensor]
    names: list[str]

    def ask(self, layers: Sequence[int], index: int) -> tuple[Tensor, Tensor]:
        return self.keys[layers[index]], self.residuals[layers[index]]


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
        layers: the edited blocks, ascending.
        preserved: the keys to preserve.
        originals: block to W₀ (d_out, d_in), where parts want it.
        last: whether the batch is the run's last.
        all_keys: whether problems have the keys of earlier batches, column by column.
        prompt_keys: whether problems have the keys of the bare prompts.
    """

    model: EditableModel
    layers: Sequence[int]
    preserved: PreservedKeys
    originals: Mapping[int, Tensor] = field(default_factory=dict)
    last: bool = True
    all_keys: bool = False
    prompt_keys: bool = False

    def problem(
        self,
        goal: Goal,
        index: int,
        columns: Sequence[int] | None = None,
        asked: tuple[Tensor, Tensor] | None = None,
    ) -> LayerProblem:
        """What is to be solved for the ``index``-th edited layer, on the model as it is now.

        Args:
            goal: what is asked.
            index: of the layer.
            columns: those that it is about; default all.
            asked: what the goal asks of all columns, where that was measured already.
        """
        layer = self.layers[index]
        keys, residuals = goal.ask(self.layers, index) if asked is None else asked
        names = goal.names
        bare = None
        if self.prompt_keys and isinstance(goal, ReachValues):
            bare = goal.prompt_keys(layer)
        if columns is not None:
            chosen = list(columns)
            keys, residuals, names = keys[:, chosen], residuals[:, chosen], [names[i] for i in chosen]
            bare = None if bare is None else bare[:, chosen]
        name = self.model.parameter_of(layer)
        return LayerProblem(
            layer,
            keys,
            residuals,
            self.preserved.second_moments.get(layer) or NoSecondMoment(),
            self.preserved.earlier(layer, keys) if self.all_keys else keys[:, :0],
            names,
            past=self.preserved.past(layer, keys),
            weight=self.model.oriented(name, self.model.parameter(name)).detach(),
            original=self.originals.get(layer),
            prompt_keys=bare,
            last=self.last,
        )

    @torch.no_grad()
    def solve(
        self,
        goal: Goal,
        solve: Solve,
        first: LayerProblem | None = None,
        rounds: int = 1,
        choose: Choose | None = None,
    ) -> SolvedLayers:
        """Solve each layer in turn.

        The model is edited for as long as it takes, and then as before, bit for bit, whatever happens.

        Args:
            goal: what is to be memorized.
            solve: from a layer's problem to its change.
            first: the first layer's problem, where it is known already.
            rounds: times that the layers are gone through, each on what the one before left.
            choose: says from what is missing, before each round, which columns it is about; none ends them.
        """
        names = [self.model.parameter_of(layer) for layer in self.layers]
        deltas: dict[int, Delta] = {}
        keys: dict[int, Tensor] = {}
        stay_in_place = names[:-1] if rounds == 1 else names
        before = WeightSnapshot(self.model, stay_in_place)
        try:
            for turn in range(rounds):
                columns = None
                if choose is not None and isinstance(goal, ReachValues):
                    columns = choose(goal.missing())
                    if turn and not len(columns):
                        break
                for index, (layer, name) in enumerate(zip(self.layers, names, strict=True)):
                    if first is not None and index == turn == 0:
                        problem, all_keys = first, first.keys
                    else:
                        asked = goal.ask(self.layers, index)
                        problem, all_keys = self.problem(goal, index, columns, asked), asked[0]
                    change = rounded_delta(solve(problem)) if problem.keys.shape[1] else ZeroDelta(problem.shape)
                    deltas[layer] = rounded_delta(added(deltas[layer], change)) if layer in deltas else change
                    if not turn:
                        keys[layer] = all_keys
                    if name in stay_in_place:
                        apply_delta(self.model, name, change)
        finally:
            before.restore()
        return SolvedLayers(deltas, keys)
