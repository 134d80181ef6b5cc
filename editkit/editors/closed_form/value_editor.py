"""Editors that find value vectors by gradient in their training steps, whatever they then make of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any, Protocol

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from editkit.atlas.builtin import DEFAULT
from editkit.data.facts import Fact
from editkit.data.module import group_by_key
from editkit.data.plan import RunPlan
from editkit.data.room import check_room
from editkit.editors.base import Editor
from editkit.editors.closed_form.checkpoint import ValueCheckpoint
from editkit.editors.closed_form.search import Group, SearchTotals, ValueSearch, check_optimizer, check_search
from editkit.editors.closed_form.searcher import Progress, ValueSearcher
from editkit.editors.closed_form.store import FIELD, ValueStore, split
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.edits import WeightSnapshot
from editkit.functional.values import norm_penalty
from editkit.models.content import tokenizer_hash
from editkit.models.editable import check_layers
from editkit.models.fingerprint import fingerprint
from editkit.models.templates import generate_templates
from editkit.utils.distributed import gather, raise_on_all_ranks
from editkit.utils.errors import InputError, shorten
from editkit.utils.files import check_can_write, user_path


class FoundPart(Protocol):
    """What a training step finds for some groups of facts, which several processes bring together."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The facts of each column."""

    def to(self, device: torch.device | str) -> Any:
        """The same on another device."""

    @classmethod
    def cat(cls, parts: Sequence[Any]) -> Any:
        """Groups of one after those of the other."""

    @classmethod
    def deal_in(cls, parts: Sequence[Any]) -> Any:
        """What all processes found, in the groups' order."""


class ValueEditor(Editor):
    """Base of editors that find value vectors v*: what the last edited block must give for each fact.

    Args:
        lm: language model to edit: "atlas" (shipped), a checkpoint folder, or a Hugging Face hub name.
        layers: blocks whose MLP output projection is changed, counted from 0, or one of them; values are found at the
            last. Default: the block that the checkpoint's config recommends, if it does (that of the atlas has it).
        dtype: dtype of the model's weights: float32, bfloat16 or float16. Value vectors are always found in float32
            and the solve runs in float64.
        optimizer: optimiser of the value vectors; it must act elementwise.
        values: how value vectors are found.
    """

    shards_facts = True

    def __init__(
        self,
        lm: str = DEFAULT,
        layers: list[int] | int | None = None,
        dtype: str = "float32",
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=0.5),
        values: ValueSearch | None = None,
    ) -> None:
        super().__init__(lm, dtype)
        blocks = _blocks(layers)
        if blocks is not None:
            self.hparams["layers"] = blocks  # the same whichever way it was written, so that a run goes on
        self.optimizer = optimizer
        self._layers_asked = blocks
        self.layers = sorted(set(blocks)) if blocks else None
        self.values = values or ValueSearch()
        self.offset = nn.Parameter(torch.zeros(1))  # δ; takes its shape from each micro-batch
        self._templates: list[list[str]] | None = None
        self._searcher: ValueSearcher | None = None
        self._originals: dict[int, Tensor] = {}
        self._begin_batch()
        self._checkpoint = ValueCheckpoint(None)
        self._store: ValueStore | None = None
        self._unedited = True  # whether the weights are those of before the run, whenever values are found

    # ---------------------------------------------------------------- the model

    @override
    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().attach(model, tokenizer)
        self._templates, self._searcher, self._originals, self._store = None, None, {}, None

    @override
    def configure_model(self) -> None:
        """Load the language model once and check the layers against it."""
        super().configure_model()
        layers = self.layers or self.editable.recommended_layers or []
        for layer in layers:
            self.editable.projection(layer)
        if self.searches_values and len(layers) > 1 and not self.editable.adds_projection(layers[-1]):
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

    @property
    def searches_values(self) -> bool:
        """Whether value vectors are searched for at all."""
        return True

    @property
    def needs_original(self) -> bool:
        """Whether the edited weights are kept as they are before the run."""
        return self.searches_values and self.values.weights == "unedited"

    def drops(self, fact: Fact) -> bool:
        """Whether a fact is left out of its batch, so that nothing needs to be found for it."""
        return False

    def revised(self, vectors: ValueVectors) -> ValueVectors:
        """Value vectors as they are asked for, from those that the search found; told on the weights of the search."""
        return vectors

    # ---------------------------------------------------------------- a run

    @override
    def check_settings(self) -> None:
        """Layers, and how values are searched."""
        super().check_settings()
        if self._layers_asked is not None:
            check_layers(self._layers_asked, "model.layers")
        check_search(self.values)
        check_optimizer(self.optimizer)
        if self.values.store is not None and self.searches_values:
            check_can_write(user_path(self.values.store, FIELD), FIELD)

    @override
    def check(self, plan: RunPlan) -> None:
        """Templates, and whether the facts fit in."""
        if not self.searches_values:
            return
        templates = [template for group in self.templates for template in group]
        facts = [*plan.facts, *(plan.tuning.facts if plan.tuning is not None else ())]
        check_room(facts, self.tokenizer, self.editable.context, templates, self.values.kl_prompt)

    @override
    def prepare(self, plan: RunPlan) -> None:
        """Where unfinished batches are kept, and the weights before the run."""
        self._checkpoint = ValueCheckpoint(plan.folder)
        self._store, self._unedited = self._open_store(), True
        names = {layer: self.editable.parameter_of(layer) for layer in self.edited_layers if self.needs_original}
        self._originals = {
            layer: self.editable.oriented(name, self.editable.parameter(name)).detach().clone()
            for layer, name in names.items()
        }

    @property
    def originals(self) -> Mapping[int, Tensor]:
        """Block to W₀ (d_out, d_in), before the run, where it is kept."""
        return self._originals

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """The weights before the run, for as long as this lasts; then, bit for bit, as they were."""
        names = {layer: self.editable.parameter_of(layer) for layer in self._originals}
        present = WeightSnapshot(self.editable, list(names.values()))
        try:
            with torch.no_grad():
                for layer, name in names.items():
                    self.editable.parameter(name).copy_(self.editable.oriented(name, self._originals[layer]))
            yield
        finally:
            present.restore()

    # ---------------------------------------------------------------- value vectors

    @override
    def configure_optimizers(self) -> Any:
        return self.optimizer([self.offset])

    def find_values(self, groups: Sequence[Group]) -> ValueVectors:
        """v* and keys of groups of facts that share a key, apart from any run."""
        return self.find(groups)[0]

    def find(
        self,
        groups: Sequence[Group],
        totals: SearchTotals = SearchTotals(),  # noqa: B008 - frozen
        progress: Progress | None = None,
        optimizer: Any = None,
    ) -> tuple[ValueVectors, SearchTotals]:
        """v* and keys of groups of facts that share a key, and the totals of the batch after them."""
        optimizer = optimizer or self.configure_optimizers()
        with torch.enable_grad(), self.unedited() if self.values.weights == "unedited" else nullcontext():
            vectors, totals = self._found_or_known(groups, totals, progress, optimizer)
            return self.revised(vectors), totals

    def _found_or_known(
        self, groups: Sequence[Group], totals: SearchTotals, progress: Progress | None, optimizer: Any
    ) -> tuple[ValueVectors, SearchTotals]:
        """What the search finds of these groups, less those of which the store knows it."""
        if self._store is None or not (self._unedited or self.values.weights == "unedited"):
            return self.searcher.find(groups, self.offset, optimizer, totals, progress)
        known, missing = split(self._store, groups, self.editable.device)
        for _, kept in known.values():
            totals = totals.plus(kept)
        parts = [vectors for vectors, _ in known.values()]
        if missing:
            before = totals
            lacking = [groups[n] for n in missing]
            found, totals = self.searcher.find(lacking, self.offset, optimizer, totals, progress)
            self._store.write(found, totals.less(before))
            parts.append(found)
        elif progress is not None:
            progress(totals.facts, totals.loss / totals.facts, totals.probability / totals.facts)
        order = torch.tensor([*known, *missing]).argsort().tolist()
        return ValueVectors.cat(parts).select(order), totals

    def _open_store(self) -> ValueStore | None:
        """The store of values found on the weights as they are now."""
        if self.values.store is None or not self.searches_values:
            return None
        optimizer = self.configure_optimizers()
        search = asdict(replace(self.values, store=None, max_tokens="auto", weights="present"))
        return ValueStore(
            self.values.store,
            {
                "weights": fingerprint(self.editable.model),
                "dtype": self.dtype_name,
                "tokenizer": tokenizer_hash(self.tokenizer),
                "layers": [self.edited_layers[0], self.edited_layers[-1]],
                "at_projection": self.at_projection,
                "search": search,
                "templates": self.templates,
                "optimizer": [type(optimizer).__qualname__, optimizer.defaults],
                "overridden": [
                    f"{f.__module__}.{f.__qualname__}" for f in (type(self).value_loss, type(self).mean_keys)
                ],
                "versions": {name: version(name) for name in ("editkit", "torch", "transformers")},
            },
        )

    def _begin_batch(self) -> None:
        self._found: list[Any] = []  # what each training step found
        self._totals = SearchTotals()
        self._error: Exception | None = None  # what ended the search on this process, until all can be told

    @override
    def on_train_epoch_start(self) -> None:
        self._begin_batch()

    @override
    def training_step(self, batch: list[Fact], batch_idx: int) -> None:
        """Find out what is to change for some facts, those that share a key together."""
        groups = group_by_key([fact for fact in batch if not self.drops(fact)])
        if not groups or self._error is not None:
            return
        try:
            self._found.append(self.find_step(groups, batch_idx))
        except Exception as error:
            if self.trainer.world_size == 1:
                raise
            self._error = error  # the others wait in ``synchronize``, where it is raised on all

    def find_step(self, groups: Sequence[Group], batch_idx: int) -> FoundPart:
        """What one training step finds: value vectors, or those that an interrupted run has found."""
        epoch = self.trainer.current_epoch
        if (kept := self._checkpoint.read(epoch, batch_idx, groups, self.editable.device)) is not None:
            found, self._totals = kept
            return found
        before, began = self._totals.facts, time.perf_counter()
        found, self._totals = self.find(groups, self._totals, self.show_progress, self.optimizers())
        if batch_idx or not self.trainer.is_last_batch:  # of a batch of one step nothing but the solve is left
            self._checkpoint.write(epoch, batch_idx, found, self._totals)
        count = self._totals.facts
        logged = {
            "loss": self._totals.loss / count,
            "p(new)": self._totals.probability / count,
            "facts_per_second": (count - before) / (time.perf_counter() - began),
        }
        self.log_dict(logged, batch_size=count - before)
        return found

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
        mine = type(self._found[0]).cat(self._found).to("cpu") if self._found else None
        parts = gather(mine)
        if len(parts) > 1 and (some := next((part for part in parts if part is not None), None)) is not None:
            self._found = [type(some).deal_in(parts).to(self.editable.device)]


def _blocks(layers: Any) -> list[int] | None:
    """A list of blocks, of which there may be one alone."""
    blocks = [layers] if type(layers) is int else layers
    if blocks is None:
        return None
    if not isinstance(blocks, (list, tuple, range)) or not all(type(block) is int for block in blocks):
        raise InputError(f"layers: expected blocks, counted from 0, but got {shorten(layers)}; write [5]")
    return list(blocks)
