"""All that a run has measured: every row, the scores of each phase, and the path of the model's other abilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from editkit.data.facts import Fact
from editkit.data.plan import PHASES, Measurement
from editkit.data.probes import ProbeSet
from editkit.evaluation.evaluator import BaselinePredictions, EditResult, Result, fact_of
from editkit.evaluation.protocol import Protocol
from editkit.evaluation.records import from_record, to_record
from editkit.evaluation.scores import AbilityScores, FactScores, Figure

Record = dict[str, Any]
SAMPLE = "sample"  # the kind of records that hold the model's own words


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


@dataclass(frozen=True)
class Validation:
    """What one validation found.

    Attributes:
        measurement: what was measured.
        records: its rows, as in records.jsonl.
        scores: per phase, the metrics of the facts measured in it.
        point: the other abilities; None where they were not measured.
        skipped: rows that did not fit into the context window, or left nothing to generate.
    """

    measurement: Measurement
    records: list[Record]
    scores: dict[str, dict[str, Figure]]
    point: Point | None
    skipped: int


class RunResults:
    """All that a run has measured, as it comes in: logger, tables and files read it here.

    Args:
        facts: the run's facts.
        probes: its probes.
        sequential: whether each batch of edits stayed: then the abilities after the run are those after the last
            batch, else the mean of those after each.

    Attributes:
        points: the other abilities before and along the run.
        records: every row, as in records.jsonl.
    """

    def __init__(self, facts: Sequence[Fact], probes: Sequence[ProbeSet], sequential: bool = False) -> None:
        self.facts, self.probes, self.sequential = facts, probes, sequential
        self.points: list[Point] = []
        self.records: list[Record] = []
        self._of_facts: dict[str, list[Result]] = {phase: [] for phase in PHASES}
        self._measured: set[tuple[str, int | None]] = set()  # phases, and batches after which they were

    def add(self, results: Sequence[Result], measurement: Measurement) -> Validation:
        """Add the results of one validation, of all processes; what is measured again replaces what was."""
        self._forget(measurement)
        records: list[Record] = []
        scores: dict[str, dict[str, Figure]] = {}
        for phase, facts in measurement.phases.items():
            members = frozenset(facts)
            mine = [r for r in results if fact_of(r) in members]
            self._of_facts[phase] += mine
            records += [self._record(r, phase, measurement.batch) for r in mine]
            scores[phase] = _scored(mine).results(intervals=False)
        others, point = [r for r in results if fact_of(r) < 0], None
        if others:
            phase = next(iter(measurement.phases))
            point = self._add_point(others, phase, measurement.batch)
            records += [self._record(r, phase, measurement.batch) for r in others]
        self.records += records
        self._measured |= {(phase, measurement.batch) for phase in measurement.phases}
        return Validation(measurement, records, scores, point, sum(not r.fits for r in results))

    def add_samples(self, samples: Sequence[Record]) -> None:
        """Add records of kind ``SAMPLE``: a fact's id, prompt and target, the model's own words, phase and batch."""
        self.records += samples

    def take(self, records: Iterable[Record]) -> None:
        """Take over the records of an interrupted run."""
        index = {fact.fact_id: i for i, fact in enumerate(self.facts)}
        numbers = {probe.probe.title: i for i, probe in enumerate(self.probes)}
        others: dict[tuple[str, int | None], list[Result]] = {}
        for record in records:
            self.records.append(record)
            self._measured.add((record["phase"], record["batch"]))
            result = from_record(record, self.facts, index, numbers)
            if result is None:
                continue
            if fact_of(result) < 0:
                others.setdefault((record["phase"], record["batch"]), []).append(result)
            else:
                self._of_facts[record["phase"]].append(result)
        for (phase, batch), results in others.items():
            self._add_point(results, phase, batch)

    def has(self, phase: str, batch: int | None = None) -> bool:
        """Whether the unedited model, or the model after a batch, has been measured."""
        return (phase, batch) in self._measured

    @property
    def baseline(self) -> BaselinePredictions | None:
        """What the unedited model predicted; None where it was not measured."""
        return {r.key: r.predicted for r in self._of_facts["before"] if isinstance(r, EditResult)} or None

    @property
    def samples(self) -> list[dict[str, str]]:
        """Per fact of which the model's own words were noted: prompt, target, and the words by phase."""
        found: dict[str, dict[str, str]] = {}
        for record in self.records:
            if record["kind"] == SAMPLE:
                entry = {"prompt": record["prompt"], "target_new": record["target_new"]}
                found.setdefault(record["fact"], entry)[record["phase"]] = record["text"]
        return [found[fact.fact_id] for fact in self.facts if fact.fact_id in found]

    @property
    def scores(self) -> dict[str, FactScores]:
        """Metrics of the facts by phase: "before" any edit, "after" each one's own batch, "final" after the last."""
        return {phase: _scored(results) for phase, results in self._of_facts.items()}

    def _forget(self, measurement: Measurement) -> None:
        """Forget what was found when the same was measured before."""
        for phase, facts in measurement.phases.items():
            if self.has(phase, measurement.batch):
                members, place = frozenset(facts), (phase, measurement.batch)
                self._of_facts[phase] = [r for r in self._of_facts[phase] if fact_of(r) not in members]
                self.records = [r for r in self.records if (r["phase"], r["batch"]) != place]
                self.points = [p for p in self.points if (p.phase, p.batch) != place]

    def _record(self, result: Result, phase: str, batch: int | None) -> Record:
        return {**to_record(result, self.facts, self.probes), "phase": phase, "batch": batch}

    def _add_point(self, results: Iterable[Result], phase: str, batch: int | None) -> Point:
        abilities = AbilityScores(self.probes)
        abilities.update(results)
        skipped = {title: count for title, count in abilities.skipped.items() if count}
        self.points.append(Point(phase, batch, abilities.results(), skipped))
        return self.points[-1]

    # ---------------------------------------------------------------- figures

    def metrics(self, protocol: Protocol) -> dict[str, Any]:
        """Every figure, as metrics.json has it; scores on the 0-100 scale.

        "before" and "after" have the facts' scores before any edit and after each fact's own batch, "final" those of
        all facts after the last of several sequential batches, "intervals" their 95% intervals, "probes" the model's
        other abilities, "protocol" how all was measured, "samples" prompts with the model's own words.
        """
        found: dict[str, Any] = {}
        by_phase = self.scores
        for phase, scores in by_phase.items():
            if results := scores.results():
                found[phase] = {name: figure["mean"] for name, figure in results.items()}
                found.setdefault("intervals", {})[phase] = _spans(results)
        skipped = {phase: scores.skipped for phase, scores in by_phase.items() if scores.skipped}
        if abilities := self.abilities():
            found["probes"] = abilities
            found["probe_path"] = [
                {"phase": p.phase, "batch": p.batch, **{t: _at(p, t) for t in self._titles(p)}} for p in self.points
            ]
        if skipped:
            found["skipped"] = skipped
        found["protocol"] = protocol.about()
        found["samples"] = self.samples
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


def _scored(results: Iterable[Result]) -> FactScores:
    scores = FactScores()
    scores.update(results)
    return scores


def _spans(figures: Mapping[str, Figure]) -> dict[str, list[float]]:
    return {name: [figure["low"], figure["high"]] for name, figure in figures.items() if "low" in figure}


def _at(point: Point, title: str) -> dict[str, float]:
    """Means of a probe's metrics at one time, and the number of questions skipped, if any."""
    means = {name: figure["mean"] for name, figure in point.figures.get(title, {}).items()}
    return {**means, "skipped": point.skipped[title]} if title in point.skipped else means
