"""The editor: value vectors found by gradient in ``training_step``, a closed-form ``solve`` for the weights.

One epoch is one batch of edits; one training step finds the value vectors of a micro-batch of facts. The weights are
changed by the ``WeightUpdate`` callback once the epoch's last micro-batch is done. A method is a subclass with a
``solve``; see ``editkit.editors.emmet`` for the shortest example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib.metadata import version
from typing import Any

import lightning as L
import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from editkit.covariance import MomentSource
from editkit.data.facts import Fact
from editkit.data.module import EvaluationRow
from editkit.editors.spread import Spread
from editkit.errors import InputError
from editkit.functional import FactoredMoment, LowRankDelta
from editkit.functional.values import clamp_norm, drift, group_mean, row_nll, shrinkage
from editkit.metrics.bundle import EditingScores
from editkit.models.family import Family, lookup_states
from editkit.models.load import load_language_model
from editkit.models.replay import Replay
from editkit.models.score import target_nll
from editkit.models.spans import encode_prompts, pad
from editkit.models.templates import generate_templates

RECOMMENDED_LAYERS = "editkit_layers"  # in a checkpoint's config.json; the atlas has it
Group = list[Fact]  # facts with the same text up to the subject's end: one key, one value


@dataclass
class ValueSearch:
    """How value vectors v* = v₀ + δ are found.

    Args:
        num_steps: forward passes per fact; the optimiser steps after each but the last.
        kl_weight: weight of the KL divergence on ``kl_prompt`` (dimensionless).
        kl_prompt: essence prompt; its next-token distribution at the subject's last token should stay as it was.
        decay: weight of ‖δ‖ / ‖v₀‖² (in units of ‖v₀‖).
        clamp: largest ‖δ‖ as a multiple of ‖v₀‖.
        loss_threshold: a fact is done once its loss is below this (nats).
        context_templates: groups of templates, each with one "{}" for the prompt; keys are averaged within groups and
            then over groups. Default: "{}" alone and five prefixes sampled from the model with the run's seed.
        template_tokens: tokens of each sampled prefix.
        seed: of the sampled prefixes.
    """

    num_steps: PositiveInt = 20
    kl_weight: NonNegativeFloat = 0.0625
    kl_prompt: str = "{} is a"
    decay: NonNegativeFloat = 0.5
    clamp: PositiveFloat = 0.75
    loss_threshold: NonNegativeFloat = 0.05
    context_templates: list[list[str]] | None = None
    template_tokens: PositiveInt = 10
    seed: int = 0


@dataclass
class Found:
    """Value vectors of the facts of one edit batch, as they come in.

    Attributes:
        groups: facts per column.
        keys: (d_in, n) blocks of the first edited layer, float32.
        values: (d_out, n) blocks of v*, float32.
    """

    groups: list[Group] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


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
    """

    #: facts that one solve can take, None for any number
    max_batch_size: int | None = None

    def __init__(
        self,
        lm: str = "atlas",
        layers: list[int] | None = None,
        dtype: str = "float32",
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=0.5),
        values: ValueSearch | None = None,
        moments: MomentSource | None = None,
        spread: Spread | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer"], logger=False)
        self.automatic_optimization = False
        self.lm, self.dtype_name, self.optimizer = lm, dtype, optimizer
        self.layers = sorted(set(layers)) if layers else None
        self.values = values or ValueSearch()
        self.moments = moments or MomentSource()
        self.spread = spread or Spread()
        self.offset = nn.Parameter(torch.zeros(1))  # δ; takes its shape from each micro-batch
        self.found = Found()
        self.scores = EditingScores()
        self.language_model: PreTrainedModel | None = None
        self._templates: list[list[str]] | None = None

    # ---------------------------------------------------------------- the model

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Use a model already in memory instead of loading ``lm``."""
        self.language_model, self.tokenizer = model, tokenizer
        self.family = Family(model)

    @override
    def configure_model(self) -> None:
        """Load the language model once and check the layers against it."""
        if self.language_model is None:
            self.attach(*load_language_model(self.lm, self.dtype_name))
        if self.layers is None:
            self.layers = getattr(self.family.model.config, RECOMMENDED_LAYERS, None)
        for layer in self.layers or []:
            self.family.projection(layer)

    @property
    def edited_layers(self) -> list[int]:
        """The blocks to edit, ascending: those asked for, else those that the checkpoint's config recommends."""
        if not self.layers:
            raise InputError(
                f"layers: expected the blocks to edit, 0 to {self.family.depth - 1} of this model, but got none; "
                "choose by measuring, or take the paper's (GPT2-XL 17, GPT-J 5, Llama-2-7b 5)"
            )
        return self.layers

    @property
    def templates(self) -> list[list[str]]:
        """Groups of context templates; sampled from the unedited model at first use."""
        if self._templates is None:
            given = self.values.context_templates
            self._templates = given or [
                ["{}"],
                generate_templates(self.family, self.tokenizer, self.values.template_tokens, self.values.seed),
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

    def solve(self, keys: Tensor, residuals: Tensor, moment: FactoredMoment, names: Sequence[str]) -> LowRankDelta:
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
        return nll + self.values.kl_weight * kl + self.values.decay * shrinkage(offset, start)

    # ---------------------------------------------------------------- value vectors

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer([self.offset])

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # facts are text

    @override
    def training_step(self, batch: list[Group], batch_idx: int) -> None:
        """Find the value vectors of a micro-batch: ``batch`` holds groups of facts that share a key."""
        self.find_values(batch, self.optimizers())

    def find_values(self, batch: Sequence[Group], optimizer: Any = None) -> None:
        """Find v* of each group by gradient descent on all its facts and templates at once; append to ``found``.

        Args:
            batch: groups of facts with the same text up to the subject's end.
            optimizer: over ``self.offset``; made from the editor's own setting where there is no Trainer.
        """
        optimizer = optimizer or self.configure_optimizers()
        facts = [fact for group in batch for fact in group]
        group_of = torch.tensor([g for g, group in enumerate(batch) for _ in group], device=self.device)
        flat = [t for group in self.templates for t in group]
        spans = encode_prompts(self.tokenizer, facts, flat, target="target_new")
        essence = encode_prompts(self.tokenizer, [_essence(f, self.values.kl_prompt) for f in facts], ["{}"])
        replay = Replay(
            self.family,
            [s.ids[:-1] for s in spans] + [s.ids for s in essence],
            [s.lookup for s in spans + essence],
            self.edited_layers[-1],
            self.edited_layers[0],
        )
        wanted = [(r, t - 1 - s.lookup, s.ids[t]) for r, s in enumerate(spans) for t in range(s.target, len(s.ids))]
        row, place, target = torch.tensor(wanted, device=self.device).T
        essence_row = torch.arange(len(spans), len(spans) + len(facts), device=self.device)
        fact_of_row = torch.arange(len(facts), device=self.device).repeat_interleave(len(flat))
        group_of_row = torch.cat([group_of[fact_of_row], group_of])
        first = torch.tensor([facts.index(group[0]) for group in batch], device=self.device)
        start = replay.start[first * len(flat)]

        self.offset.data = torch.zeros(len(batch), self.family.hidden_size, device=self.device)
        optimizer.state.clear()
        active = torch.ones(len(batch), dtype=torch.bool, device=self.device)
        reference: Tensor | None = None
        for step in range(self.values.num_steps):
            log_probs = replay.logits(
                self.offset[group_of_row], torch.cat([row, essence_row]), torch.cat([place, torch.zeros_like(group_of)])
            ).log_softmax(-1)
            token_log_probs, essence_log_probs = log_probs[: len(row)], log_probs[len(row) :]
            reference = essence_log_probs.detach() if reference is None else reference
            nll = row_nll(token_log_probs, target, row, len(spans)).view(len(facts), -1).mean(1)
            kl = drift(essence_log_probs, reference)
            loss = self.value_loss(nll, kl, self.offset[group_of], start[group_of])
            self._check_finite(loss, facts)
            mean_loss = group_mean(loss.detach(), group_of, len(batch))
            active &= mean_loss >= self.values.loss_threshold
            self._report_progress(mean_loss, nll, len(batch))
            if step == self.values.num_steps - 1 or not active.any():
                break
            optimizer.zero_grad()
            loss[active[group_of]].sum().backward()
            before = self.offset.detach().clone()
            optimizer.step()
            moved = clamp_norm(self.offset.detach(), start, self.values.clamp)
            self.offset.data = torch.where(active[:, None], moved, before)

        keys = self.mean_keys(replay.keys[: len(spans)].view(len(facts), len(flat), -1)[first])
        self.found.groups += batch
        self.found.keys.append(keys)
        self.found.values.append((start + self.offset.detach()).T)

    def mean_keys(self, keys: Tensor) -> Tensor:
        """Average (E, templates, d_in) over each group of templates and then over groups; returns (d_in, E)."""
        parts = keys.split([len(group) for group in self.templates], dim=1)
        return torch.stack([part.mean(1) for part in parts]).mean(0).T

    def keys(self, groups: Sequence[Group], layer: int) -> Tensor:
        """Keys of one block with the weights as they are: (d_in, E), averaged over the templates, float32."""
        flat = [t for group in self.templates for t in group]
        _, keys = self._lookup(groups, flat, [layer])
        return self.mean_keys(keys[layer].view(len(groups), len(flat), -1).float())

    def states(self, groups: Sequence[Group]) -> Tensor:
        """What the last edited block now gives at the lookup token of the bare prompts: (hidden, E) float32."""
        return self._lookup(groups, ["{}"], [])[0].T.float()

    def _lookup(
        self, groups: Sequence[Group], templates: Sequence[str], layers: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        facts = [group[0] for group in groups]
        parts = []
        for chunk in range(0, len(facts), 64):
            spans = encode_prompts(self.tokenizer, facts[chunk : chunk + 64], templates)
            ids, mask = pad([s.ids for s in spans], self.device)
            lookup = torch.tensor([s.lookup for s in spans], device=self.device)
            parts.append(lookup_states(self.family, ids, mask, lookup, self.edited_layers[-1], layers))
        return torch.cat([p[0] for p in parts]), {n: torch.cat([p[1][n] for p in parts]) for n in layers}

    def _check_finite(self, loss: Tensor, facts: Sequence[Fact]) -> None:
        bad = (~loss.isfinite()).nonzero().flatten().tolist()
        if bad:
            names = ", ".join(f"{facts[i].subject!r}" for i in bad[:5])
            raise InputError(
                f"values: the loss is not finite for {names}; no weight was changed; expected a finite loss: try a "
                "smaller optimizer lr, or dtype float32"
            )

    def _report_progress(self, loss: Tensor, nll: Tensor, done: int) -> None:
        if self._trainer is not None:
            logged = {"loss": loss.mean(), "p(new)": nll.detach().neg().exp().mean()}
            self.log_dict(logged, prog_bar=True, batch_size=done)

    # ---------------------------------------------------------------- evaluation

    @override
    def on_validation_epoch_start(self) -> None:
        self.scores.reset()

    @override
    def validation_step(self, batch: list[EvaluationRow], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Score both targets of each row; the (rows,) NLLs also go to the callbacks, which keep them."""
        if not batch:  # no fact has a target_true
            return {"nll_new": torch.zeros(0), "nll_true": torch.zeros(0)}
        new, true = [r.target_new for r in batch], [r.target_true for r in batch]
        nll = target_nll(self.family, self.tokenizer, [r.prompt for r in batch] * 2, new + true)
        nll_new, nll_true = nll.split(len(batch))
        self.scores.update(batch, nll_new, nll_true)
        return {"nll_new": nll_new, "nll_true": nll_true}

    @override
    def on_validation_epoch_end(self) -> None:
        results = self.scores.results(intervals=False)
        self.log_dict({f"val/{name}": r["mean"] for name, r in results.items()}, prog_bar=False)


def _essence(fact: Fact, template: str) -> Fact:
    return Fact(subject=fact.subject, prompt=template, target_new=fact.target_new)
