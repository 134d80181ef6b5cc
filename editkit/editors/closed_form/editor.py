"""Closed-form editors: value vectors found by gradient in the training steps, then one solve for each edited layer.

A method is a subclass with a ``solve``; see ``editkit.editors.closed_form.emmet`` for the shortest example.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from editkit.atlas.builtin import DEFAULT
from editkit.covariance import (
    SecondMomentSource,
    check_has_text,
    check_ready,
    check_source,
    factored_second_moments,
)
from editkit.data.facts import Fact
from editkit.data.module import group_by_key
from editkit.data.plan import RunPlan
from editkit.data.room import check_room
from editkit.editors.base import Editor
from editkit.editors.closed_form.checkpoint import ValueCheckpoint
from editkit.editors.closed_form.dependence import check_dependence
from editkit.editors.closed_form.layers import LayerProblem, LayerSolver
from editkit.editors.closed_form.preserved import PreservedKeys
from editkit.editors.closed_form.search import Group, SearchTotals, ValueSearch, check_optimizer, check_search
from editkit.editors.closed_form.searcher import Progress, ValueSearcher
from editkit.editors.closed_form.spread import Spread
from editkit.editors.closed_form.tuning import check_tuning, choose_ridge
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.editors.contradictions import contradictions
from editkit.edits import Edit, WeightEdit
from editkit.functional import Delta, FactoredSecondMoment
from editkit.functional.delta import ZeroDelta
from editkit.functional.values import norm_penalty
from editkit.models.editable import check_layers
from editkit.models.templates import generate_templates
from editkit.utils.distributed import gather, raise_on_all_ranks
from editkit.utils.errors import InputError, shorten


class ClosedFormEditor(Editor):
    """Base of all closed-form editors. Override ``solve`` (or ``value_loss``) in a subclass.

    Args:
        lm: language model to edit: "atlas" (shipped), a checkpoint folder, or a Hugging Face hub name.
        layers: blocks whose MLP output projection is changed, counted from 0, or one of them; values are found at the
            last. Default: the block that the checkpoint's config recommends, if it does (that of the atlas has it).
        dtype: dtype of the model's weights: float32, bfloat16 or float16. Value vectors are always found in float32
            and the solve runs in float64.
        optimizer: optimiser of the value vectors; it must act elementwise.
        values: how value vectors are found.
        second_moment: text and size of the second moments of the keys to preserve.
        spread: rule that divides the residual among several layers.
        earlier_keys: weight β of the keys of earlier batches in sequential mode: the second moment C grows by βKKᵀ with
            each batch, so that later edits preserve it too. "auto" is 1/ρ, with which batches solved one after the
            other in least squares are one solve of all their facts, for the same keys and values. 0: forget them.
        dependent: what is done about facts whose keys depend on other facts' keys (section 5.1 of the paper), and about
            those that ask for another target than an earlier fact with the same text (of their batch; of the whole run
            where batches stay): "keep" them, which of the former needs a ridge; "drop" the later ones from their batch;
            "fail" before anything is changed. They are named in the ledger's notes in any case.
    """

    shards_facts = True
    #: whether the keys of earlier batches are kept for ``solve``, even where they have no weight in the second moment
    keeps_earlier_keys: bool = False

    def __init__(
        self,
        lm: str = DEFAULT,
        layers: list[int] | int | None = None,
        dtype: str = "float32",
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=0.5),
        values: ValueSearch | None = None,
        second_moment: SecondMomentSource | None = None,
        spread: Spread | None = None,
        earlier_keys: NonNegativeFloat | Literal["auto"] = 0.0,
        dependent: Literal["keep", "drop", "fail"] = "keep",
    ) -> None:
        super().__init__(lm, dtype)
        blocks = _blocks(layers)
        if blocks is not None:
            self.hparams["layers"] = blocks  # the same whichever way it was written, so that a run goes on
        self.optimizer = optimizer
        self._layers_asked = blocks
        self.layers = sorted(set(blocks)) if blocks else None
        self.values = values or ValueSearch()
        self.second_moment = second_moment or SecondMomentSource()
        self.spread = spread or Spread()
        self.earlier_keys, self.dependent = earlier_keys, dependent
        self.offset = nn.Parameter(torch.zeros(1))  # δ; takes its shape from each micro-batch
        self._rho: float | None = None
        self._templates: list[list[str]] | None = None
        self._searcher: ValueSearcher | None = None
        self._findings: dict[str, Any] = {}
        self._preserved = PreservedKeys({})
        self._folder: str | None = None
        self._contradicted: dict[str, str] = {}  # facts that contradict earlier ones, and which
        self._ready_for: tuple[list[int], dict[str, Any]] | None = None  # layers and source that were looked at
        self._begin_batch()
        self._checkpoint = ValueCheckpoint(None)

    # ---------------------------------------------------------------- the model

    @override
    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().attach(model, tokenizer)
        self._templates, self._searcher, self._rho, self._findings = None, None, None, {}
        self._preserved = PreservedKeys({})
        self._folder = self._ready_for = None

    def keep_second_moments_in(self, folder: str | Path) -> None:
        """Take the second moments of the model at hand from a folder, or keep them there; forgotten with the model."""
        self._folder = str(folder)

    @property
    def _source(self) -> SecondMomentSource:
        """Where the second moments of the model at hand come from."""
        return self.second_moment if self._folder is None else replace(self.second_moment, path=self._folder)

    @override
    def configure_model(self) -> None:
        """Load the language model once and check the layers against it."""
        super().configure_model()
        layers = self.layers or self.editable.recommended_layers or []
        for layer in layers:
            self.editable.projection(layer)
        if len(layers) > 1 and self.at_projection:
            raise InputError(
                f"layers: {type(self.editable.model).__name__} normalises or scales what a projection puts out, so a "
                f"residual cannot be spread over several; expected one block, but got {layers}; choose one"
            )

    @property
    def edited_layers(self) -> list[int]:
        """The blocks to edit, ascending: those asked for, else those that the checkpoint's config recommends."""
        layers: list[int] | None = self.layers or self.editable.recommended_layers
        if not layers:
            raise InputError(
                f"layers: expected the blocks to edit, 0 to {self.editable.depth - 1} of this model, but got none; "
                "choose by measuring, or take the paper's (GPT2-XL 17, GPT-J 5, Llama-2-7b 5)"
            )
        return layers

    @property
    def at_projection(self) -> bool:
        """Whether values are found at the projection's output, because the block does not simply add it."""
        return not self.editable.adds_projection(self.edited_layers[-1])

    @property
    def templates(self) -> list[list[str]]:
        """Groups of context templates; sampled from the unedited model at first use."""
        if self._templates is None:
            if self.values.context_templates is None and self.values.template_tokens >= self.editable.context:
                raise InputError(
                    f"model.values.template_tokens: expected prefixes that leave room in the context window of "
                    f"{self.editable.context} tokens, but got {self.values.template_tokens}; lower it"
                )
            self._templates = self.values.context_templates or [
                ["{}"],
                generate_templates(self.editable, self.tokenizer, self.values.template_tokens, self.values.seed),
            ]
        return self._templates

    @property
    def searcher(self) -> ValueSearcher:
        """The search on the model at hand."""
        if self._searcher is None:
            self._searcher = ValueSearcher(
                self.editable, self.tokenizer, self.values, self.edited_layers, self.at_projection, self.templates,
                self.value_loss, self.mean_keys,
            )  # fmt: skip
        return self._searcher

    @override
    def about(self) -> dict[str, Any]:
        """Beside what every editor records: layers and templates."""
        return {**super().about(), "layers": self.edited_layers, "templates": self.templates}

    # ---------------------------------------------------------------- what a method overrides

    def solve(self, problem: LayerProblem) -> Delta:
        """The weight change of one layer."""
        raise TypeError(f"{type(self).__name__} must override solve(problem)")

    @property
    def ridge_setting(self) -> float | Literal["auto"]:
        """ρ as it was asked for, the ridge on D = KᵀC⁻¹K; 0 where facts are met exactly."""
        return 0.0

    def value_loss(self, nll: Tensor, kl: Tensor, offset: Tensor, start: Tensor) -> Tensor:
        """The loss of each fact (facts,) in nats.

        Args:
            nll: (facts,) mean over templates of the target's mean token NLL.
            kl: (facts,) KL divergence on the essence prompt.
            offset: (facts, hidden) δ.
            start: (facts, hidden) v₀.
        """
        return nll + self.values.kl_weight * kl + self.values.decay * norm_penalty(offset, start)

    def mean_keys(self, keys: Tensor) -> Tensor:
        """Average (E, templates, d_in) over each group of templates and then over groups; returns (d_in, E)."""
        parts = keys.split([len(group) for group in self.templates], dim=1)
        return torch.stack([part.mean(1) for part in parts]).mean(0).T

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
        if self._layers_asked is not None:
            check_layers(self._layers_asked, "model.layers")
        check_search(self.values)
        check_optimizer(self.optimizer)
        check_source(self._source, self.layers)
        check_has_text(self._source, self.lm, self.layers)

    @override
    def check(self, plan: RunPlan) -> None:
        """Layers, templates, where second moments are to be kept, and keys of earlier batches."""
        if self.needs_tuning:
            check_tuning(plan.tuning)
        asked = (list(self.edited_layers), asdict(self._source))
        if self._ready_for != asked:  # a plan is made twice, and weights are long to hash
            check_ready(self.editable, self.tokenizer, self.edited_layers, self._source)
            self._ready_for = asked
        templates = [template for group in self.templates for template in group]
        facts = [*plan.facts, *(plan.tuning.facts if plan.tuning is not None else ())]
        check_room(facts, self.tokenizer, self.editable.context, templates, self.values.kl_prompt)
        if self.earlier_keys and not plan.sequential:
            raise InputError(
                f"model.earlier_keys: independent batches know of no earlier ones, but got {self.earlier_keys!r}; set "
                "weight_update.mode to sequential, or leave it out"
            )
        if self.earlier_keys == "auto" and self.ridge_setting == 0:
            raise InputError(
                "model.earlier_keys: 'auto' is 1/ρ, but this editor's ridge ρ is 0; give a number, or the editor a "
                "ridge"
            )

    @override
    def prepare(self, plan: RunPlan) -> None:
        """Second moments of the edited layers, and the ridge where it is to be chosen."""
        second_moments = factored_second_moments(
            self.editable, self.tokenizer, self.edited_layers, self._source, plan.progress, plan.announce
        )
        self._checkpoint = ValueCheckpoint(plan.folder)
        self._rho, self._findings = None, {}
        self._contradicted = {c.later.fact_id: c.first.fact_id for c in contradictions(plan)}
        self.preserve(second_moments)
        if self.needs_tuning:
            self._findings = choose_ridge(self._find, self.layer_solver, plan)
            self._rho = float(self._findings["rho"])

    def preserve(self, second_moments: Mapping[int, FactoredSecondMoment]) -> None:
        """Preserve the keys of these second moments, block by block, and forget those of earlier batches."""
        self._preserved = PreservedKeys(dict(second_moments))

    @override
    def findings(self) -> dict[str, Any]:
        """Where the ridge was chosen: ρ, and the path along which it was."""
        return self._findings

    @override
    def observe(self, edit: Edit) -> None:
        """Let later batches preserve the keys of this one too."""
        self._preserved.add(edit.state, 1.0 / self.rho if self.earlier_keys == "auto" else float(self.earlier_keys))

    # ---------------------------------------------------------------- value vectors

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer([self.offset])

    def find_values(self, groups: Sequence[Group]) -> ValueVectors:
        """v* and keys of groups of facts that share a key, apart from any run."""
        return self._find(groups)[0]

    def _find(
        self,
        groups: Sequence[Group],
        totals: SearchTotals = SearchTotals(),  # noqa: B008 - frozen
        progress: Progress | None = None,
    ) -> tuple[ValueVectors, SearchTotals]:
        with torch.enable_grad():
            return self.searcher.find(groups, self.offset, self.configure_optimizers(), totals, progress)

    def _begin_batch(self) -> None:
        self._found: list[ValueVectors] = []
        self._totals = SearchTotals()
        self._error: Exception | None = None  # what ended the search on this process, until all can be told

    @override
    def on_train_epoch_start(self) -> None:
        self._begin_batch()

    @override
    def training_step(self, batch: list[Fact], batch_idx: int) -> None:
        """Find the value vectors of some facts, those that share a key together."""
        groups = group_by_key([fact for fact in batch if not self._drops(fact)])
        if not groups or self._error is not None:
            return
        epoch, device = self.trainer.current_epoch, self.editable.device
        if (kept := self._checkpoint.read(epoch, batch_idx, groups, device)) is not None:
            found, self._totals = kept
            self._found.append(found)
            return
        before, began = self._totals.facts, time.perf_counter()
        try:
            found, self._totals = self.searcher.find(
                groups, self.offset, self.optimizers(), self._totals, self.show_progress
            )
        except Exception as error:
            if self.trainer.world_size == 1:
                raise
            self._error = error  # the others wait in ``synchronize``, where it is raised on all
            return
        self._found.append(found)
        if batch_idx or not self.trainer.is_last_batch:  # of a batch of one step nothing but the solve is left
            self._checkpoint.write(epoch, batch_idx, found, self._totals)
        count = self._totals.facts
        logged = {
            "loss": self._totals.loss / count,
            "p(new)": self._totals.probability / count,
            "facts_per_second": (count - before) / (time.perf_counter() - began),
        }
        self.log_dict(logged, batch_size=count - before)

    @override
    def on_train_epoch_end(self) -> None:
        self._checkpoint.remove(self.trainer.current_epoch)

    @override
    def on_fit_end(self) -> None:
        if self.global_rank == 0:
            self._checkpoint.clear()

    @override
    def synchronize(self) -> None:
        raise_on_all_ranks(self._error)
        mine = ValueVectors.cat(self._found).to("cpu") if self._found else None
        parts = gather(mine)
        if len(parts) > 1 and any(part is not None for part in parts):
            self._found = [ValueVectors.deal_in(parts).to(self.editable.device)]

    # ---------------------------------------------------------------- the solve

    @override
    @torch.no_grad()
    def edit(self, batch: Sequence[Fact]) -> WeightEdit:
        """Solve each edited layer for what the training steps found."""
        edit = self.edit_for(ValueVectors.cat(self._found)) if self._found else self._no_change()
        pairs = {fact.fact_id: self._contradicted[fact.fact_id] for fact in batch if fact.fact_id in self._contradicted}
        if not pairs:
            return edit
        notes = {**edit.notes, "contradicting": [[first, later] for later, first in pairs.items()]}
        if self.dependent == "drop":
            notes["dropped"] = [*pairs, *notes.get("dropped", [])]
        return replace(edit, notes=notes)

    def _drops(self, fact: Fact) -> bool:
        return self.dependent == "drop" and fact.fact_id in self._contradicted

    def _no_change(self) -> WeightEdit:
        """The edit of a batch whose facts were all dropped."""
        model, names = self.editable, [self.editable.parameter_of(layer) for layer in self.edited_layers]
        d_out, d_in = model.oriented(names[0], model.parameter(names[0])).shape
        return WeightEdit(deltas={name: ZeroDelta((d_out, d_in)) for name in names})

    @torch.no_grad()
    def edit_for(self, vectors: ValueVectors) -> WeightEdit:
        """The edit that gives these value vectors; those of facts that are to be dropped are left out."""
        layers = self.layer_solver
        vectors, notes = check_dependence(vectors, self._preserved.second_moments[layers.layers[0]], self.dependent)
        solved = layers.solve(vectors, self.solve)
        state = {}
        if self.earlier_keys or self.keeps_earlier_keys:
            state = {f"keys.{layer}": keys.float().cpu() for layer, keys in solved.keys.items()}
        return replace(solved.edit(self.editable), state=state, notes=notes)

    @property
    def layer_solver(self) -> LayerSolver:
        """What goes through the edited layers one after the other."""
        return LayerSolver(self.editable, self.searcher, self.spread, self._preserved)


def _blocks(layers: Any) -> list[int] | None:
    """A list of blocks, of which there may be one alone."""
    blocks = [layers] if type(layers) is int else layers
    if blocks is None:
        return None
    if not isinstance(blocks, (list, tuple, range)) or not all(type(block) is int for block in blocks):
        raise InputError(f"layers: expected blocks, counted from 0, but got {shorten(layers)}; write [5]")
    return list(blocks)
