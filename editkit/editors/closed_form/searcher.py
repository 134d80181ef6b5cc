"""The search for value vectors at work: micro-batches that fit into memory, gradient steps until each fact is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from editkit.data.facts import Fact
from editkit.editors.closed_form.search import (
    Group,
    GroupRows,
    MicroBatch,
    SearchTotals,
    ValueSearch,
    group_rows,
    micro_batches,
    search_bytes,
    search_limit,
)
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.functional.values import clamp_norm, group_mean
from editkit.models.editable import EditableModel, lookup_states
from editkit.models.spans import encode_prompts, length_batches, pad
from editkit.utils.errors import InputError

LOOKUP_TOKENS = 8192  # per padded batch where keys and states are read off, which keeps nothing
COMPACT = 8  # facts that are done leave the rows once they are one in so many of them

#: told after each gradient step: facts done, mean loss (nats), mean probability of the new target
Progress = Callable[[int, float, float], None]
#: from nll, kl, offset and start to the loss of each fact, see ``ClosedFormEditor.value_loss``
ValueLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
#: from (E, templates, d_in) to (d_in, E), see ``ClosedFormEditor.mean_keys``
MeanKeys = Callable[[Tensor], Tensor]


@dataclass
class ValueSearcher:
    """Finds value vectors on one model, and reads keys and states off it.

    Attributes:
        model: the model.
        tokenizer: its tokenizer.
        settings: how value vectors are found.
        layers: the edited blocks, ascending; values are found at the last, keys come from the first.
        at_projection: whether values are found at the projection's output.
        templates: groups of context templates.
        loss: the loss of each fact.
        mean_keys: how keys are averaged over the templates.
    """

    model: EditableModel
    tokenizer: PreTrainedTokenizerBase
    settings: ValueSearch
    layers: Sequence[int]
    at_projection: bool
    templates: Sequence[Sequence[str]]
    loss: ValueLoss
    mean_keys: MeanKeys

    def __post_init__(self) -> None:
        self._byte_limit: int | None = None  # once memory did not suffice

    def find(
        self,
        groups: Sequence[Group],
        offset: nn.Parameter,
        optimizer: Any,
        totals: SearchTotals = SearchTotals(),  # noqa: B008 - frozen
        progress: Progress | None = None,
    ) -> tuple[ValueVectors, SearchTotals]:
        """Find v* of each group by gradient descent on all its facts and templates at once.

        The groups are searched in micro-batches of like lengths, as many at a time as ``settings.max_tokens`` or the
        memory allows; a group's result does not depend on which others those are.

        Args:
            groups: facts with the same text up to the subject's end.
            offset: δ; takes its shape from each micro-batch.
            optimizer: over ``offset``.
            totals: of the batch of edits so far.
            progress: told after each gradient step.

        Returns:
            The vectors, columns in the groups' order, and the totals after them.
        """
        flat = [t for group in self.templates for t in group]
        rows = group_rows(self.tokenizer, groups, flat, self.settings.kl_prompt)
        values: dict[int, Tensor] = {}
        keys: dict[int, Tensor] = {}
        waiting = self._micro_batches(rows, range(len(rows)))
        while waiting:
            chosen = waiting.pop(0)
            found = self._unless_out_of_memory([rows[i] for i in chosen], offset, optimizer, totals, progress)
            if found is None:
                waiting = self._micro_batches(rows, chosen + [i for part in waiting for i in part])
                continue
            part_values, part_keys, totals = found
            for i, value, key in zip(chosen, part_values, part_keys, strict=True):
                values[i], keys[i] = value, key
        order = range(len(rows))
        mean = self.mean_keys(torch.stack([keys[i] for i in order]))
        return ValueVectors(tuple(groups), mean, torch.stack([values[i] for i in order], 1)), totals

    def prompt_keys(self, groups: Sequence[Group], layer: int) -> Tensor:
        """Keys of one block on the bare prompts: (d_in, E) float32."""
        return self._lookup(groups, ["{}"], layer, [layer])[1][layer].T.float()

    def start(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        """States where values are found, and outputs of the projection there, on the bare prompts: (hidden, E) each."""
        states = self.states(groups)
        return states, states if self.at_projection else self._lookup(groups, ["{}"], self.layers[-1], (), True)[
            0
        ].T.float()

    def keys(self, groups: Sequence[Group], layer: int) -> Tensor:
        """Keys of one block with the weights as they are: (d_in, E), averaged over the templates, float32."""
        flat = [t for group in self.templates for t in group]
        _, keys = self._lookup(groups, flat, layer, [layer])
        return self.mean_keys(keys[layer].view(len(groups), len(flat), -1).float())

    def states(self, groups: Sequence[Group]) -> Tensor:
        """What now stands at the lookup token of the bare prompts where values are found: (hidden, E) float32."""
        return self._lookup(groups, ["{}"], self.layers[-1])[0].T.float()

    def _micro_batches(self, rows: Sequence[GroupRows], indices: Sequence[int]) -> list[list[int]]:
        """Which groups to search together, by tokens or by bytes."""
        groups = [rows[i] for i in indices]
        if self.settings.max_tokens == "auto":
            costs = [search_bytes(self.model, self.layers[-1], group) for group in groups]
            limit = self._byte_limit or search_limit(self.model.device)
        else:
            costs, limit = [group.tokens for group in groups], self.settings.max_tokens
        return [[indices[i] for i in part] for part in micro_batches(groups, costs, limit)]

    def _unless_out_of_memory(
        self, groups: list[GroupRows], offset: nn.Parameter, optimizer: Any, totals: SearchTotals, progress: Any
    ) -> tuple[Tensor, Tensor, SearchTotals] | None:
        """``_search``, or None after setting a lower limit where the memory did not suffice."""
        try:
            return self._search(groups, offset, optimizer, totals, progress)
        except RuntimeError as error:
            if self.settings.max_tokens != "auto" or not is_oom_error(error):
                raise
            if len(groups) == 1:
                raise InputError(
                    f"values: the memory does not suffice for {groups[0].facts[0].subject!r} alone "
                    f"({groups[0].tokens} tokens); give shorter or fewer values.context_templates, or a smaller dtype"
                ) from error
        # outside the handler, whose traceback would hold on to the tensors
        garbage_collection_cuda()
        self._byte_limit = sum(search_bytes(self.model, self.layers[-1], group) for group in groups) // 2
        return None

    def _search(
        self,
        groups: list[GroupRows],
        offset: nn.Parameter,
        optimizer: Any,
        totals: SearchTotals,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor, SearchTotals]:
        """v* (G, hidden) and keys (G, templates, d_in) of one micro-batch, and the totals after it."""
        patience = self.settings.stop_after_first
        work = MicroBatch(self.model, groups, self.layers[-1], self.layers[0], self.at_projection, patience is not None)
        start, count = work.start, len(groups)
        offset.data = torch.zeros_like(start)
        optimizer.state.clear()
        active = torch.ones(count, dtype=torch.bool, device=start.device)
        sizes = torch.tensor([len(group.facts) for group in groups], device=start.device)
        mean_loss, mean_nll = torch.zeros(2, count, device=start.device)
        steps_first = torch.zeros(count, dtype=torch.long, device=start.device)

        def show(done: Tensor) -> None:
            if progress is not None:
                weights = sizes.float() / sizes.sum()
                facts = totals.facts + int(sizes[done].sum())
                progress(facts, float(mean_loss @ weights), float(mean_nll.neg().exp() @ weights))

        for step in range(self.settings.num_steps):
            nll, kl = work.losses(offset)
            group_of = work.group_of
            loss = self.loss(nll, kl, offset[group_of], start[group_of])
            _check_finite(loss, work.facts)
            present = torch.zeros_like(active).index_fill(0, group_of, True)
            mean_loss = torch.where(present, group_mean(loss.detach(), group_of, count), mean_loss)
            mean_nll = torch.where(present, group_mean(nll.detach(), group_of, count), mean_nll)
            active &= mean_loss >= self.settings.loss_threshold
            if patience is not None:
                steps_first += present & (group_mean(work.first.float(), group_of, count) == 1)
                active &= steps_first <= patience
            show(~active)
            if step == self.settings.num_steps - 1 or not active.any():
                break
            optimizer.zero_grad()
            loss[active[group_of]].sum().backward()
            before = offset.detach().clone()
            optimizer.step()
            moved = clamp_norm(offset.detach(), start, self.settings.clamp)
            offset.data = torch.where(active[:, None], moved, before)
            if int((present & ~active).sum()) * COMPACT >= int(present.sum()):
                work.keep(active)
        show(torch.ones_like(active))
        totals = SearchTotals(
            totals.facts + int(sizes.sum()),
            totals.loss + float(mean_loss @ sizes.float()),
            totals.probability + float(mean_nll.neg().exp() @ sizes.float()),
        )
        return start + offset.detach(), work.keys, totals

    def _lookup(
        self,
        groups: Sequence[Group],
        templates: Sequence[str],
        last: int,
        layers: Sequence[int] = (),
        at_projection: bool | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        at_projection = self.at_projection if at_projection is None else at_projection
        device = self.model.device
        spans = encode_prompts(self.tokenizer, [group[0] for group in groups], templates)
        batches = length_batches([len(s.ids) for s in spans], LOOKUP_TOKENS)
        parts = []
        for batch in batches:
            ids, mask = pad([spans[i].ids for i in batch], device)
            lookup = torch.tensor([spans[i].lookup for i in batch], device=device)
            parts.append(lookup_states(self.model, ids, mask, lookup, last, layers, at_projection))
        back = torch.tensor([i for batch in batches for i in batch], device=device).argsort()
        return torch.cat([p[0] for p in parts])[back], {n: torch.cat([p[1][n] for p in parts])[back] for n in layers}


def _check_finite(loss: Tensor, facts: Sequence[Fact]) -> None:
    bad = (~loss.isfinite()).nonzero().flatten().tolist()
    if bad:
        names = ", ".join(f"{facts[i].subject!r}" for i in bad[:5])
        raise InputError(
            f"values: the loss is not finite for {names}; no weight was changed; expected a finite loss: try a smaller "
            "optimizer lr, or dtype float32"
        )
