"""The editor: value vectors found by gradient in ``training_step``, a closed-form ``solve`` for the weights.

One epoch is one batch of edits; one training step finds the value vectors of some of its facts, in micro-batches that
fit into memory. The weights are changed by the ``WeightUpdate`` callback after the epoch's last step. A method is a
subclass with a ``solve``; see ``editkit.editors.closed_form.emmet`` for the shortest example.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib.metadata import version
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from editkit.atlas.builtin import DEFAULT
from editkit.covariance import SecondMomentSource
from editkit.data.facts import Fact
from editkit.data.module import FactsDataModule
from editkit.data.rows import Row
from editkit.editors.closed_form.search import (
    Group,
    GroupRows,
    MicroBatch,
    ValueSearch,
    group_rows,
    micro_batches,
    search_bytes,
    search_limit,
)
from editkit.editors.closed_form.spread import Spread
from editkit.evaluation.evaluator import BaselinePredictions, EditResult, Evaluator, Result, fact_of, in_order
from editkit.evaluation.protocol import Protocol
from editkit.evaluation.scores import AbilityScores, FactScores
from editkit.functional import Delta, FactoredSecondMoment
from editkit.functional.values import clamp_norm, group_mean, norm_penalty
from editkit.models.editable import EditableModel, lookup_states
from editkit.models.loading import load_language_model
from editkit.models.spans import encode_prompts, length_batches, pad
from editkit.models.templates import generate_templates
from editkit.utils.distributed import gather
from editkit.utils.errors import InputError

RECOMMENDED_LAYERS = "editkit_layers"  # in a checkpoint's config.json; the atlas has it
LOOKUP_TOKENS = 8192  # per padded batch where keys and states are read off, which keeps nothing
COMPACT = 8  # facts that are done leave the rows once they are one in so many of them

#: told after each gradient step: facts done, mean loss (nats), mean probability of the new target
Progress = Callable[[int, float, float], None]


@dataclass
class ValueVectors:
    """Value vectors of the facts of one edit batch, as they come in.

    Attributes:
        groups: facts per column.
        keys: (d_in, n) blocks of the first edited layer, float32.
        values: (d_out, n) blocks of v*, float32.
        facts: how many facts are done, those of the step at work included.
        loss: sum of their last losses (nats).
        probability: sum of their new targets' last probabilities.
        error: what ended the search on this process, kept until all processes can be told.
    """

    groups: list[Group] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    facts: int = 0
    loss: float = 0.0
    probability: float = 0.0
    error: Exception | None = None

    def on_cpu(self) -> ValueVectors:
        """What the other processes are told: groups, keys and values."""
        return ValueVectors(self.groups, [k.cpu() for k in self.keys], [v.cpu() for v in self.values])

    @classmethod
    def together(cls, parts: Sequence[ValueVectors], device: torch.device) -> ValueVectors:
        """What all processes found, in the groups' order, on ``device``; of n processes the r-th had groups[r::n]."""
        found = cls()
        total = sum(len(part.groups) for part in parts)
        origin = [(i % len(parts), i // len(parts)) for i in range(total)]
        found.groups = [parts[rank].groups[i] for rank, i in origin]
        for name in ("keys", "values"):
            columns = [torch.cat(getattr(part, name), 1) if part.groups else torch.zeros(0, 0) for part in parts]
            setattr(found, name, [torch.stack([columns[rank][:, i] for rank, i in origin], 1).to(device)])
        return found


class Editor(L.LightningModule):
    """Base of all closed-form editors. Override ``solve`` (or ``value_loss``) in a subclass.

    Args:
        lm: language model to edit: "atlas" (shipped), a checkpoint folder, or a Hugging Face hub name.
        layers: blocks whose MLP output projection is changed, counted from 0; values are found at the last of them.
            Default for the atlas: the block that its model card recommends.
        dtype: dtype of the model's weights: float32, bfloat16 or float16. Value vectors are always found in float32
            and the solve runs in float64.
        optimizer: optimiser of the value vectors; it must act elementwise.
        values: how value vectors are found.
        moments: text and size of the second moments.
        spread: rule that divides the residual among several layers.
        protocol: how edits are measured: "paper" (default), "public" or "easyedit", or the fields of one's own.
    """

    #: facts that one solve can take, None for any number
    max_batch_size: int | None = None

    def __init__(
        self,
        lm: str = DEFAULT,
        layers: list[int] | None = None,
        dtype: str = "float32",
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=0.5),
        values: ValueSearch | None = None,
        second_moment: SecondMomentSource | None = None,
        spread: Spread | None = None,
        protocol: Protocol | str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer"], logger=False)
        self.automatic_optimization = False
        self.lm, self.dtype_name, self.optimizer = lm, dtype, optimizer
        self.layers = sorted(set(layers)) if layers else None
        self.values = values or ValueSearch()
        self.second_moment = second_moment or SecondMomentSource()
        self.spread = spread or Spread()
        self.offset = nn.Parameter(torch.zeros(1))  # δ; takes its shape from each micro-batch
        self.found = ValueVectors()
        self.protocol, self._protocol_asked = Protocol(), protocol
        self.results: list[Result] = []
        self.original: BaselinePredictions | None = None
        self.language_model: PreTrainedModel | None = None
        self.progress: Progress | None = None
        self._templates: list[list[str]] | None = None
        self._byte_limit: int | None = None

    # ---------------------------------------------------------------- the model

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Use a model already in memory instead of loading ``lm``."""
        self.language_model, self.tokenizer = model, tokenizer
        self.editable = EditableModel(model)

    @override
    def configure_model(self) -> None:
        """Load the language model once and check the layers against it."""
        self.protocol = Protocol.of(self._protocol_asked)
        if self.language_model is None:
            self.attach(*load_language_model(self.lm, self.dtype_name))
        if self.layers is None:
            self.layers = getattr(self.editable.model.config, RECOMMENDED_LAYERS, None)
        for layer in self.layers or []:
            self.editable.projection(layer)
        if self.layers and len(self.layers) > 1 and self.at_projection:
            raise InputError(
                f"layers: {type(self.editable.model).__name__} normalises or scales what a projection puts out, so a "
                f"residual cannot be spread over several; expected one block, but got {self.layers}; choose one"
            )

    @property
    def edited_layers(self) -> list[int]:
        """The blocks to edit, ascending: those asked for, else those that the checkpoint's config recommends."""
        if not self.layers:
            raise InputError(
                f"layers: expected the blocks to edit, 0 to {self.editable.depth - 1} of this model, but got none; "
                "choose by measuring, or take the paper's (GPT2-XL 17, GPT-J 5, Llama-2-7b 5)"
            )
        return self.layers

    @property
    def at_projection(self) -> bool:
        """Whether values are found at the projection's output, because the block does not simply add it."""
        return not self.editable.adds_projection(self.edited_layers[-1])

    @property
    def templates(self) -> list[list[str]]:
        """Groups of context templates; sampled from the unedited model at first use."""
        if self._templates is None:
            given = self.values.context_templates
            self._templates = given or [
                ["{}"],
                generate_templates(self.editable, self.tokenizer, self.values.template_tokens, self.values.seed),
            ]
            for template in (t for group in self._templates for t in group):
                if template.count("{}") != 1:
                    raise InputError(
                        f"values.context_templates: expected one {{}} for the prompt in each template, but got "
                        f"{template!r}; write the prefix followed by {{}}"
                    )
        return self._templates

    def about(self) -> dict[str, Any]:
        """What the ledger keeps of this editor: class, hyperparameters, layers, templates, versions (JSON values)."""
        settings = {k: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for k, v in self.hparams.items()}
        return {
            "editor": f"{type(self).__module__}.{type(self).__qualname__}",
            "hyperparameters": settings,
            "layers": self.edited_layers,
            "templates": self.templates,
            "versions": {name: version(name) for name in ("editkit", "torch", "transformers")},
        }

    # ---------------------------------------------------------------- what a method overrides

    @property
    def rho(self) -> float:
        """ρ of the editor's solve, the ridge on D = KᵀC⁻¹K; 0 where facts are met exactly, NaN until it is chosen."""
        return 0.0

    def choose_rho(self, rho: float) -> None:
        """Take the ρ that was found best, where the setting behind it is "auto"."""
        raise TypeError(f"{type(self).__name__} has no ridge to choose")

    def solve(self, keys: Tensor, residuals: Tensor, moment: FactoredSecondMoment, names: Sequence[str]) -> Delta:
        """The weight change of one layer.

        Args:
            keys: (d_in, E) float32.
            residuals: (d_out, E) float32.
            moment: factored second moment of that layer.
            names: E subjects, for error messages.
        """
        raise TypeError(f"{type(self).__name__} must override solve(keys, residuals, moment, names)")

    def value_loss(self, nll: Tensor, kl: Tensor, offset: Tensor, start: Tensor) -> Tensor:
        """The loss of each fact (facts,) in nats.

        Args:
            nll: (facts,) mean over templates of the target's mean token NLL.
            kl: (facts,) KL divergence on the essence prompt.
            offset: (facts, hidden) δ.
            start: (facts, hidden) v₀.
        """
        return nll + self.values.kl_weight * kl + self.values.decay * norm_penalty(offset, start)

    # ---------------------------------------------------------------- value vectors

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer([self.offset])

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # facts are text

    @override
    def training_step(self, batch: list[Group], batch_idx: int) -> None:
        """Find the value vectors of ``batch``, groups of facts that share a key."""
        if not batch or self.found.error is not None:
            return
        before, began = self.found.facts, time.perf_counter()
        try:
            self.find_values(batch, self.optimizers())
        except Exception as error:
            if self.trainer.world_size == 1:
                raise
            self.found.error = error  # the others wait in the gather before the update, where it is raised on all
            return
        count = self.found.facts
        logged = {
            "loss": self.found.loss / count,
            "p(new)": self.found.probability / count,
            "facts_per_second": (count - before) / (time.perf_counter() - began),
        }
        self.log_dict(logged, batch_size=count - before)

    def find_values(self, batch: Sequence[Group], optimizer: Any = None) -> None:
        """Find v* of each group by gradient descent on all its facts and templates at once; append to ``found``.

        The groups are searched in micro-batches of like lengths, as many at a time as ``values.max_tokens`` or the
        memory allows; a group's result does not depend on which others those are.

        Args:
            batch: groups of facts with the same text up to the subject's end.
            optimizer: over ``self.offset``; made from the editor's own setting where there is no Trainer.
        """
        optimizer = optimizer or self.configure_optimizers()
        flat = [t for group in self.templates for t in group]
        rows = group_rows(self.tokenizer, batch, flat, self.values.kl_prompt)
        values: dict[int, Tensor] = {}
        keys: dict[int, Tensor] = {}
        waiting = self._micro_batches(rows, range(len(rows)))
        while waiting:
            chosen = waiting.pop(0)
            found = self._unless_out_of_memory([rows[i] for i in chosen], optimizer)
            if found is None:
                waiting = self._micro_batches(rows, chosen + [i for part in waiting for i in part])
                continue
            for i, value, key in zip(chosen, *found, strict=True):
                values[i], keys[i] = value, key
        self.found.groups += batch
        self.found.keys.append(self.mean_keys(torch.stack([keys[i] for i in range(len(rows))])))
        self.found.values.append(torch.stack([values[i] for i in range(len(rows))], 1))

    def _micro_batches(self, rows: Sequence[GroupRows], indices: Sequence[int]) -> list[list[int]]:
        """Which groups to search together, by tokens or by bytes."""
        groups = [rows[i] for i in indices]
        if self.values.max_tokens == "auto":
            costs = [search_bytes(self.editable, self.edited_layers[-1], group) for group in groups]
            limit = self._byte_limit or search_limit(self.editable.device)
        else:
            costs, limit = [group.tokens for group in groups], self.values.max_tokens
        return [[indices[i] for i in part] for part in micro_batches(groups, costs, limit)]

    def _unless_out_of_memory(self, groups: list[GroupRows], optimizer: Any) -> tuple[Tensor, Tensor] | None:
        """``_search``, or None after setting a lower limit where the memory did not suffice."""
        try:
            return self._search(groups, optimizer)
        except RuntimeError as error:
            if self.values.max_tokens != "auto" or not is_oom_error(error):
                raise
            if len(groups) == 1:
                raise InputError(
                    f"values: the memory does not suffice for {groups[0].facts[0].subject!r} alone "
                    f"({groups[0].tokens} tokens); give shorter or fewer values.context_templates, or a smaller dtype"
                ) from error
        # outside the handler, whose traceback would hold on to the tensors
        garbage_collection_cuda()
        self._byte_limit = sum(search_bytes(self.editable, self.edited_layers[-1], group) for group in groups) // 2
        return None

    def _search(self, groups: list[GroupRows], optimizer: Any) -> tuple[Tensor, Tensor]:
        """v* (G, hidden) and keys (G, templates, d_in) of one micro-batch."""
        work = MicroBatch(self.editable, groups, self.edited_layers[-1], self.edited_layers[0], self.at_projection)
        start, count = work.start, len(groups)
        self.offset.data = torch.zeros_like(start)
        optimizer.state.clear()
        active = torch.ones(count, dtype=torch.bool, device=start.device)
        sizes = torch.tensor([len(group.facts) for group in groups], device=start.device)
        mean_loss, mean_nll = torch.zeros(2, count, device=start.device)
        for step in range(self.values.num_steps):
            nll, kl = work.losses(self.offset)
            group_of = work.group_of
            loss = self.value_loss(nll, kl, self.offset[group_of], start[group_of])
            self._check_finite(loss, work.facts)
            present = torch.zeros_like(active).index_fill(0, group_of, True)
            mean_loss = torch.where(present, group_mean(loss.detach(), group_of, count), mean_loss)
            mean_nll = torch.where(present, group_mean(nll.detach(), group_of, count), mean_nll)
            active &= mean_loss >= self.values.loss_threshold
            self._show(sizes, ~active, mean_loss, mean_nll)
            if step == self.values.num_steps - 1 or not active.any():
                break
            optimizer.zero_grad()
            loss[active[group_of]].sum().backward()
            before = self.offset.detach().clone()
            optimizer.step()
            moved = clamp_norm(self.offset.detach(), start, self.values.clamp)
            self.offset.data = torch.where(active[:, None], moved, before)
            if int((present & ~active).sum()) * COMPACT >= int(present.sum()):
                work.keep(active)
        self._show(sizes, torch.ones_like(active), mean_loss, mean_nll)
        self.found.facts += int(sizes.sum())
        self.found.loss += float(mean_loss @ sizes.float())
        self.found.probability += float(mean_nll.neg().exp() @ sizes.float())
        return start + self.offset.detach(), work.keys

    def _show(self, sizes: Tensor, done: Tensor, loss: Tensor, nll: Tensor) -> None:
        """Tell ``progress`` of the micro-batch at work: (G,) facts per group, which are done, and their losses."""
        if self.progress is not None:
            weights = sizes.float() / sizes.sum()
            self.progress(
                self.found.facts + int(sizes[done].sum()), float(loss @ weights), float(nll.neg().exp() @ weights)
            )

    def mean_keys(self, keys: Tensor) -> Tensor:
        """Average (E, templates, d_in) over each group of templates and then over groups; returns (d_in, E)."""
        parts = keys.split([len(group) for group in self.templates], dim=1)
        return torch.stack([part.mean(1) for part in parts]).mean(0).T

    def keys(self, groups: Sequence[Group], layer: int) -> Tensor:
        """Keys of one block with the weights as they are: (d_in, E), averaged over the templates, float32."""
        flat = [t for group in self.templates for t in group]
        _, keys = self._lookup(groups, flat, layer, [layer])
        return self.mean_keys(keys[layer].view(len(groups), len(flat), -1).float())

    def states(self, groups: Sequence[Group]) -> Tensor:
        """What now stands at the lookup token of the bare prompts where values are found: (hidden, E) float32."""
        return self._lookup(groups, ["{}"], self.edited_layers[-1])[0].T.float()

    def _lookup(
        self, groups: Sequence[Group], templates: Sequence[str], last: int, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        spans = encode_prompts(self.tokenizer, [group[0] for group in groups], templates)
        batches = length_batches([len(s.ids) for s in spans], LOOKUP_TOKENS)
        parts = []
        for batch in batches:
            ids, mask = pad([spans[i].ids for i in batch], self.device)
            lookup = torch.tensor([spans[i].lookup for i in batch], device=self.device)
            parts.append(lookup_states(self.editable, ids, mask, lookup, last, layers, self.at_projection))
        back = torch.tensor([i for batch in batches for i in batch], device=self.device).argsort()
        return torch.cat([p[0] for p in parts])[back], {n: torch.cat([p[1][n] for p in parts])[back] for n in layers}

    def _check_finite(self, loss: Tensor, facts: Sequence[Fact]) -> None:
        bad = (~loss.isfinite()).nonzero().flatten().tolist()
        if bad:
            names = ", ".join(f"{facts[i].subject!r}" for i in bad[:5])
            raise InputError(
                f"values: the loss is not finite for {names}; no weight was changed; expected a finite loss: try a "
                "smaller optimizer lr, or dtype float32"
            )

    # ---------------------------------------------------------------- evaluation

    @override
    def on_validation_epoch_start(self) -> None:
        self.results = []

    @override
    def validation_step(self, batch: list[Row], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure rows of one kind; ``results`` has those of all processes once the epoch has ended."""
        data = self._data
        before = data is not None and "before" in data.phases()
        probes = data.probe_sets if data is not None else ()
        original = None if before else self.original or {}
        self.results += Evaluator(self.editable, self.tokenizer, self.protocol, probes, original).measure(batch)

    @override
    def on_validation_epoch_end(self) -> None:
        self.results = in_order(result for part in gather(self.results) for result in part)
        data = self._data
        if data is None:
            return
        if left_out := sum(not result.fits for result in self.results):
            rank_zero_warn(
                f"evaluation: {left_out} of {len(self.results)} rows are longer than the model's context window of "
                f"{self.editable.context} tokens, or than protocol.generation_length; they are left out of all scores",
                stacklevel=2,
            )
        for phase, facts in data.phases().items():
            if phase == "before":
                self.original = {r.key: r.predicted for r in self.results if isinstance(r, EditResult)}
            scores, members = FactScores(), frozenset(facts)
            scores.update(r for r in self.results if fact_of(r) in members)
            where = f"val/{phase}" if phase == "final" else "val"
            self._log_figures({f"{where}/{name}": f["mean"] for name, f in scores.results(intervals=False).items()})
        abilities = AbilityScores(data.probe_sets)
        abilities.update(self.results)
        for title, figures in abilities.results(intervals=False).items():
            self._log_figures({f"val/{title}/{name}": f["mean"] for name, f in figures.items()})

    def _log_figures(self, figures: dict[str, float]) -> None:
        self.log_dict(figures, prog_bar=False, rank_zero_only=True, batch_size=1)

    @property
    def _data(self) -> FactsDataModule | None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return data if isinstance(data, FactsDataModule) else None
