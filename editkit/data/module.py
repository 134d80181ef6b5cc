"""The facts of a run, batch by batch, and the prompts that measure them."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import lightning as L
from jsonargparse.typing import PositiveInt
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from editkit.atlas.builtin import DEFAULT, resolve
from editkit.data.fact_fields import ZsreTarget
from editkit.data.facts import Fact, as_facts, load_facts
from editkit.data.fitting import fitted
from editkit.data.held_out import HeldOutText, named_as, text_rows
from editkit.data.plan import Measurement, RunPlan, Score, Tuning
from editkit.data.probes import Probe, ProbeSet, load_probe
from editkit.data.rows import EvaluationRow, Row, TextRow, evaluation_rows, generation_rows
from editkit.data.text import text_files
from editkit.utils.errors import InputError
from editkit.utils.words import counted

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
        selected: the facts to edit, once ``setup`` has read them.
        probe_sets: the probes, likewise.
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
        self.others: list[Fact] = []
        self.probe_sets: list[ProbeSet] = []
        self._plan: RunPlan | None = None
        self._measurement: Measurement | None = None
        self._windows: list[TextRow] = []
        self._fitted: tuple[Any, list[ProbeSet]] = (None, [])  # the probes as they fit, and into what

    @classmethod
    def of(cls, facts: Sequence[Fact], batch_size: int | None = None) -> FactsDataModule:
        """A data module over facts already in memory."""
        module = cls(batch_size=batch_size)
        module.selected = list(facts)
        return module

    @classmethod
    def of_trainer(cls, trainer: L.Trainer) -> FactsDataModule:
        """The data module that a trainer runs on.

        Raises:
            InputError: it is none of these.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, cls):
            raise InputError(f"data: expected an editkit.FactsDataModule, but got {type(data).__name__}; give one")
        return data

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read and select the facts, and read the probes (once)."""
        if len(self.probe_sets) < len(self.probes):
            titles = [probe.title for probe in self.probes]
            if double := [t for t in titles if titles.count(t) > 1]:
                raise InputError(f"probes: expected a name of its own for each, but got {double[0]!r} twice; give name")
            self.probe_sets = [load_probe(probe, number) for number, probe in enumerate(self.probes)]
        if self.text is not None:
            with named_as("data.text."):
                text_files(self.text)
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

    def read_text(self, tokenizer: PreTrainedTokenizerBase, context: int) -> None:
        """Read the held-out text (once), cut into windows of at most ``context`` tokens."""
        if self.text is not None:
            self._windows = self._windows or text_rows(self.text, tokenizer, context)

    def _count(self, there: int) -> int:
        """How many facts to take of those that are there."""
        if self.asked_batches is None:
            if self.num_facts is not None and self.num_facts > there:
                raise InputError(
                    f"data.num_facts: expected at most the {counted(there, 'fact')} of {self.source!r}, but got "
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
                f"data.batch_size: {counted(batches, 'batch', 'batches')} of {self.batch_size} would be "
                f"{counted(batches * self.batch_size, 'fact')}, but "
                f"{self.source!r} has {there}; lower it or data.num_batches"
            )
        return batches * self.batch_size

    # ---------------------------------------------------------------- the plan

    def make_plan(
        self,
        limit: int | None = None,
        sequential: bool = False,
        max_batches: int | None = None,
        hold_out: bool = False,
        score: Score | None = None,
        **settings: Any,
    ) -> RunPlan:
        """Settle how the run proceeds; the same arguments make the same plan again.

        Args:
            limit: facts that the editor can take at a time.
            sequential: whether each batch of edits stays while the next ones are made.
            max_batches: batches to make, if fewer than the facts fill.
            hold_out: set facts aside by which settings can be chosen: others than the run's, with a ``target_true`` (of
                the built-in facts those of the split "tune", of a file those that were not selected). Where there are
                too few, they are the first batch's own, each with half of its prompts, which are then no longer
                reported.
            score: measures the rows of the facts that are set aside.
            settings: other fields of ``RunPlan``.

        Raises:
            InputError: a batch size that the editor, or the number of facts, does not allow.
        """
        size = self._batch_size(limit)
        facts, tuning = list(self.selected), None
        if hold_out:
            others = [fact for fact in self.others if fact.target_true is not None][:size]
            if len(others) < size:
                others, facts[:size] = halves(facts[:size])
            tuning = Tuning(tuple(others), tuple(_tuning_rows(others, facts)), score)
        self._plan = RunPlan(
            tuple(facts), size, max_batches, sequential, probe_every=self.probe_every, tuning=tuning, **settings
        )
        return self._plan

    @property
    def plan(self) -> RunPlan:
        """The plan that was made last; before that, all facts in one batch."""
        return self._plan or RunPlan(tuple(self.selected), len(self.selected) or 1, probe_every=self.probe_every)

    @property
    def measurement(self) -> Measurement:
        """What the validation at work measures."""
        assert self.trainer is not None
        if self._measurement is not None:
            return self._measurement
        epoch, in_fit = self.trainer.current_epoch, self.trainer.state.fn == "fit"
        if not in_fit and epoch:  # by itself, after a fit: the last batch's edit still acts
            return self.plan.after(epoch - 1)
        return self.plan.after(epoch) if in_fit else self.plan.before()

    def measuring(self, measurement: Measurement) -> FactsDataModule:
        """The same facts and probes, for a validation that measures something else."""
        other = copy.copy(self)
        other._measurement = measurement
        return other

    def _batch_size(self, limit: int | None) -> int:
        """The batch size: as asked, else all facts at once within the editor's ``limit``."""
        size = self.batch_size or min(len(self.selected), limit or len(self.selected))
        if size > len(self.selected):
            raise InputError(
                f"data.batch_size: expected at most the run's {counted(len(self.selected), 'fact')}, but got {size}; "
                "lower it or give more facts"
            )
        if limit is not None and size > limit:
            raise InputError(
                f"data.batch_size: this editor takes {counted(limit, 'fact')} at a time, but got {size}; leave "
                "it out, or use editkit.EMMET or editkit.MEMIT"
            )
        return size

    # ---------------------------------------------------------------- loaders

    @override
    def train_dataloader(self) -> DataLoader[list[Fact]]:
        """The present epoch's batch of edits in steps: lists of facts, those with one key in one step.

        Of several processes each has all facts, or where the editor shards them, its share of them, in as many steps,
        of which some may be empty. A batch that the ledger has already is one empty step.
        """
        assert self.trainer is not None
        batch, world = self.trainer.current_epoch, self.trainer.world_size
        if not self.plan.batches_done <= batch < self.plan.num_batches:
            return DataLoader([[]], batch_size=None)  # type: ignore[arg-type]
        groups = group_by_key(self.plan.batch(batch))
        shards = world if getattr(self.trainer.lightning_module, "shards_facts", False) else 1
        share = groups[self.trainer.global_rank % shards :: shards]
        longest = math.ceil(len(groups) / shards)
        steps = [
            [fact for group in share[i : i + self.facts_per_step] for fact in group]
            for i in range(0, longest, self.facts_per_step)
        ]
        return DataLoader(steps, batch_size=None)  # type: ignore[arg-type]

    @override
    def val_dataloader(self) -> list[DataLoader[list[Row]]]:
        """This process's share of the rows, a loader for each kind of evaluation: edits, generation, probes, text."""
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        editor: Any = self.trainer.lightning_module
        plan, measurement = self.plan, self.measurement
        indices = measurement.facts[rank::world]
        facts = [plan.facts[i] for i in indices]
        questions = plan.questions
        batches: list[list[list[Any]]] = [
            [
                evaluation_rows(facts[n : n + FACTS_AT_A_TIME], indices[n : n + FACTS_AT_A_TIME], questions.locality)
                for n in range(0, len(facts), FACTS_AT_A_TIME)
            ]
        ]
        if self.generation:
            batches.append(_cut(generation_rows(facts, indices, questions.generations)))
        if measurement.probes:
            room = editor.tokenizer, editor.editable.context, questions.separator
            if self._fitted[0] != room:
                self._fitted = room, [fitted(probe, *room) for probe in self.probe_sets]
            batches += [_cut(probe.rows[rank::world]) for probe in self._fitted[1]]
            if self.text is not None:
                self.read_text(editor.tokenizer, editor.editable.context)
                batches.append(_cut(self._windows[rank::world]))
        # never empty, so that the loop runs and its callbacks see the edited model
        return [DataLoader(part or [[]], batch_size=None) for part in batches]  # type: ignore[arg-type]


def _tuning_rows(tuning: Sequence[Fact], reported: Sequence[Fact]) -> list[EvaluationRow]:
    """Rows of tuning facts that have a ``target_true`` and are not among those reported, such as a shared neighbour."""
    prompts = {row.prompt for row in evaluation_rows(reported, range(len(reported)))}
    rows = evaluation_rows(tuning, range(len(tuning)))
    return [row for row in rows if row.prompt not in prompts and row.target_true is not None]


def _cut(rows: Sequence[Any]) -> list[list[Any]]:
    return [list(rows[i : i + ROWS_AT_A_TIME]) for i in range(0, len(rows), ROWS_AT_A_TIME)]
