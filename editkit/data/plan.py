"""How a run proceeds: which facts in which batch, and what is measured when. Made once, never changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editkit.data.facts import Fact
from editkit.data.rows import EvaluationRow, Questions

#: what scores of facts count for, see ``Measurement``
PHASES = ("before", "after", "final")
#: from rows to their mean scores by name, 0-100
Score = Callable[[Sequence[EvaluationRow]], dict[str, float]]


@dataclass(frozen=True)
class Tuning:
    """What settings may be chosen by: other facts, or other prompts, than those that are reported.

    Attributes:
        facts: as many as a batch of edits has.
        rows: their prompts, none of which is reported.
        score: measures rows on the model as it is; None where nothing measures.
    """

    facts: tuple[Fact, ...]
    rows: tuple[EvaluationRow, ...]
    score: Score | None = None


@dataclass(frozen=True)
class Measurement:
    """One validation.

    Attributes:
        phases: what the facts' scores count for, in order, and the positions of these facts: "before" any edit, "after"
            a batch of edits, "final" of all facts after the last of several sequential batches.
        batch: the batch of edits, counted from 0, after which it is; None where there is no such.
        probes: whether probes and held-out text are measured too.
    """

    phases: Mapping[str, Sequence[int]]
    batch: int | None = None
    probes: bool = True

    @property
    def facts(self) -> Sequence[int]:
        """Positions of the facts to measure: what counts for two phases is measured once."""
        return max(self.phases.values(), key=len)


@dataclass(frozen=True)
class RunPlan:
    """A run: its facts, how they are dealt into batches of edits, and all else that is settled before it begins.

    Attributes:
        facts: in the order in which they are edited.
        batch_size: facts per batch of edits; the last batch may be smaller.
        max_batches: batches to make, if fewer than the facts fill.
        sequential: whether each batch stays while the next ones are made.
        batches_done: leading batches that a ledger has already.
        probe_every: batches after which probes are measured; they always are after the last.
        questions: how questions are put.
        tuning: what settings are chosen by, where an editor chooses some.
        folder: where an editor may keep unfinished work; None: nowhere.
        findings: what an interrupted run has recorded (``Editor.findings``).
        progress: whether progress bars are shown.
        announce: whether what takes long is announced in a line, which is so without bars too.
    """

    facts: tuple[Fact, ...]
    batch_size: int
    max_batches: int | None = None
    sequential: bool = False
    batches_done: int = 0
    probe_every: int | None = None
    questions: Questions = field(default_factory=Questions)
    tuning: Tuning | None = None
    folder: Path | None = None
    findings: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = False
    announce: bool = True

    @property
    def num_batches(self) -> int:
        """Batches of edits.

        >>> facts = tuple(Fact("Rome", "{} is", str(n)) for n in range(5))
        >>> RunPlan(facts, 2).num_batches, RunPlan(facts, 2, max_batches=1).num_batches
        (3, 1)
        """
        filled = math.ceil(len(self.facts) / self.batch_size)
        return filled if self.max_batches is None else min(self.max_batches, filled)

    def positions(self, batch: int) -> range:
        """Positions among ``facts`` of one batch of edits; empty beyond the last fact."""
        start = min(batch * self.batch_size, len(self.facts))
        return range(start, min(start + self.batch_size, len(self.facts)))

    def batch(self, batch: int) -> list[Fact]:
        """The facts of one batch of edits."""
        return [self.facts[i] for i in self.positions(batch)]

    def before(self) -> Measurement:
        """The unedited model, on all facts."""
        return Measurement({"before": range(len(self.facts))})

    def after(self, batch: int) -> Measurement:
        """The model after a batch of edits, on its facts; after the last of several sequential ones, on all."""
        present, last = self.positions(batch), batch == self.num_batches - 1
        phases: dict[str, Sequence[int]] = {"after": present}
        if self.sequential and last and present.start:
            phases["final"] = range(present.stop)
        due = self.probe_every is not None and (batch + 1) % self.probe_every == 0
        return Measurement(phases, batch, last or due)
