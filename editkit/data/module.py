"""The facts of a run, batch by batch, and the prompts that measure them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L
from jsonargparse.typing import PositiveInt
from torch.utils.data import DataLoader
from typing_extensions import override

from editkit.data.facts import Fact, load_facts
from editkit.errors import InputError


@dataclass(frozen=True)
class EvaluationRow:
    """One prompt at which both targets of a fact are compared.

    Attributes:
        fact: position of its fact among the run's facts.
        kind: 0 rewrite, 1 paraphrase, 2 neighborhood.
        prompt: the text, subject filled in.
        target_new: the fact's new target.
        target_true: its true target.
    """

    fact: int
    kind: int
    prompt: str
    target_new: str
    target_true: str


def evaluation_rows(facts: Sequence[Fact], indices: Sequence[int]) -> list[EvaluationRow]:
    """Rows of ``facts`` whose positions in the run are ``indices``; facts without a ``target_true`` have none."""
    rows = []
    for index, fact in zip(indices, facts, strict=True):
        if fact.target_true is None:
            continue
        for kind, prompts in enumerate(([fact.text()], fact.paraphrase_prompts, fact.neighborhood_prompts)):
            rows += [EvaluationRow(index, kind, p, fact.target_new, fact.target_true) for p in prompts]
    return rows


def group_by_key(facts: Sequence[Fact]) -> list[list[Fact]]:
    """Facts with the same text up to the subject's end, which have equal keys whatever the template, together."""
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(fact.prompt.split("{}")[0] + fact.subject, []).append(fact)
    return list(groups.values())


class FactsDataModule(L.LightningDataModule):
    """Facts to edit, one epoch per batch of edits, and their evaluation prompts.

    Args:
        facts: "atlas" (shipped), or a .json, .jsonl or .csv file of facts in CounterFact, EasyEdit or editkit's format.
        split: of the atlas: "report" for what is published, "tune" for choosing hyperparameters.
        num_facts: facts to edit in all; default all there are.
        batch_size: facts per batch of edits (1 to 10,000), edited by one solve. Default: all at once, or what the
            editor can take (ROME: one).
        facts_per_step: facts that the editor is handed at a time; it searches them in micro-batches of its own.
        seed: draws ``num_facts`` facts at random without replacement; default: the first ones, in the file's order.
    """

    def __init__(
        self,
        facts: str = "atlas",
        split: str = "report",
        num_facts: PositiveInt | None = None,
        batch_size: PositiveInt | None = None,
        facts_per_step: PositiveInt = 256,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.source, self.split, self.num_facts = facts, split, num_facts
        self.batch_size, self.facts_per_step, self.seed = batch_size, facts_per_step, seed
        self.selected: list[Fact] = []
        self.made = 0  # leading batches of edits whose weights are there already, so that nothing is to be found

    @classmethod
    def of(cls, facts: Sequence[Fact], batch_size: int | None = None) -> FactsDataModule:
        """A data module over facts already in memory."""
        module = cls(batch_size=batch_size)
        module.selected = list(facts)
        return module

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read and select the facts (once)."""
        if self.selected:
            return
        if self.source == "atlas":
            from editkit.atlas.world import load_world

            if self.split not in ("tune", "report"):
                raise InputError(f"data.split: expected 'tune' or 'report', but got {self.split!r}")
            facts = load_world().records(self.split)
        else:
            try:
                facts = load_facts(self.source)
            except InputError as error:
                raise InputError(f"data.facts: {error}") from error
        if self.num_facts is not None and self.num_facts > len(facts):
            raise InputError(
                f"data.num_facts: expected at most the {len(facts)} facts of {self.source!r}, but got "
                f"{self.num_facts}; lower it or leave it out"
            )
        count = self.num_facts or len(facts)
        if self.seed is not None:
            facts = random.Random(self.seed).sample(facts, count)
        self.selected = facts[:count]

    def resolve_batch_size(self, limit: int | None) -> None:
        """Settle the batch size: as asked, else all facts at once within the editor's ``limit``."""
        if self.batch_size is None:
            self.batch_size = min(len(self.selected), limit or len(self.selected))
        if self.batch_size > len(self.selected):
            raise InputError(
                f"data.batch_size: expected at most the run's {len(self.selected)} facts, but got {self.batch_size}; "
                "lower it or give more facts"
            )
        if limit is not None and self.batch_size > limit:
            raise InputError(
                f"data.batch_size: this editor takes {limit} fact{'s' * (limit > 1)} at a time, but got "
                f"{self.batch_size}; leave it out, or use editkit.EMMET or editkit.MEMIT"
            )

    @property
    def num_batches(self) -> int:
        """Batches of edits, the last perhaps smaller."""
        return math.ceil(len(self.selected) / (self.batch_size or len(self.selected)))

    def batch_indices(self, batch: int) -> range:
        """Positions, among the run's facts, of one batch of edits."""
        size = self.batch_size or len(self.selected)
        return range(batch * size, min((batch + 1) * size, len(self.selected)))

    @override
    def train_dataloader(self) -> DataLoader[list[list[Fact]]]:
        """The present epoch's batch of edits in steps: lists of groups of facts with one key.

        Of several processes each has its share of the groups, in as many steps, of which some may be empty.
        """
        assert self.trainer is not None
        batch, world = self.trainer.current_epoch, self.trainer.world_size
        if not self.made <= batch < self.num_batches:
            return DataLoader([[]], batch_size=None)  # type: ignore[arg-type]
        groups = group_by_key([self.selected[i] for i in self.batch_indices(batch)])
        share = groups[self.trainer.global_rank :: world]
        longest = math.ceil(len(groups) / world)
        steps = [share[i : i + self.facts_per_step] for i in range(0, longest, self.facts_per_step)]
        return DataLoader(steps, batch_size=None)  # type: ignore[arg-type]

    @override
    def val_dataloader(self) -> DataLoader[list[EvaluationRow]]:
        """This process's share of the rows: of the present batch in ``fit``, of all the run's facts in ``validate``."""
        assert self.trainer is not None
        fitting = self.trainer.state.fn == "fit"
        indices = self.batch_indices(self.trainer.current_epoch) if fitting else range(len(self.selected))
        indices = indices[self.trainer.global_rank :: self.trainer.world_size]
        chunks = [indices[i : i + 32] for i in range(0, len(indices), 32)]
        batches = [evaluation_rows([self.selected[i] for i in chunk], chunk) for chunk in chunks]
        # never empty, so that the loop runs and its callbacks see the edited model
        return DataLoader([rows for rows in batches if rows] or [[]], batch_size=None)  # type: ignore[arg-type]
