"""All that a run has measured: by phase, kept and taken over; its probes, the skipped ones too; how zsRE is asked."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from editkit.data.facts import Fact
from editkit.data.plan import Measurement, RunPlan
from editkit.data.probes import Probe, ProbeRow, ProbeSet
from editkit.data.rows import UNRELATED, EvaluationRow, GenerationRow, TextRow, evaluation_rows, locality_question
from editkit.data.tasks import TASKS
from editkit.evaluation.evaluator import EditResult, GenerationResult, ProbeResult, Result, TextResult
from editkit.evaluation.plots import write_path
from editkit.evaluation.protocol import Protocol
from editkit.evaluation.results import SAMPLE, Point, Record, RunResults
from editkit.evaluation.ridge_path import plot_path
from editkit.evaluation.tables import SCORES, WORDS, legend, notes, tables
from editkit.metrics.probes import ProbeMetric

SCORED = ("likelihood", "generation", "both")


def probe_set(number: int, name: str, scored: str, count: int) -> ProbeSet:
    rows = [ProbeRow(number, i, f"question {i}", i % 2) for i in range(count)]
    return ProbeSet(Probe("cola", scored=scored, name=name), TASKS["cola"], rows, "")  # type: ignore[arg-type]


def answers(probe: ProbeSet, fitting: Sequence[int]) -> list[Result]:
    """Right answers of the questions that fit."""
    found: list[Result] = []
    for row in probe.rows:
        fits, scored = row.example in fitting, probe.probe.scored
        nll = () if scored == "generation" else ((float(row.label), 1.0 - row.label) if fits else (float("nan"),) * 2)
        predicted = row.label if fits and scored != "generation" else None
        answer = row.label if fits and scored != "likelihood" else None
        found.append(ProbeResult(row, nll, predicted, answer, "Yes" if answer is not None else None, fits))
    return found


@pytest.mark.parametrize("scored", SCORED)
def test_a_probe_that_was_skipped_whole_is_there_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: str
) -> None:
    probes = [probe_set(0, "short", scored, 4), probe_set(1, "long", scored, 6)]
    results = RunResults([], probes, sequential=True)
    for phase, batch in (("before", None), ("after", 0)):
        results.add([*answers(probes[0], range(4)), *answers(probes[1], ())], Measurement({phase: ()}, batch))
    metrics = json.loads(json.dumps(results.metrics(Protocol())))
    names = ["long", "long (generated)"] if scored == "both" else ["long"]
    assert list(metrics["probes"]) == [*(n.replace("long", "short") for n in names), *names]
    for name in names:
        entry = metrics["probes"][name]
        assert entry["skipped"] == {"before": 6, "after": 6} and entry["about"]["asked"] == 6
        assert not {"before", "after"} & set(entry)  # nothing is reported that was not measured
        assert [point[name] for point in metrics["probe_path"]] == [{"skipped": 6}] * 2
        other = metrics["probes"][name.replace("long", "short")]
        assert other["before"]["accuracy"] == 100 and "skipped" not in other

    main = dict.fromkeys(metrics["probes"], "mcc")
    (table,) = tables(metrics, "title", main)
    assert [str(c.header).split("\n")[0] for c in table.columns[1:]] == list(metrics["probes"])
    assert notes(metrics, main) == [
        *(f"{n}: 6 of 6 questions skipped, as they are longer than the model's context window" for n in names),
        "higher is better: mcc Matthews correlation",
    ]

    drawn: list[str] = []

    def savefig(figure: Figure, file: Path, **options: object) -> None:
        drawn.extend(legend_beside_the_axes(figure))
        file.write_bytes(b"drawn")

    monkeypatch.setattr(Figure, "savefig", savefig)
    write_path(tmp_path, results.points, main, [3], "title")
    rows = list(csv.DictReader((tmp_path / "probes.csv").open(encoding="utf-8")))
    skipped = [(r["phase"], r["edits"], r["probe"], r["mean"], r["low"]) for r in rows if r["metric"] == "skipped"]
    assert skipped == [(p, e, n, "6", "") for p, e in (("before", "0"), ("after", "3")) for n in names]
    assert {r["probe"] for r in rows if r["metric"] == "mcc"} == {n.replace("long", "short") for n in names}
    assert drawn[-len(names) :] == [f"{name}: all questions skipped" for name in names]
    assert len(drawn) == 2 * len(names) and (tmp_path / "probes.png").exists()


def legend_beside_the_axes(figure: Figure) -> list[str]:
    """What a figure's legend says, which lies where it hides no point."""
    (found,) = figure.legends
    assert all(axes.get_legend() is None for axes in figure.axes)
    figure.draw_without_rendering()
    place = found.get_window_extent()
    assert not any(place.overlaps(axes.get_tightbbox()) for axes in figure.axes)
    assert figure.bbox.contains(place.x0, place.y0) and figure.bbox.contains(place.x1, place.y1)
    return [text.get_text() for text in found.get_texts()]


def test_a_legend_hides_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = dict.fromkeys(("ES", "PS", "NS", "S"), 0.0)
    figure = plot_path([{"rho": 10.0**n, **row} for n in range(5)], 100.0)
    assert legend_beside_the_axes(figure) == ["ES", "PS", "NS", "S"]

    drawn: list[str] = []
    savefig = Figure.savefig

    def checked(figure: Figure, file: Path, **options: Any) -> None:
        drawn.extend(legend_beside_the_axes(figure))
        savefig(figure, file, **options)

    monkeypatch.setattr(Figure, "savefig", checked)
    names = ["sst2", "cola", "mrpc", "a probe with a name that is rather long", "rte"]
    low = {name: {"accuracy": {"mean": 0.0, "low": 0.0, "high": 100.0}} for name in names}
    points = [Point("before", None, low, {}), *(Point("after", n, low, {}) for n in range(3))]
    write_path(tmp_path, points, dict.fromkeys(names, "accuracy"), [1, 2, 3], "title")
    assert drawn == [f"{name} (accuracy)" for name in names]
    for point in points:
        point.figures["text"] = {"perplexity": {"mean": 9.0}}
    write_path(tmp_path, points, {}, [1, 2, 3], "title")
    assert drawn[len(names) :] == ["perplexity (right)"]


@pytest.mark.parametrize("scored", SCORED)
def test_questions_that_were_skipped_are_counted(scored: str) -> None:
    probe = probe_set(0, "cola", scored, 5)
    results = RunResults([], [probe])
    results.add(answers(probe, (0, 1, 3)), Measurement({"before": ()}))
    metrics = results.metrics(Protocol())
    for name in probe.probe.titles:
        assert metrics["probes"][name]["skipped"] == {"before": 2}
        assert metrics["probes"][name]["before"]["accuracy"] == 100
        assert notes(metrics, {})[0].startswith("cola: 2 of 5 questions skipped")
    again = RunResults([], [probe])
    again.take(results.records)
    assert again.metrics(Protocol()) == metrics


def test_all_probes_skipped_still_make_a_table() -> None:
    probe = probe_set(0, "cola", "likelihood", 2)
    results = RunResults([], [probe])
    results.add(answers(probe, ()), Measurement({"before": ()}))
    (table,) = tables(results.metrics(Protocol()), "title", {"cola": "mcc"})
    assert list(table.columns[0].cells) == ["before"] and list(table.columns[1].cells) == ["–"]


def test_the_legend_names_what_is_shown() -> None:
    assert legend({}, {}) == ""
    figures = dict.fromkeys((*SCORES, *WORDS, "EA_token"), 1.0)
    probes = {"nli": {"before": {"accuracy": 1.0}}, "mrpc": {"before": {"f1": 1.0}}, "text": {}}
    line = legend({"before": figures, "intervals": {"before": {}}, "probes": probes}, {"mrpc": "f1"})
    higher, lower = line.split("; ")
    names = [entry.split(" ")[0] for entry in higher.removeprefix("higher is better: ").split(" · ")]
    assert names == [*SCORES, *WORDS, "accuracy", "f1"] and lower == "lower is better: perplexity"
    assert all(" " in entry for entry in higher.split(" · ")[:-2]) and "\n" not in line
    alone = legend({"after": {"ES": 1.0, "EA": 1.0}}, {})
    assert "GE" not in alone and "perplexity" not in alone and "EA efficacy" in alone and "NM neighborhood" in alone


# ---------------------------------------------------------------- phases, kept and taken over

FACTS = [
    Fact(
        f"S{n}", "{} is", "x", "y", paraphrase_prompts=(f"is S{n}",), neighborhood_prompts=("T is",),
        reference_texts=("x y",), fact_id=f"f{n}",
    )
    for n in range(5)
]  # fmt: skip
PLAN = RunPlan(tuple(FACTS), 2, sequential=True, probe_every=1)


def edit_result(row: EvaluationRow, batch: int) -> EditResult:
    """A result whose numbers tell which it is; facts come to be known in their own batch."""
    known = row.fact // 2 <= batch and row.kind < 2
    new, true = (1.0, 2.0) if known else (2.0, 1.0)
    return EditResult(row, new + row.fact / 100, true, 1.0 if known else 0.0, (row.fact, batch + 1), "w", row.fact != 3)


def validation(facts: Sequence[int], batch: int, probes: Sequence[ProbeSet] = ()) -> list[Result]:
    """What a validation after ``batch`` (-1: before any) finds on ``facts``."""
    results: list[Result] = [edit_result(r, batch) for r in evaluation_rows([FACTS[i] for i in facts], list(facts))]
    results += [
        GenerationResult(GenerationRow(i, "p", 0, "x y"), "x y z", 1.0 + i + batch, True) for i in facts if i % 2
    ]
    for probe in probes:
        results += answers(probe, range(2 + batch, len(probe.rows)))
    if probes:
        results += [TextResult(TextRow(0, ()), 3.0 + batch, 4), TextResult(TextRow(1, ()), 5.0, 3)]
    return results


def whole_run(results: RunResults, probes: Sequence[ProbeSet], batches: Sequence[int] = (-1, 0, 1, 2)) -> None:
    for batch in batches:
        measurement = PLAN.before() if batch < 0 else PLAN.after(batch)
        results.add(validation(measurement.facts, batch, probes), measurement)
        phase = next(iter(measurement.phases))
        results.add_samples([sample(FACTS[0], phase, measurement.batch)])


def sample(fact: Fact, phase: str, batch: int | None) -> Record:
    about = {"fact": fact.fact_id, "kind": SAMPLE, "prompt": fact.text(), "target_new": fact.target_new}
    return {**about, "text": f"said {phase}", "phase": phase, "batch": batch}


def test_each_phase_has_the_scores_of_its_facts() -> None:
    results = RunResults(FACTS, [], sequential=True)
    whole_run(results, [])
    metrics = results.metrics(Protocol())
    # fact 3 never fits: it is in no score, and counted
    assert metrics["before"]["ES"] == metrics["before"]["EA"] == 0
    assert metrics["after"]["ES"] == metrics["after"]["EA"] == metrics["final"]["PS"] == 100
    assert metrics["skipped"] == {"before": 3, "after": 3, "final": 3}
    assert metrics["before"]["GE"] == pytest.approx((1.0 + 3.0) / 2)  # 1 + fact + batch, of facts 1 and 3
    assert metrics["after"]["GE"] == pytest.approx((2.0 + 5.0) / 2)
    assert metrics["final"]["GE"] == pytest.approx((4.0 + 6.0) / 2)
    assert set(metrics["intervals"]) == {"before", "after", "final"}
    assert metrics["samples"] == [
        {"prompt": "S0 is", "target_new": "x", "before": "said before", "after": "said after"}
    ]  # fmt: skip


def test_what_counts_for_two_phases_is_recorded_for_both() -> None:
    results = RunResults(FACTS, [], sequential=True)
    found = results.add(validation(PLAN.after(2).facts, 2), PLAN.after(2))
    assert set(found.scores) == {"after", "final"}
    assert found.skipped == 3
    assert found.records == results.records
    rewrites = [(r["phase"], r["fact"], r["batch"]) for r in found.records if r["kind"] == "rewrite"]
    assert rewrites == [("after", "f4", 2), *(("final", f"f{n}", 2) for n in range(5))]
    for phase, scores in found.scores.items():
        alone = RunResults(FACTS, [])
        alone.add(validation(PLAN.after(2).phases[phase], 2), Measurement({phase: PLAN.after(2).phases[phase]}, 2))
        assert scores == {
            name: {"mean": mean} for name, mean in alone.metrics(Protocol())[phase].items()
        }  # fmt: skip


@pytest.mark.parametrize(("sequential", "cut"), [(True, 1), (True, 2), (False, 3)])
def test_a_run_taken_over_ends_as_one_that_was_not(sequential: bool, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON, in between any two validations; and twice."""
    monkeypatch.setattr(ProbeMetric, "interval", lambda metric: (float(metric.compute()),) * 2)  # which takes long
    probes = [probe_set(0, "a", "both", 6), probe_set(1, "b", "likelihood", 4)]
    whole = RunResults(FACTS, probes, sequential)
    whole_run(whole, probes)
    first = RunResults(FACTS, probes, sequential)
    whole_run(first, probes, (-1, 0, 1, 2)[:cut])
    second = RunResults(FACTS, probes, sequential)
    second.take(json.loads(json.dumps(first.records)))
    assert second.records == first.records
    assert second.baseline == first.baseline == whole.baseline
    assert second.points == first.points
    whole_run(second, probes, (-1, 0, 1, 2)[cut:])
    third = RunResults(FACTS, probes, sequential)
    third.take(json.loads(json.dumps(second.records)))
    for results in (second, third):
        assert results.records == whole.records
        assert results.metrics(Protocol()) == whole.metrics(Protocol())
    assert [(p.phase, p.batch) for p in third.points] == [("before", None), ("after", 0), ("after", 1), ("after", 2)]


def test_what_is_of_no_fact_or_probe_of_the_run_is_kept_and_not_counted() -> None:
    probes = [probe_set(0, "a", "likelihood", 6)]
    run = RunResults(FACTS, probes, sequential=True)
    whole_run(run, probes)
    other = RunResults(FACTS[:2], [], sequential=True)
    other.take(run.records)
    assert other.records == run.records
    assert not other.abilities().keys() - {"text"}
    expected = RunResults(FACTS[:2], [], sequential=True)
    expected.take(r for r in run.records if r.get("fact") in ("f0", "f1"))
    assert other.metrics(Protocol())["final"] == expected.metrics(Protocol())["final"]


def test_what_has_been_measured_is_known() -> None:
    results = RunResults(FACTS, [])
    assert results.baseline is None
    assert not results.has("before")
    whole_run(results, [], (-1, 0))
    assert results.has("before")
    assert results.has("after", 0)
    assert not results.has("after", 1)
    assert not results.has("final", 0)
    assert results.baseline is not None
    assert results.baseline[0, 1, 0] == (0, 0)  # fact, kind and number to what was predicted before


def test_abilities_after_the_run() -> None:
    """Of sequential batches those after the last; of independent ones the mean."""
    probes = [probe_set(0, "a", "likelihood", 6)]
    found = {}
    for sequential in (True, False):
        results = RunResults(FACTS, probes, sequential)
        whole_run(results, probes)
        found[sequential] = results.abilities()["text"]
    values = [p.figures["text"]["perplexity"]["mean"] for p in results.points]
    assert found[True]["before"] == found[False]["before"] == {"perplexity": values[0]}
    assert found[True]["after"]["perplexity"] == values[3]
    assert found[False]["after"]["perplexity"] == pytest.approx(sum(values[1:]) / 3)
    assert set(found[True]["intervals"]) == {"before", "after"}
    assert set(found[False]["intervals"]) == {"before"}  # a mean of three has none


# ---------------------------------------------------------------- zsRE

ZSRE = Fact(
    "UniFirst", "What does {} make?", "uniform",
    unrelated_prompts=("nq question: who sang it", "Paris is in"), unrelated_answers=("Nobody", "France"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("protocol", "asked"),
    [
        ("paper", "nq question: who sang it"),
        ("easyedit", "nq question: who sang it"),
        ("rome", "nq question: who sang it?"),
        ("public", "who sang it?"),
    ],
)
def test_zsre_is_asked_as_the_protocol_has_it(protocol: str, asked: str) -> None:
    rows = evaluation_rows([ZSRE], [0], Protocol.named(protocol).locality_question)
    assert [(r.prompt, r.target_new) for r in rows if r.kind == UNRELATED] == [
        (asked, "Nobody"),
        ("Paris is in", "France"),
    ]
    assert rows[0].prompt == "What does UniFirst make?"
    assert Protocol.named(protocol).about()["locality_question"] == Protocol.named(protocol).locality_question
    assert evaluation_rows([ZSRE], [0]) == evaluation_rows([ZSRE], [0], "as_given")
    assert locality_question("nq question:  who sang it ", "bare") == "who sang it"
