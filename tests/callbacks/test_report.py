"""What a run leaves behind: rows as they come in, the whole at the end, tables that read as they were measured."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from rich.console import Console

from editkit import Evaluation, Fact, FactsDataModule, HeldOutText, Probe, Report, WeightUpdate
from editkit.callbacks.report import main_metrics, show_report, write_report
from editkit.data.plan import Measurement
from editkit.data.probes import ProbeRow, ProbeSet
from editkit.data.tasks import TASKS
from editkit.evaluation.evaluator import ProbeResult
from editkit.evaluation.files import read_records
from editkit.evaluation.protocol import Protocol
from editkit.evaluation.results import SAMPLE, RunResults
from editkit.evaluation.tables import notes

MakeEditor = Callable[..., Any]
MakeTrainer = Callable[..., L.Trainer]


class Watching(Report):
    """What stood in the run folder after each validation."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.files: list[list[str]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self.folder is not None:
            self.files.append(sorted(f.name for f in (self.folder / "records").iterdir()))


@pytest.fixture
def run(
    make_editor: MakeEditor, make_trainer: MakeTrainer, facts: list[Fact], tmp_path: Path
) -> tuple[Watching, Evaluation, FactsDataModule]:
    """A run of three sequential batches, of which nothing is written but what comes in on the way."""
    report, evaluation, data = Watching(samples=2, sample_tokens=3), Evaluation(), FactsDataModule.of(facts, 2)
    data.probes, data.text = [Probe("sst2", examples=6)], HeldOutText(num_tokens=150, max_length=64)
    report.write_to(tmp_path)
    trainer, editor = make_trainer(WeightUpdate("sequential"), evaluation, report), make_editor()
    trainer.validate(editor, data, verbose=False)
    trainer.fit(editor, data)
    return report, evaluation, data


def test_rows_are_written_as_they_come_in(run: tuple[Watching, Evaluation, FactsDataModule], tmp_path: Path) -> None:
    report, evaluation, _ = run
    parts = ["before.jsonl", "after_00000.jsonl", "after_00001.jsonl", "after_00002.jsonl"]
    assert report.files == [sorted(parts[:n]) for n in range(1, 5)]
    assert evaluation.results is not None

    def in_any_order(records: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps(r, sort_keys=True) for r in records)

    assert in_any_order(read_records(tmp_path)) == in_any_order(evaluation.results.records)


def test_the_model_s_own_words_are_noted_for_the_first_facts(
    run: tuple[Watching, Evaluation, FactsDataModule],
) -> None:
    results = run[1].results
    assert results is not None
    samples = [r for r in results.records if r["kind"] == SAMPLE]
    # of the facts measured in a phase, as many as were asked for
    assert [(r["phase"], r["batch"], r["fact"]) for r in samples] == [
        ("before", None, "0"), ("before", None, "1"), ("after", 0, "0"), ("after", 0, "1"), ("final", 2, "0"),
        ("final", 2, "1"),
    ]  # fmt: skip
    assert [set(sample) for sample in results.samples] == [{"prompt", "target_new", "before", "after", "final"}] * 2
    assert results.samples[0]["prompt"] == "Town 0 lies in"


def test_the_whole_is_written_at_the_end(run: tuple[Watching, Evaluation, FactsDataModule], tmp_path: Path) -> None:
    _, evaluation, data = run
    results = evaluation.results
    assert results is not None
    metrics = results.metrics(evaluation.protocol)
    on_the_way = read_records(tmp_path)
    write_report(tmp_path, results, metrics, "title", data.plan)
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert not (tmp_path / "records").exists()
    lines = (tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines()
    # all phases of one validation apart, as they would be read back
    assert [json.loads(line) for line in lines] == read_records(tmp_path) == on_the_way
    with (tmp_path / "probes.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert {(r["phase"], r["edits"]) for r in table} == {("before", "0"), ("after", "5")}
    assert {r["probe"] for r in table} == {"sst2", "text"}
    assert (tmp_path / "probes.png").read_bytes().startswith(b"\x89PNG")
    write_report(tmp_path, results, metrics, "title", data.plan)  # again, as when a finished run is gone on with
    assert (tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines() == lines


def test_without_a_folder_or_a_measure_nothing_is_written(
    make_editor: MakeEditor,
    make_trainer: MakeTrainer,
    facts: list[Fact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluation, data = Evaluation(), FactsDataModule.of(facts[:2])
    make_trainer(evaluation, Report()).validate(make_editor(), data, verbose=False)
    assert evaluation.results is not None and evaluation.results.samples
    report = Report()
    report.write_to(tmp_path / "run")
    make_trainer(report).validate(make_editor(), data, verbose=False)  # by no Evaluation
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- what is shown


def shown(results: RunResults, folder: Path, width: int = 200, title: str = "title") -> str:
    with (folder / "out.txt").open("w", encoding="utf-8") as file:
        show_report(Console(file=file, width=width), results, results.metrics(Protocol()), title)
    return (folder / "out.txt").read_text(encoding="utf-8")


def test_what_stands_under_the_tables_is_printed_once_and_whole(tmp_path: Path) -> None:
    task = TASKS["cola"]
    rows = [ProbeRow(0, i, f"question {i}", i % 2) for i in range(2)]
    probe = ProbeSet(Probe("cola", scored="likelihood", name="a name " * 30), task, rows, "")
    results = RunResults([], [probe])
    nan = float("nan")
    skipped = [ProbeResult(row, (nan, nan), None, None, None, False) for row in rows]
    results.add(skipped, Measurement({"before": ()}))  # type: ignore[arg-type]
    text = shown(results, tmp_path, width=60)
    lines = notes(results.metrics(Protocol()), main_metrics(results))
    assert len(lines) >= 1
    for line in lines:
        assert text.count(line + "\n") == 1


def test_tables_and_words_are_shown(run: tuple[Watching, Evaluation, FactsDataModule], tmp_path: Path) -> None:
    results = run[1].results
    assert results is not None
    text = shown(results, tmp_path)
    metrics = results.metrics(Protocol())
    assert "title" in text
    for name in ("ES", "PS", "NS", "EA"):
        assert name in text
    for phase in ("before", "after", "final"):
        assert phase in text
        assert f"{metrics[phase]['EM']:.1f}" in text
    for sample in results.samples:
        assert f"{sample['prompt']} …  (asked for: {sample['target_new']})\n" in text
        for phase in ("before", "after", "final"):
            assert f"  {phase:6} {' '.join(sample[phase].split())}" in text


def test_words_in_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    """A prompt or a target is no markup, whatever is in it."""
    fact = Fact("Rome", "[b]{}[/b] lies in [red] [/x]", "[Spain]", fact_id="0")
    results = RunResults([fact], [])
    about = {"fact": "0", "kind": SAMPLE, "prompt": fact.text(), "target_new": fact.target_new}
    results.add_samples([{**about, "text": "[Italy] [/]", "phase": "before", "batch": None}])
    text = shown(results, tmp_path)
    assert f"{fact.text()} …  (asked for: [Spain])\n" in text
    assert "before [Italy] [/]" in text


def test_no_scores_are_explained(tmp_path: Path) -> None:
    assert "no fact has a target_true" in shown(RunResults([], []), tmp_path, width=40)
