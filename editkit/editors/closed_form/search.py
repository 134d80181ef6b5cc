"""The search for value vectors: facts in every template, replayed together from the lookup token on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from editkit.data.facts import Fact
from editkit.functional.values import group_mean, kl_divergence, row_wise, token_nll
from editkit.models.editable import EditableModel, orient
from editkit.models.replay import Replay
from editkit.models.spans import Span, encode_prompts
from editkit.utils.errors import InputError, shorten
from editkit.utils.memory import free_bytes
from editkit.utils.numbers import check_numbers

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
        max_tokens: tokens, of all templates of a micro-batch of facts, that are searched side by side; bounds memory,
            not results. "auto": what half of the free memory holds, halved whenever that proves too much.
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
    max_tokens: PositiveInt | Literal["auto"] = "auto"


def check_search(settings: ValueSearch) -> None:
    """Raise an ``InputError`` for settings by which no value vector can be found, on whatever model."""
    check_numbers(vars(settings), get_type_hints(ValueSearch), "model.values")
    if settings.num_steps < 2:
        raise InputError(
            f"model.values.num_steps: expected at least 2, as the optimiser steps after each pass but the last, but "
            f"got {settings.num_steps}; raise it"
        )
    if not 0 <= settings.seed < 2**63:
        raise InputError(f"model.values.seed: expected 0 to 2^63 - 1, but got {shorten(settings.seed)}; choose another")
    groups = settings.context_templates
    if groups is not None and not (groups and all(groups)):
        raise InputError(
            f"model.values.context_templates: expected groups of at least one template, but got {shorten(groups)}; "
            'write [["{}"]] for the prompt alone'
        )
    for field, templates in (
        ("context_templates", [template for group in groups or () for template in group]),
        ("kl_prompt", [settings.kl_prompt]),
    ):
        for template in templates:
            if template.count("{}") != 1:
                raise InputError(
                    f"model.values.{field}: expected one {{}}, for the "
                    f"{'subject' if field == 'kl_prompt' else 'prompt'}, in {shorten(template)}; write it once"
                )


def check_optimizer(make: Callable[[list[nn.Parameter]], Any]) -> None:
    """Raise an ``InputError`` for an optimiser that cannot step as the search lets it, or does not move anything."""
    trial = nn.Parameter(torch.zeros(2, 2))
    trial.grad = torch.ones(2, 2)
    try:
        optimizer = make([trial])
        optimizer.step()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"model.optimizer: expected an optimiser that steps elementwise by gradients, but got one that cannot "
            f"({error}); choose another, such as torch.optim.Adam with a positive lr"
        ) from error
    for group in optimizer.param_groups:
        lr = group.get("lr", 1.0)
        if not 0 < float(lr) < math.inf:
            raise InputError(f"model.optimizer.lr: expected a finite number > 0, but got {float(lr)}; correct it")


@dataclass(frozen=True)
class SearchTotals:
    """How far the search in a batch of edits is.

    Attributes:
        facts: facts that are done.
        loss: sum of their last losses (nats).
        probability: sum of their new targets' last probabilities.
    """

    facts: int = 0
    loss: float = 0.0
    probability: float = 0.0


@dataclass(frozen=True)
class GroupRows:
    """The tokens of one group.

    Attributes:
        facts: the facts, all with one key.
        prompts: every fact in every template with its target (fact-major).
        essence: the essence prompt of every fact, up to its lookup token.
    """

    facts: Group
    prompts: list[Span]
    essence: list[Span]

    @property
    def tail(self) -> int:
        """Tokens that each gradient step runs."""
        return sum(len(s.ids) - 1 - s.lookup for s in self.prompts) + len(self.essence)

    @property
    def tokens(self) -> int:
        """All tokens, those before the lookup token included."""
        return sum(len(s.ids) - 1 for s in self.prompts) + sum(len(s.ids) for s in self.essence)


def group_rows(
    tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group], templates: Sequence[str], kl_prompt: str
) -> list[GroupRows]:
    """Tokenise groups of facts for the search, all at once."""
    facts = [fact for group in groups for fact in group]
    prompts = iter(encode_prompts(tokenizer, facts, templates, target="target_new"))
    essence = iter(encode_prompts(tokenizer, [Fact(f.subject, kl_prompt, f.target_new) for f in facts], ["{}"]))
    return [
        GroupRows(group, [next(prompts) for _ in group for _ in templates], [next(essence) for _ in group])
        for group in groups
    ]


class MicroBatch:
    """Groups of facts replayed together: the loss of each fact as a function of its group's δ.

    Args:
        editable: the model.
        groups: the groups, G in all, F facts.
        layer: the block at which δ acts.
        key_layer: the block whose keys are kept.
        at_projection: where in that block, see ``Replay``.

    Attributes:
        start: (G, hidden) float32 v₀, in each group's first template.
        keys: (G, templates, d_in) float32.
        facts: the facts still at work, at first all.
        group_of: (facts at work,) the group of each.
    """

    def __init__(
        self, editable: EditableModel, groups: Sequence[GroupRows], layer: int, key_layer: int, at_projection: bool
    ) -> None:
        self.editable = editable
        device = editable.device
        self.facts = [fact for group in groups for fact in group.facts]
        spans = [span for group in groups for span in group.prompts]
        essence = [span for group in groups for span in group.essence]
        self.templates = len(spans) // len(self.facts)
        self.group_of = torch.tensor([g for g, group in enumerate(groups) for _ in group.facts], device=device)
        self._replay = Replay(
            editable,
            [s.ids[:-1] for s in spans] + [s.ids for s in essence],
            [s.lookup for s in spans + essence],
            layer,
            key_layer,
            at_projection,
        )
        wanted = [(r, t - 1 - s.lookup, s.ids[t]) for r, s in enumerate(spans) for t in range(s.target, len(s.ids))]
        self._row, self._place, self._target = torch.tensor(wanted, device=device).T
        self._reference: Tensor | None = None
        self._chunk = editable.logits_at_a_time
        first = torch.tensor([int((self.group_of == g).nonzero()[0]) for g in range(len(groups))], device=device)
        self.start = self._replay.start[first * self.templates]
        self.keys = self._replay.keys[: len(spans)].unflatten(0, (-1, self.templates))[first]

    def losses(self, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Target NLL (mean over templates of the mean over tokens) and KL divergence from the first call's essence.

        Args:
            offset: (G, hidden) float32 δ of every group.

        Returns:
            Two tensors (facts at work,), nats.
        """
        facts = len(self.facts)
        per_fact = offset[self.group_of]
        essence = torch.arange(facts, device=offset.device)
        hidden = self._replay.hidden(
            torch.cat([per_fact.repeat_interleave(self.templates, 0), per_fact]),
            torch.cat([self._row, essence + facts * self.templates]),
            torch.cat([self._place, torch.zeros_like(essence)]),
        )
        scored, essence_hidden = hidden.split([len(self._row), facts])
        nll = row_wise(lambda part, at: token_nll(self.editable.head(part), self._target[at]), scored, self._chunk)
        if self._reference is None:
            with torch.no_grad():
                self._reference = self.editable.head(essence_hidden).log_softmax(-1)
        reference = self._reference
        kl = row_wise(
            lambda part, at: kl_divergence(self.editable.head(part).log_softmax(-1), reference[at]),
            essence_hidden,
            self._chunk,
        )
        return group_mean(nll, self._row, facts * self.templates).view(facts, -1).mean(1), kl

    def keep(self, groups: Tensor) -> None:
        """Go on with the facts of some groups only, (G,) bool; nothing is run again for that."""
        kept = groups[self.group_of].nonzero().flatten()
        device = kept.device
        row_of_fact = kept[:, None] * self.templates + torch.arange(self.templates, device=device)
        essence = kept + len(self.facts) * self.templates
        new_row = torch.full((len(self.facts) * self.templates,), -1, device=device)
        new_row[row_of_fact.flatten()] = torch.arange(row_of_fact.numel(), device=device)
        self._replay = self._replay.select(torch.cat([row_of_fact.flatten(), essence]))
        wanted = new_row[self._row] >= 0
        self._row, self._place, self._target = new_row[self._row][wanted], self._place[wanted], self._target[wanted]
        if self._reference is not None:
            self._reference = self._reference[kept]
        self.facts, self.group_of = [self.facts[i] for i in kept.tolist()], self.group_of[kept]


def micro_batches(groups: Sequence[GroupRows], costs: Sequence[int], limit: int) -> list[list[int]]:
    """Indices of groups to search side by side: tails of like lengths together, the longest first, under ``limit``.

    A group that exceeds the limit by itself stands alone.
    """
    found: list[list[int]] = []
    spent = 0
    for i in sorted(range(len(groups)), key=lambda i: -groups[i].tail / len(groups[i].prompts)):
        if not found or spent + costs[i] > limit:
            found.append([])
            spent = 0
        found[-1].append(i)
        spent += costs[i]
    return found


def search_bytes(editable: EditableModel, layer: int, group: GroupRows) -> int:
    """Memory, at most, that searching one group takes beside the weights: the bound of docs/performance.md.

    Per tail token, what backward keeps of each replayed block (twice the inputs and outputs of its linear maps); per
    prefix token, keys and values of every block, as computed, by row, joined with the tail's, and as attention copies
    them; per fact, the essence prompt's reference distribution. (Logits are made
    in chunks of ``models.editable.LOGITS_BYTES``.)
    """
    size = next(editable.model.parameters()).element_size()
    linear = [m for m in editable.blocks[layer].modules() if isinstance(m, nn.Linear | Conv1D)]
    per_tail_token = 2 * size * (editable.depth - layer) * sum(sum(orient(m, m.weight).shape) for m in linear)
    per_prefix_token = 8 * size * editable.depth * editable.hidden_size
    return (
        group.tail * per_tail_token
        + (group.tokens - group.tail) * per_prefix_token
        + len(group.facts) * 4 * editable.vocabulary
    )


def search_limit(device: torch.device) -> int:
    """Bytes that one micro-batch may take when ``max_tokens`` is "auto": half of what is free.

    On a CPU no more than 2 GiB: its matrix products are at their best long before.
    """
    free = free_bytes(device) // 2
    return free if device.type == "cuda" else min(free, 2**31)
