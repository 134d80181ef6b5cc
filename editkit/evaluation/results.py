"""All that a run has measured: every row, the scores of each phase, and the path of the model's other abilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from editkit.data.facts import Fact
from editkit.data.probes import ProbeSet
from editkit.evaluation.evaluator import BaselinePredictions, EditResult, Result, fact_of
from editkit.evaluation.protocol import Protocol
from editkit.evaluation.records import from_record, to_record
from editkit.evaluation.scores import AbilityScores, FactScores, Figure

PHASES = ("before", "after", "final")
Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """The model's other abilities at one time.

    Attributes:
        phase: "before" or "after".
        batch: the batch of edits, counted from 0, after which it was; None before them.
        figures: per probe ("text" is the held-out text) its metrics.
        skipped: per probe, questions that did not fit into the context window.
    """

    phase: str
    batch: int | None
    figures: dict[str, dict[str, Figure]]
    skipped: dict[str, int]


class RunResults:
    """Rows and scores of a run, as they come in.

    Args:
        facts: the run's facts.
        probes: its probes.
        sequential: whether each batch of edits stayed: then the abilities after the run are those after the last
            batch, else the mean of those after each.

    Attributes:
        scores: metrics of the facts, by phase: "before" any edit, "after" each fact's own batch, "final" of all facts
            after the last of several sequential batches.
        points: the other abilities before and along the run.
        rows: every row, as in records.jsonl.
    """

    def __init__(self, facts: Sequence[Fact], probes: Sequence[ProbeSet], sequential: bool = False) -> None:
        self.facts, self.probes, self.sequential = facts, probes, sequential
        self.scores = {phase: FactScores() for phase in PHASES}
        self.points: list[Point] = []
        self.rows: list[Row] = []

    def add(self, results: Sequence[Result], phases: Mapping[str, Sequence[int]], batch: int | None) -> list[Row]:
        """Add the results of one validation.

        Args:
            results: of all processes.
            phases: what they count for: positions of the facts by phase.
            batch: the batch of edits after which it was.

        Returns:
            The rows that were added.
        """
        added: list[Row] = []
        for phase, facts in phases.items():
            members = frozenset(facts)
            mine = [r for r in results if fact_of(r) in members]
            self.scores[phase].update(mine)
            added += [self._row(r, phase, batch) for r in mine]
        others = [r for r in results if fact_of(r) < 0]
        if others:
            phase = next(iter(phases))
            self._point(others, phase, batch)
            added += [self._row(r, phase, batch) for r in others]
        self.rows += added
        return added

    def take(self, rows: Iterable[Row]) -> None:
        """Take over the rows of an interrupted run."""
        index = {fact.fact_id: i for i, fact in enumerate(self.facts)}
        numbers = {probe.probe.title: i for i, probe in enumerate(self.probes)}
        others: dict[tuple[str, int | None], list[Result]] = {}
        of_facts: dict[str, list[Result]] = {}
        for row in rows:
            self.rows.append(row)
            result = from_record(row, self.facts, index, numbers)
            if result is None:
                continue
            if fact_of(result) < 0:
                others.setdefault((row["phase"], row["batch"]), []).append(result)
            else:
                of_facts.setdefault(row["phase"], []).append(result)
        for phase, results in of_facts.items():
            self.scores[phase].update(results)
        for (phase, batch), results in others.items():
            self._point(results, phase, batch)

    @property
    def original(self) -> BaselinePredictions | None:
        """What the unedited model predicted, from the rows; None where it was not measured."""
        index = {fact.fact_id: i for i, fact in enumerate(self.facts)}
        numbers = {probe.probe.title: i for i, probe in enumerate(self.probes)}
        found = (from_record(r, self.facts, index, numbers) for r in self.rows if r["phase"] == "before")
        return {r.key: r.predicted for r in found if isinstance(r, EditResult)} or None

    def _row(self, result: Result, phase: str, batch: int | None) -> Row:
        return {**to_record(result, self.facts, self.probes), "phase": phase, "batch": batch}

    def _point(self, results: Iterable[Result], phase: str, batch: int | None) -> None:
        abilities = AbilityScores(self.probes)
        abilities.update(results)
        skipped = {title: count for title, count in abilities.skipped.items() if count}
        self.points.append(Point(phase, batch, abilities.results(), skipped))

    # ---------------------------------------------------------------- figures

    def metrics(self, protocol: Protocol) -> dict[str, Any]:
        """Every figure, as metrics.json has it; scores on the 0-100 scale."""
        found: dict[str, Any] = {}
        for phase, scores in self.scores.items():
            if results := scores.results():
                found[phase] = {name: figure["mean"] for name, figure in results.items()}
                found.setdefault("intervals", {})[phase] = _spans(results)
        skipped = {phase: scores.skipped for phase, scores in self.scores.items() if scores.skipped}
        if abilities := self.abilities():
            found["probes"] = abilities
            found["probe_path"] = [
                {"phase": p.phase, "batch": p.batch, **{t: _at(p, t) for t in self._titles(p)}} for p in self.points
            ]
        if skipped:
            found["skipped"] = skipped
        found["protocol"] = protocol.about()
        return found

    def abilities(self) -> dict[str, Any]:
        """Per probe: what it was, its metrics before and after, and how many questions were skipped.

        A probe of which every question was skipped has no metrics, and is there all the same.
        """
        found: dict[str, Any] = {}
        about = {probe.probe.title: {**asdict(probe.probe), "asked": len(probe.rows)} for probe in self.probes}
        for phase in ("before", "after"):
            points = [p for p in self.points if p.phase == phase]
            if not points:
                continue
            chosen = points[-1:] if self.sequential else points
            for title in self._titles(chosen[-1]):
                entry = found.setdefault(title, {"about": about.get(title.removesuffix(" (generated)"))})
                if figures := chosen[-1].figures.get(title):
                    entry[phase] = {
                        name: sum(p.figures[title][name]["mean"] for p in chosen) / len(chosen)
                        for name in figures
                        if all(name in p.figures.get(title, {}) for p in chosen)
                    }
                    if len(chosen) == 1:
                        entry.setdefault("intervals", {})[phase] = _spans(figures)
                if skipped := chosen[-1].skipped.get(title):
                    entry.setdefault("skipped", {})[phase] = skipped
        return found

    def _titles(self, point: Point) -> list[str]:
        """What was measured or skipped at one time, in the order of the probes."""
        there = {*point.figures, *point.skipped}
        return [t for t in (*(t for probe in self.probes for t in probe.probe.titles), "text") if t in there]


def _spans(figures: Mapping[str, Figure]) -> dict[str, list[float]]:
    return {name: [figure["low"], figure["high"]] for name, figure in figures.items() if "low" in figure}


def _at(point: Point, title: str) -> dict[str, float]:
    """Means of a probe's metrics at one time, and the number of questions skipped, if any."""
    means = {name: figure["mean"] for name, figure in point.figures.get(title, {}).items()}
    return {**means, "skipped": point.skipped[title]} if title in point.skipped else means
