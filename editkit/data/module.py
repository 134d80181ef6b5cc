"""The facts of a run, batch by batch, and the prompts that measure them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import lightning as L
from jsonargparse.typing import PositiveInt
from torch.utils.data import DataLoader
from typing_extensions import override

from editkit.atlas.builtin import DEFAULT, resolve
from editkit.data.fact_fields import ZsreTarget
from editkit.data.facts import Fact, as_facts, load_facts
from editkit.data.fitting import fitted
from editkit.data.held_out import HeldOutText, text_rows
from editkit.data.probes import Probe, ProbeSet, load_probe
from editkit.data.rows import EvaluationRow, Row, TextRow, evaluation_rows, generation_rows
from editkit.utils.errors import InputError

FACTS_AT_A_TIME = 32  # in a batch of evaluation rows
ROWS_AT_A_TIME = 256  # questions, texts or windows in a batch
#: batch size to number of batches in Table 2 of Gupta et al. 2024
TABLE_2 = {4: 25, 16: 10, 64: 5, 256: 5, 1024: 3, 4096: 2, 10_000: 1}


def halves(facts: Sequence[Fact]) -> tuple[list[Fact], list[Fact]]:
    """The facts twice, each prompt beside the fact's own with one of them.

    Prompts go to one and the other in turn, beginning with the one for every second fact and with the other for the
    rest, so that facts with a single prompt of a kind are halved too.

    >>> fact = Fact("Rome", "{} is", "x", "y", paraphrase_prompts=("a", "b", "c"))
    >>> [[f.paraphrase_prompts for f in part] for part in halves([fact, fact])]
    [[('a', 'c'), ('b',)], [('b',), ('a', 'c')]]
    """
    kinds = ("paraphrase_prompts", "neighborhood_prompts")

    def part(offset: int) -> list[Fact]:
        return [
            replace(fact, **{kind: getattr(fact, kind)[(i + offset) % 2 :: 2] for kind in kinds})
            for i, fact in enumerate(facts)
        ]

    return part(0), part(1)


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
        zsre_target: which of a zsRE record's answers is written: "answers" (the first of them; ROME, MEMIT, EMMET) or
            "alt" (MEND, EasyEdit).
        split: of the atlas: "report" for what is published, "tune" for choosing hyperparameters.
        num_facts: facts to edit in all; default all there are, or what ``num_batches`` asks for.
        batch_size: facts per batch of edits (1 to 10,000), edited by one solve. Default: all at once, or what the
            editor can take (ROME: one).
        num_batches: batches of edits, of ``batch_size`` facts each. "paper" is the number in Table 2 of Gupta et al.
            2024 for that size: 25 of 4, 10 of 16, 5 of 64, 5 of 256, 3 of 1,024, 2 of 4,096, 1 of 10,000.
        facts_per_step: facts that the editor is handed at a time; it searches them in micro-batches of its own.
        seed: draws the facts at random, none twice, over all batches; default: the first ones, in the file's order.
        generation: generate from the facts' generation prompts, as the editor's protocol has it, and measure the text.
        probes: labelled tasks on which the model is tried before editing and after batches of edits.
        text: held-out text whose perplexity is measured when the probes are.
        probe_every: batches of edits after which probes and text are measured; always after the last. Default: only
            then.

    Attributes:
        sequential: whether each batch of edits stays while the next ones are made, so that the facts of all batches
            are measured after the last.
        edited: whether ``validate`` measures an edited model.
        only: positions of the facts that ``validate`` measures; None: all.
        present: the batch of edits that ``validate`` measures by itself, None where there is no such.
    """

    def __init__(
        self,
        facts: str = DEFAULT,
        split: str = "report",
        num_facts: PositiveInt | None = None,
        batch_size: PositiveInt | None = None,
        num_batches: PositiveInt | Literal["paper"] | None = None,
        facts_per_step: PositiveInt = 256,
        seed: int | None = None,
        generation: bool = False,
        probes: list[Probe] | None = None,
        text: HeldOutText | None = None,
        probe_every: PositiveInt | None = None,
        zsre_target: ZsreTarget = "answers",
    ) -> None:
        super().__init__()
        self.source, self.split, self.num_facts, self.zsre_target = facts, split, num_facts, zsre_target
        self.batch_size, self.facts_per_step, self.seed = batch_size, facts_per_step, seed
        self.generation, self.probes, self.text, self.probe_every = generation, probes or [], text, probe_every
        self.asked_batches = num_batches
        self.selected: list[Fact] = []
        self.tuning: list[Fact] = []
        self.others: list[Fact] = []
        self.made = 0  # leading batches of edits whose weights are there already, so that nothing is to be found
        self.probe_sets: list[ProbeSet] = []
        self.sequential = self.edited = False
        self.only: Sequence[int] | None = None
        self.present: int | None = None
        self._windows: list[TextRow] = []
        self._fitted: tuple[Any, list[ProbeSet]] = (None, [])  # the probes as they fit, and into what

    @classmethod
    def of(cls, facts: Sequence[Fact], batch_size: int | None = None) -> FactsDataModule:
        """A data module over facts already in memory."""
        module = cls(batch_size=batch_size)
        module.selected = list(facts)
        return module

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read and select the facts, and read the probes (once)."""
        if len(self.probe_sets) < len(self.probes):
            titles = [probe.title for probe in self.probes]
            if double := [t for t in titles if titles.count(t) > 1]:
                raise InputError(f"probes: expected a name of its own for each, but got {double[0]!r} twice; give name")
            self.probe_sets = [load_probe(probe, number) for number, probe in enumerate(self.probes)]
        if self.selected:
            return
        others: list[Fact] = []
        if (built_in := resolve(self.source)) is not None:
            if self.split not in built_in.splits:
                expected = " or ".join(map(repr, built_in.splits))
                raise InputError(f"data.split: expected {expected}, but got {self.split!r}; choose one of them")
            facts = as_facts(built_in.records(self.split), self.zsre_target)
            # what is reported tunes nothing
            others = as_facts(built_in.records("tune")) if self.split == "report" else []
        else:
            try:
                facts = load_facts(self.source, self.zsre_target)
            except InputError as error:
                raise InputError(f"data.facts: {error}") from error
        count = self._count(len(facts))
        if self.seed is not None:
            facts = random.Random(self.seed).sample(facts, len(facts))
        self.selected, self.others = facts[:count], others or facts[count:]

    def _count(self, there: int) -> int:
        """How many facts to take of those that are there."""
        if self.asked_batches is None:
            if self.num_facts is not None and self.num_facts > there:
                raise InputError(
                    f"data.num_facts: expected at most the {there} facts of {self.source!r}, but got "
                    f"{self.num_facts}; lower it or leave it out"
                )
            return self.num_facts or there
        if self.batch_size is None or self.num_facts is not None:
            raise InputError(
                "data.num_batches: expected together with data.batch_size, and data.num_facts null, but got batch_size "
                f"{self.batch_size} and num_facts {self.num_facts}; give the size of a batch and how many"
            )
        if self.asked_batches == "paper" and self.batch_size not in TABLE_2:
            raise InputError(
                f"data.num_batches: the paper's table has batches of {', '.join(map(str, TABLE_2))}, but got "
                f"data.batch_size {self.batch_size}; choose one of them, or give a number of batches"
            )
        batches = TABLE_2[self.batch_size] if self.asked_batches == "paper" else self.asked_batches
        if batches * self.batch_size > there:
            raise InputError(
                f"data.batch_size: {batches} batches of {self.batch_size} are {batches * self.batch_size} facts, but "
                f"{self.source!r} has {there}; lower it or data.num_batches"
            )
        return batches * self.batch_size

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

    def hold_out(self) -> list[EvaluationRow]:
        """Set aside ``tuning`` facts, as many as a batch has, and return the rows by which settings may be chosen.

        They are other facts than the run's, with a ``target_true``: the atlas's "tune" split, or what a file has
        beside those selected. Where there are too few, they are the first batch's own, each with half of its prompts,
        which are then no longer among those reported; the prompt of the fact itself has no half, and is left out. So is
        every prompt that is among those reported, such as a neighbour that two facts share.
        """
        size = self.batch_size or len(self.selected)
        others = [fact for fact in self.others if fact.target_true is not None]
        if not self.tuning:
            if len(others) >= size:
                self.tuning = others[:size]
            else:
                self.tuning, self.selected[:size] = halves(self.selected[:size])
        reported = {row.prompt for row in evaluation_rows(self.selected, range(len(self.selected)))}
        rows = evaluation_rows(self.tuning, range(len(self.tuning)))
        return [row for row in rows if row.prompt not in reported and row.target_true is not None]

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

    def phases(self) -> dict[str, Sequence[int]]:
        """The facts that are measured now, by what that is called.

        "before": all, on the unedited model; "after": those of the present batch of edits, or in ``validate`` of an
        edited model all; "final": those of all batches, once the last of several sequential ones is made.
        """
        assert self.trainer is not None
        if self.trainer.state.fn != "fit":
            every = range(len(self.selected)) if self.only is None else self.only
            return {"after" if self.edited else "before": every}
        present = self.batch_indices(self.trainer.current_epoch)
        found: dict[str, Sequence[int]] = {"after": present}
        if self.sequential and self._is_last and present.start:
            found["final"] = range(present.stop)
        return found

    @property
    def _is_last(self) -> bool:
        assert self.trainer is not None
        asked = self.trainer.max_epochs
        batches = self.num_batches if asked is None or asked < 0 else min(asked, self.num_batches)
        return self.trainer.current_epoch == batches - 1

    @property
    def _probes_are_due(self) -> bool:
        assert self.trainer is not None
        if self.trainer.state.fn != "fit" or self._is_last:
            return True
        return bool(self.probe_every) and (self.trainer.current_epoch + 1) % (self.probe_every or 1) == 0

    @override
    def val_dataloader(self) -> list[DataLoader[list[Row]]]:
        """This process's share of the rows, a loader for each kind of evaluation: edits, generation, probes, text."""
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        editor: Any = self.trainer.lightning_module
        every = max(self.phases().values(), key=len)  # what is measured twice is run once
        indices = every[rank::world]
        facts = [self.selected[i] for i in indices]
        asked = editor.protocol.locality_question
        batches: list[list[list[Any]]] = [
            [
                evaluation_rows(facts[n : n + FACTS_AT_A_TIME], indices[n : n + FACTS_AT_A_TIME], asked)
                for n in range(0, len(facts), FACTS_AT_A_TIME)
            ]
        ]
        if self.generation:
            batches.append(_cut(generation_rows(facts, indices, editor.protocol.generations)))
        if self._probes_are_due:
            room = editor.tokenizer, editor.editable.context, editor.protocol.separator
            if self._fitted[0] != room:
                self._fitted = room, [fitted(probe, *room) for probe in self.probe_sets]
            batches += [_cut(probe.rows[rank::world]) for probe in self._fitted[1]]
            if self.text is not None:
                self._windows = self._windows or text_rows(self.text, editor.tokenizer, editor.editable.context)
                batches.append(_cut(self._windows[rank::world]))
        # never empty, so that the loop runs and its callbacks see the edited model
        return [DataLoader(part or [[]], batch_size=None) for part in batches]  # type: ignore[arg-type]


def _cut(rows: Sequence[Any]) -> list[list[Any]]:
    return [list(rows[i : i + ROWS_AT_A_TIME]) for i in range(0, len(rows), ROWS_AT_A_TIME)]
