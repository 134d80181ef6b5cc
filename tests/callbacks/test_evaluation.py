"""Evaluation in the validation loop: each row measured and scored once, each figure logged once, one set of results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import pytest
import torch

from editkit import Evaluation, Fact, FactsDataModule, HeldOutText, InputError, Probe, Protocol, WeightUpdate
from editkit.data.rows import Row, evaluation_rows
from editkit.evaluation.evaluator import EditResult, Evaluator, Result
from editkit.evaluation.results import RunResults, Validation
from editkit.evaluation.scores import FactScores

MakeEditor = Callable[..., Any]
MakeTrainer = Callable[..., L.Trainer]


class Logged(L.pytorch.loggers.logger.DummyLogger):
    """Keeps what is logged, call by call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], *args: Any, **kwargs: Any) -> None:
        found = {name: value for name, value in metrics.items() if name.startswith("val/")}
        if found:
            self.calls.append(found)


class Keeping(Evaluation):
    """Keeps what each validation found."""

    def __init__(self, protocol: Protocol | str | None = None) -> None:
        super().__init__(protocol)
        self.validations: list[Validation] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.latest is not None
        self.validations.append(self.latest)


@pytest.fixture
def data(facts: list[Fact]) -> FactsDataModule:
    found = FactsDataModule.of(facts, 2)
    found.probes = [Probe("sst2", examples=6, shots=1)]
    found.text = HeldOutText(num_tokens=200, max_length=64)
    found.probe_every = 2
    return found


def expected_figures(found: Validation) -> dict[str, float]:
    """What a validation is to log."""
    figures = {}
    for phase, scores in found.scores.items():
        prefix = "val/final/" if phase == "final" else "val/"
        figures |= {f"{prefix}{name}": figure["mean"] for name, figure in scores.items()}
    if found.point is not None:
        for title, metrics in found.point.figures.items():
            figures |= {f"val/{title}/{name}": figure["mean"] for name, figure in metrics.items()}
    return figures


def test_each_figure_is_logged_once_and_is_that_of_the_results(
    make_editor: MakeEditor, make_trainer: MakeTrainer, data: FactsDataModule
) -> None:
    editor, evaluation, logged = make_editor(), Keeping(), Logged()
    trainer = make_trainer(WeightUpdate("sequential"), evaluation, logger=logged)
    trainer.validate(editor, data, verbose=False)
    trainer.fit(editor, data)
    assert [list(v.measurement.phases) for v in evaluation.validations] == [
        ["before"], ["after"], ["after"], ["after", "final"],
    ]  # fmt: skip
    assert [v.measurement.batch for v in evaluation.validations] == [None, 0, 1, 2]
    assert [v.point is not None for v in evaluation.validations] == [True, False, True, True]
    for call, found in zip(logged.calls, evaluation.validations, strict=True):
        assert call == pytest.approx(expected_figures(found))
    assert {"val/ES", "val/sst2/accuracy", "val/text/perplexity"} <= set(logged.calls[0])
    assert {"val/ES", "val/final/ES", "val/sst2/accuracy"} <= set(logged.calls[-1])

    assert evaluation.results is not None
    metrics = evaluation.results.metrics(evaluation.protocol)
    first, last = logged.calls[0], logged.calls[-1]
    assert metrics["before"] == pytest.approx({n: first[f"val/{n}"] for n in metrics["before"]})
    assert metrics["final"] == pytest.approx({n: last[f"val/final/{n}"] for n in metrics["final"]})
    # facts count the same: of batches of 2, 2 and 1
    after = {n: sum(c[f"val/{n}"] * k for c, k in zip(logged.calls[1:], (2, 2, 1), strict=True)) / 5
             for n in metrics["after"] if n not in ("S",)}  # fmt: skip
    assert {n: metrics["after"][n] for n in after} == pytest.approx(after, abs=1e-3)
    assert metrics["probes"]["sst2"]["after"]["accuracy"] == pytest.approx(last["val/sst2/accuracy"])
    assert evaluation.results.records == [r for v in evaluation.validations for r in v.records]
    again = RunResults(data.plan.facts, data.probe_sets, sequential=True)
    again.take(json.loads(json.dumps(evaluation.results.records)))
    assert again.metrics(evaluation.protocol) == metrics


def test_rows_are_measured_and_scored_once_per_validation(
    make_editor: MakeEditor, make_trainer: MakeTrainer, data: FactsDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Row] = []
    scored: list[list[Result]] = []
    measure, update = Evaluator.measure, FactScores.update

    def counted(self: Evaluator, rows: Sequence[Row]) -> list[Result]:
        measured.extend(rows)
        return measure(self, rows)

    def added(self: FactScores, results: Any) -> None:
        results = list(results)
        scored.append([r for r in results if isinstance(r, EditResult)])
        update(self, results)

    monkeypatch.setattr(Evaluator, "measure", counted)
    monkeypatch.setattr(FactScores, "update", added)
    editor, evaluation = make_editor(), Keeping()
    trainer = make_trainer(WeightUpdate("sequential"), evaluation)
    trainer.validate(editor, data, verbose=False)
    facts = data.plan.facts
    assert Counter(r for r in measured if hasattr(r, "target_new")) == Counter(evaluation_rows(facts, range(5)))
    assert max(Counter(map(repr, measured)).values()) == 1
    assert [len(part) for part in scored] == [len(evaluation_rows(facts, range(5)))]
    measured.clear()
    scored.clear()
    trainer.fit(editor, data)
    rows = [len(evaluation_rows([facts[i] for i in part], part)) for part in ([0, 1], [2, 3], [4], [0, 1, 2, 3, 4])]
    assert [len(part) for part in scored] == rows  # "after" and "final" of the last, apart
    edits = [r for r in measured if hasattr(r, "target_new")]
    assert len(edits) == rows[0] + rows[1] + rows[3]  # what counts for both was measured once


def test_the_neighbourhood_is_compared_with_what_the_unedited_model_said(
    make_editor: MakeEditor, make_trainer: MakeTrainer, facts: list[Fact]
) -> None:
    """Under EasyEdit's protocol: with itself before, with the baseline of the results after."""
    editor, evaluation = make_editor(size=30.0), Keeping("easyedit")
    trainer = make_trainer(WeightUpdate("sequential"), evaluation)
    data = FactsDataModule.of(facts, 5)
    trainer.validate(editor, data, verbose=False)
    trainer.fit(editor, data)
    assert evaluation.results is not None
    metrics = evaluation.results.metrics(evaluation.protocol)
    assert metrics["protocol"]["name"] == "easyedit"
    assert metrics["before"]["NA"] == 100
    records = [r for r in evaluation.results.records if r["kind"] == "neighborhood"]
    before = {(r["fact"], r["number"]): r["predicted"] for r in records if r["phase"] == "before"}
    after = [r for r in records if r["phase"] == "after"]
    agree = [
        torch.tensor(r["predicted"]).eq(torch.tensor(before[r["fact"], r["number"]])).double().mean() for r in after
    ]
    assert [r["right_tokens"] for r in after] == pytest.approx([float(a) for a in agree])
    assert metrics["after"]["NA"] < 100

    alone = Keeping("easyedit")  # a fit without a baseline: not known, rather than wrong
    make_trainer(WeightUpdate(), alone).fit(make_editor(size=30.0), FactsDataModule.of(facts, 5))
    assert alone.results is not None
    assert "NA" not in alone.results.metrics(alone.protocol)["after"]


def test_a_run_begins_with_what_was_measured_before(
    make_editor: MakeEditor, make_trainer: MakeTrainer, data: FactsDataModule
) -> None:
    whole = Keeping()
    trainer, editor = make_trainer(WeightUpdate("sequential"), whole), make_editor()
    trainer.validate(editor, data, verbose=False)
    trainer.fit(editor, data)
    assert whole.results is not None
    records = [r for r in whole.results.records if r["phase"] == "before"]
    assert whole.results.baseline is not None

    resumed, data.trainer = Keeping(), None
    results = resumed.begin(data, True, records)
    assert resumed.results is results
    assert results.has("before")
    assert results.baseline == whole.results.baseline
    trainer = make_trainer(WeightUpdate("sequential"), resumed)
    trainer.fit(make_editor(), data)
    assert resumed.results is results
    assert results.metrics(resumed.protocol) == whole.results.metrics(whole.protocol)


def test_one_callback_measures_and_is_found(make_trainer: MakeTrainer) -> None:
    evaluation = Evaluation(Protocol(top_k=1))
    assert Evaluation.of(make_trainer(WeightUpdate(), evaluation)) is evaluation
    assert Evaluation.of(make_trainer(WeightUpdate())) is None
    assert evaluation.protocol.name == "own"
    with pytest.raises(InputError, match=r"protocol: expected one of .*'papre'"):
        Evaluation("papre")


def test_rows_that_do_not_fit_are_warned_about_once(
    make_editor: MakeEditor, make_trainer: MakeTrainer, facts: list[Fact]
) -> None:
    long = Fact("Rome", "{} lies in", "Spain", "Italy", paraphrase_prompts=("Rome lies in " * 60,), fact_id="9")
    editor, evaluation = make_editor(), Keeping()
    trainer = make_trainer(evaluation)
    with pytest.warns(
        UserWarning, match="1 of 18 rows .of fact '9'. are longer than the model's context window of 128"
    ) as caught:
        trainer.validate(editor, FactsDataModule.of([*facts[:4], long]), verbose=False)
    assert sum("context window" in str(w.message) for w in caught) == 1
    assert evaluation.validations[0].skipped == 1


@pytest.mark.parametrize("mode", ["sequential", "independent"])
def test_what_is_measured_again_replaces_what_was(
    make_editor: MakeEditor, make_trainer: MakeTrainer, data: FactsDataModule, mode: str
) -> None:
    """After a fit it is the edited model that is validated, not once more the one before."""
    editor, evaluation = make_editor(), Evaluation()
    trainer = make_trainer(WeightUpdate(mode), evaluation)  # type: ignore[arg-type]
    trainer.validate(editor, data, verbose=False)
    trainer.validate(editor, data, verbose=False)
    trainer.fit(editor, data)
    assert evaluation.results is not None and evaluation.latest is not None
    done, last, count = (
        evaluation.results.metrics(evaluation.protocol),
        evaluation.latest,
        len(evaluation.results.records),
    )
    assert done["before"] != done["after"]
    trainer.validate(editor, data, verbose=False)
    assert evaluation.latest.measurement == last.measurement
    assert evaluation.latest.records == last.records
    assert evaluation.results.metrics(evaluation.protocol) == done
    assert len(evaluation.results.records) == count
