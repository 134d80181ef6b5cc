"""What a run says of its probes, the skipped ones too: metrics, tables, files; and how zsRE is asked."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from editkit.data.facts import Fact
from editkit.data.probes import Probe, ProbeRow, ProbeSet
from editkit.data.rows import UNRELATED, evaluation_rows, locality_question
from editkit.data.tasks import TASKS
from editkit.evaluation.evaluator import ProbeResult, Result
from editkit.evaluation.plots import write_path
from editkit.evaluation.protocol import Protocol
from editkit.evaluation.results import RunResults
from editkit.evaluation.tables import SCORES, WORDS, legend, notes, tables

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
        results.add([*answers(probes[0], range(4)), *answers(probes[1], ())], {phase: ()}, batch)
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
        drawn.extend(text.get_text() for text in figure.axes[0].get_legend().get_texts())
        file.write_bytes(b"drawn")

    monkeypatch.setattr(Figure, "savefig", savefig)
    write_path(tmp_path, results.points, main, [3], "title")
    rows = list(csv.DictReader((tmp_path / "probes.csv").open(encoding="utf-8")))
    skipped = [(r["phase"], r["edits"], r["probe"], r["mean"], r["low"]) for r in rows if r["metric"] == "skipped"]
    assert skipped == [(p, e, n, "6", "") for p, e in (("before", "0"), ("after", "3")) for n in names]
    assert {r["probe"] for r in rows if r["metric"] == "mcc"} == {n.replace("long", "short") for n in names}
    assert drawn[-len(names) :] == [f"{name}: all questions skipped" for name in names]
    assert len(drawn) == 2 * len(names) and (tmp_path / "probes.png").exists()


@pytest.mark.parametrize("scored", SCORED)
def test_questions_that_were_skipped_are_counted(scored: str) -> None:
    probe = probe_set(0, "cola", scored, 5)
    results = RunResults([], [probe])
    results.add(answers(probe, (0, 1, 3)), {"before": ()}, None)
    metrics = results.metrics(Protocol())
    for name in probe.probe.titles:
        assert metrics["probes"][name]["skipped"] == {"before": 2}
        assert metrics["probes"][name]["before"]["accuracy"] == 100
        assert notes(metrics, {})[0].startswith("cola: 2 of 5 questions skipped")
    again = RunResults([], [probe])
    again.take(results.rows)
    assert again.metrics(Protocol()) == metrics


def test_all_probes_skipped_still_make_a_table() -> None:
    probe = probe_set(0, "cola", "likelihood", 2)
    results = RunResults([], [probe])
    results.add(answers(probe, ()), {"before": ()}, None)
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


def test_what_stands_under_the_tables_is_printed_once_and_whole(tmp_path: Path) -> None:
    from editkit.callbacks.report import Report

    probe = probe_set(0, "a name " * 30, "likelihood", 2)
    report = Report()
    report.book = RunResults([], [probe])
    report.book.add(answers(probe, ()), {"before": ()}, None)
    with (tmp_path / "out.txt").open("w", encoding="utf-8") as file:
        report.show(Console(file=file, width=60), "title")
    text = (tmp_path / "out.txt").read_text(encoding="utf-8")
    for line in notes(report.metrics(), report.main):
        assert text.count(line + "\n") == 1


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
