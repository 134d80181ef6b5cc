"""Closed-form editors: what must change, what must not, and one solve for each edited layer.

A method is a subclass with a ``solve``; see ``editkit.editors.closed_form.emmet`` for the shortest example, and
``ClosedForm`` for the one whose parts a config chooses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from editkit.covariance import (
    SecondMomentFolder,
    SecondMomentSource,
    check_has_text,
    check_ready,
    check_source,
    factored_second_moments,
)
from editkit.data.facts import Fact
from editkit.data.plan import RunPlan
from editkit.editors.base import setting
from editkit.editors.closed_form.dependence import check_dependence
from editkit.editors.closed_form.layers import Goal, LayerSolver, ReachValues
from editkit.editors.closed_form.parts import EditedLayer, Part, ResidualRule, RestraintRule, checked_part
from editkit.editors.closed_form.preserved import PreservedKeys
from editkit.editors.closed_form.problem import LayerProblem
from editkit.editors.closed_form.residuals import SearchedValues
from editkit.editors.closed_form.search import Group
from editkit.editors.closed_form.spread import Spread
from editkit.editors.closed_form.tuning import UpdatePath, check_tuning, choose_ridge
from editkit.editors.closed_form.value_editor import FoundPart, ValueEditor
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.editors.contradictions import contradictions
from editkit.edits import Edit, WeightEdit
from editkit.functional import Delta, FactoredSecondMoment, preservation_memorization_update, ridge_path
from editkit.functional.delta import ZeroDelta
from editkit.utils.errors import InputError, describe
from editkit.utils.numbers import check_numbers
from editkit.utils.words import listed


class ClosedFormEditor(ValueEditor):
    """Base of all closed-form editors. Override ``solve`` (or ``value_loss``) in a subclass.

    Args:
        second_moment: text and size of the second moments of the keys to preserve.
        spread: rule that divides the residual among several layers.
        earlier_keys: weight β of the keys of earlier batches in sequential mode: the second moment C grows by βKKᵀ with
            each batch, so that later edits preserve it too. "auto" is 1/ρ, with which batches solved one after the
            other in least squares are one solve of all their facts, for the same keys and values. 0: forget them.
            Default: the method's own, 0 where it says nothing of them.
        dependent: what is done about facts whose keys depend on other facts' keys (section 5.1 of the paper), and about
            those that ask for another target than an earlier fact with the same text (of their batch; of the whole run
            where batches stay): "keep" them, which of the former needs a ridge; "drop" the later ones from their batch;
            "fail" before anything is changed. They are named in the ledger's notes in any case.
        residual: what must change. Default: the difference to value vectors that are searched for as ``values`` says.
        restraints: what is trimmed from each layer's change, one after the other.
        kwargs: see ``ValueEditor``: lm, layers, dtype, optimizer, values.
    """

    #: whether the keys of earlier batches are kept for ``solve``, even where they have no weight in the second moment
    keeps_earlier_keys: bool = False
    #: whether they are summed up apart, as M, and the second moment stays as it is; then 0 and "auto" go with any mode
    sums_earlier_keys: bool = False
    #: ``earlier_keys`` where it is left out. (None stands in configs, so that another class brings its own.)
    own_earlier_keys: float | Literal["auto"] = 0.0
    #: whether problems have the keys of the bare prompts, too
    wants_prompt_keys: bool = False
    #: times that the layers are gone through for a batch
    rounds: int = 1
    #: whether ``choose`` says which facts a round is about
    chooses_facts: bool = False
    #: why value vectors must be searched for; empty where any residual will do
    needs_search: str = ""

    def __init__(
        self,
        second_moment: SecondMomentSource | None = None,
        spread: Spread | None = None,
        earlier_keys: NonNegativeFloat | Literal["auto"] | None = None,
        dependent: Literal["keep", "drop", "fail"] = "keep",
        residual: ResidualRule | None = None,
        restraints: list[RestraintRule] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.second_moment = second_moment or SecondMomentSource()
        self.spread = spread or Spread()
        self.earlier_keys = self.own_earlier_keys if earlier_keys is None else earlier_keys
        self.hparams["earlier_keys"] = self.earlier_keys
        self.dependent = dependent
        self.residual = checked_part(residual or SearchedValues(), ResidualRule, "model.residual")
        if restraints is not None and not isinstance(restraints, (list, tuple)):
            raise InputError(f"model.restraints: expected a list, but got {describe(restraints)}; write it in brackets")
        self.restraints = [checked_part(part, RestraintRule, "model.restraints") for part in restraints or []]
        self.hparams["residual"] = setting(residual)  # which may hold another editor, of which no copy is wanted
        self._forget()

    def _forget(self) -> None:
        """Nothing is known of any run or model."""
        self._rho: float | None = None
        self._findings: dict[str, Any] = {}
        self._preserved = PreservedKeys({})
        self._folder: str | None = None
        self._contradicted: dict[str, str] = {}  # facts that contradict earlier ones, and which
        self._ready_for: tuple[list[int], dict[str, Any]] | None = None  # layers and source that were looked at
        self.kept_second_moments: SecondMomentFolder | None = None  # where they need not be estimated, once checked
        self._batches_left = 1
        for part in self.parts.values():
            part.begin()

    @property
    def parts(self) -> dict[str, Part]:
        """The parts that may carry something from batch to batch, by what they are."""
        named = {f"restraints[{number}]": part for number, part in enumerate(self.restraints)}
        return {"residual": self.residual, **named}

    # ---------------------------------------------------------------- the model

    @override
    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().attach(model, tokenizer)
        self._forget()

    def keep_second_moments_in(self, folder: str | Path) -> None:
        """Take the second moments of the model at hand from a folder, or keep them there; forgotten with the model."""
        self._folder = str(folder)

    @property
    def source(self) -> SecondMomentSource:
        """Where the second moments of the model at hand come from."""
        return self.second_moment if self._folder is None else replace(self.second_moment, path=self._folder)

    @property
    def second_moments(self) -> Mapping[int, FactoredSecondMoment]:
        """Block to the factored second moment of what is preserved, once a run has begun."""
        return self._preserved.second_moments

    # ---------------------------------------------------------------- what a method overrides

    def solve(self, problem: LayerProblem) -> Delta:
        """The weight change of one layer, before it is trimmed."""
        raise TypeError(f"{type(self).__name__} must override solve(problem)")

    @property
    def ridge_setting(self) -> float | Literal["auto"]:
        """ρ as it was asked for, the ridge on D = KᵀC⁻¹K; 0 where facts are met exactly."""
        return 0.0

    @property
    def needs_second_moment(self) -> bool:
        """Whether second moments of text are needed at all."""
        return True

    def path(self, problem: LayerProblem) -> UpdatePath:
        """The changes of one layer for every ridge, from which "auto" chooses."""
        return ridge_path(problem.keys, problem.residuals, problem.second_moment)

    def solve_at(self, problem: LayerProblem, rho: float) -> Delta:
        """The change of one layer at a ridge, while one is being chosen."""
        return preservation_memorization_update(problem.keys, problem.residuals, problem.second_moment, rho)

    def choose(self, missing: Tensor) -> Sequence[int]:
        """The columns that a round is about, from what each lacks (d_out, E); none ends the rounds."""
        return range(missing.shape[1])

    def restrain(self, delta: Delta, problem: LayerProblem) -> Delta:
        """A layer's change as it is made."""
        for restraint in self.restraints:
            delta = restraint.apply(delta, problem)
        return delta

    # ---------------------------------------------------------------- a run

    @property
    def rho(self) -> float:
        """The ρ of the solve: as asked for, or as ``prepare`` chose it.

        Raises:
            InputError: it is "auto", and there was no run to choose it in.
        """
        if self.ridge_setting != "auto":
            return self.ridge_setting
        if self._rho is None:
            raise InputError("ridge: 'auto' is chosen when a run begins, and none has; expected a number: give one")
        return self._rho

    @property
    @override
    def needs_tuning(self) -> bool:
        return self.ridge_setting == "auto"

    @property
    @override
    def searches_values(self) -> bool:
        return self.residual.searches

    @property
    @override
    def needs_original(self) -> bool:
        return super().needs_original or any(part.needs_original for part in self.parts.values())

    @classmethod
    @override
    def missing(cls) -> str:
        solves = cls.edit is not ClosedFormEditor.edit or cls.solve is not ClosedFormEditor.solve
        return super().missing() or ("" if solves else "solve")

    @override
    def check_settings(self) -> None:
        """Layers, how values are searched, and where second moments come from."""
        super().check_settings()
        if self.missing() == "solve":
            raise InputError(
                f"model: expected an editor, but {type(self).__name__} is the base of closed forms and has no solve; "
                "choose editkit.EMMET, editkit.MEMIT, editkit.ROME or a subclass with a method solve"
            )
        for name, part in self.parts.items():
            check_numbers({name: part}, {}, "model")
            if method := part.missing():
                raise InputError(
                    f"model.{name}: expected a part, but {type(part).__name__} is a base and has no {method}; choose "
                    f"{listed(sorted(kind.__name__ for kind in type(part).__subclasses__()), 8)}, or a subclass with it"
                )
        if not self.searches_values and self.needs_search:
            raise InputError(
                f"model.residual: expected one that searches for values, as {type(self).__name__} {self.needs_search}, "
                f"but got {type(self.residual).__name__}; leave it out, or choose editkit.ClosedForm with other parts"
            )
        if not self.searches_values and type(self.spread) is not Spread:
            raise InputError(
                f"model.spread: expected none, as {type(self.residual).__name__} gives each layer a residual of its "
                f"own and nothing is spread, but got {type(self.spread).__name__}; leave it out"
            )
        if self.needs_second_moment:
            check_source(self.source, self.layers)
            check_has_text(self.source, self.lm, self.layers)
        if self.needs_tuning and not self.searches_values:
            raise InputError(
                "model.ridge: 'auto' chooses along the path of ridges for value vectors, which this residual does not "
                "search for; expected a number: give one"
            )

    @override
    def check(self, plan: RunPlan) -> None:
        """Layers, templates, where second moments are to be kept, and keys of earlier batches."""
        if self.needs_tuning:
            check_tuning(plan.tuning)
        asked = (list(self.edited_layers), asdict(self.source))
        if self.needs_second_moment and self._ready_for != asked:  # a plan is made twice, and weights are long to hash
            self.kept_second_moments = check_ready(self.editable, self.tokenizer, self.edited_layers, self.source)
            self._ready_for = asked
        super().check(plan)
        if self.earlier_keys and not plan.sequential and not self.sums_earlier_keys:
            raise InputError(
                f"model.earlier_keys: independent batches know of no earlier ones, but got {self.earlier_keys!r}; set "
                "weight_update.mode to sequential, or leave it out"
            )
        if self.earlier_keys == "auto" and self.ridge_setting == 0 and not self.sums_earlier_keys:
            raise InputError(
                "model.earlier_keys: 'auto' is 1/ρ, but this editor's ridge ρ is 0; give a number, or the editor a "
                "ridge"
            )
        for part in self.parts.values():
            part.check(self, plan)

    @override
    def prepare(self, plan: RunPlan) -> None:
        """Second moments of the edited layers, the ridge where it is to be chosen, and what the parts need."""
        second_moments = {}
        if self.needs_second_moment:
            second_moments = factored_second_moments(
                self.editable, self.tokenizer, self.edited_layers, self.source, plan.progress, plan.announce
            )
        super().prepare(plan)
        self._rho, self._findings = None, {}
        self._contradicted = {c.later.fact_id: c.first.fact_id for c in contradictions(plan)}
        self._batches_left = plan.num_batches if plan.sequential else 1
        self.preserve(second_moments)
        for part in self.parts.values():
            part.prepare(self, plan)
            self._findings |= part.findings()
        if self.needs_tuning:
            self._findings |= choose_ridge(self.find, self.layer_solver, plan, self)
            self._rho = float(self._findings["rho"])

    def preserve(self, second_moments: Mapping[int, FactoredSecondMoment]) -> None:
        """Preserve the keys of these second moments, block by block, and forget those of earlier batches."""
        for part in self.parts.values():
            part.begin()
        self._preserved = PreservedKeys(second_moments, self.sums_earlier_keys)

    @override
    def findings(self) -> dict[str, Any]:
        """Where the ridge was chosen: ρ, and the path along which it was; and what parts found out."""
        return self._findings

    @override
    def observe(self, edit: Edit) -> None:
        """Let later batches preserve the keys of this one too, and the parts take note of it."""
        self._batches_left -= 1
        self._unedited = False
        weight = (1.0 / self.rho if self.rho else 1.0) if self.earlier_keys == "auto" else float(self.earlier_keys)
        self._preserved.add(edit.state, self.edited_layers, weight)
        edited = [self._edited_layer(layer, edit) for layer in self.edited_layers]
        for name, part in self.parts.items():
            part.observe(own_state(edit.state, name), edited)

    def _edited_layer(self, layer: int, edit: Edit) -> EditedLayer:
        name = self.editable.parameter_of(layer)
        return EditedLayer(
            layer,
            edit.state.get(f"keys.{layer}"),
            self.editable.oriented(name, self.editable.parameter(name)).detach(),
            self.originals.get(layer),
            self.second_moments.get(layer),
        )

    # ---------------------------------------------------------------- what is found for each fact

    @override
    def revised(self, vectors: ValueVectors) -> ValueVectors:
        return self.residual.revised(self, vectors)

    @override
    def configure_optimizers(self) -> Any:
        return self.residual.configure_optimizers(self)

    @override
    def synchronize(self) -> None:
        super().synchronize()
        self.residual.synchronize(self)

    @override
    def find_step(self, groups: Sequence[Group], batch_idx: int) -> FoundPart:
        if self.searches_values:
            return super().find_step(groups, batch_idx)
        return self.residual.step(self, groups, batch_idx)

    @override
    def drops(self, fact: Fact) -> bool:
        return self.dependent == "drop" and fact.fact_id in self._contradicted

    # ---------------------------------------------------------------- the solve

    @override
    @torch.no_grad()
    def edit(self, batch: Sequence[Fact]) -> WeightEdit:
        """Solve each edited layer for what the training steps found."""
        edit = self._edit_found() if self._found else self._no_change()
        pairs = {fact.fact_id: self._contradicted[fact.fact_id] for fact in batch if fact.fact_id in self._contradicted}
        if not pairs:
            return edit
        notes = {**edit.notes, "contradicting": [[first, later] for later, first in pairs.items()]}
        if self.dependent == "drop":
            notes["dropped"] = [*pairs, *notes.get("dropped", [])]
        return replace(edit, notes=notes)

    def _edit_found(self) -> WeightEdit:
        if self.searches_values:
            return self.edit_for(ValueVectors.cat(self._found))
        return self._solved(self.residual.goal(self, self._found), {})

    def _no_change(self) -> WeightEdit:
        """The edit of a batch whose facts were all dropped."""
        model, names = self.editable, [self.editable.parameter_of(layer) for layer in self.edited_layers]
        d_out, d_in = model.oriented(names[0], model.parameter(names[0])).shape
        return WeightEdit(deltas={name: ZeroDelta((d_out, d_in)) for name in names})

    @torch.no_grad()
    def edit_for(self, vectors: ValueVectors) -> WeightEdit:
        """The edit that gives these value vectors; those of facts that are to be dropped are left out."""
        moment = self.second_moments.get(self.edited_layers[0])
        vectors, notes = check_dependence(vectors, moment, self.dependent)
        return self._solved(self.reach(vectors), notes)

    def reach(self, vectors: ValueVectors) -> ReachValues:
        """What the edited layers are asked for, so that the last of them gives these values."""
        return ReachValues(vectors, self.searcher, self.spread)

    def _solved(self, goal: Goal, notes: dict[str, Any]) -> WeightEdit:
        def solve(problem: LayerProblem) -> Delta:
            return self.restrain(self.solve(problem), problem)

        solved = self.layer_solver.solve(
            goal, solve, rounds=self.rounds, choose=self.choose if self.chooses_facts else None
        )
        state = {f"{name}.{key}": t for name, part in self.parts.items() for key, t in part.state().items()}
        if self.earlier_keys or self.keeps_earlier_keys:
            state |= {f"keys.{layer}": keys.float().cpu() for layer, keys in solved.keys.items()}
        return replace(solved.edit(self.editable), state=state, notes=notes)

    @property
    def layer_solver(self) -> LayerSolver:
        """What goes through the edited layers one after the other."""
        return LayerSolver(
            self.editable, self.edited_layers, self._preserved, self.originals, self._batches_left <= 1,
            self.keeps_earlier_keys, self.wants_prompt_keys,
        )  # fmt: skip


def own_state(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """A part's own entries of an edit's state."""
    return {key.removeprefix(f"{name}."): t for key, t in state.items() if key.startswith(f"{name}.")}
