"""The weight update: an edit for each batch, applied and kept or neither; resumed where a ledger ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor

from editkit import Edits, Evaluation, Fact, FactsDataModule, InputError, WeightEdit, WeightUpdate, load_edits
from editkit.data.plan import RunPlan
from editkit.editors.base import Editor
from editkit.edits import EditBatch
from editkit.edits.batch import hashes_of
from editkit.functional import DenseDelta

MakeEditor = Callable[..., Any]
MakeTrainer = Callable[..., L.Trainer]
Fit = Callable[..., WeightUpdate]


def state(editor: Editor) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in editor.editable.model.named_parameters()}


def same(editor: Editor, kept: dict[str, Tensor]) -> bool:
    return all(torch.equal(p, kept[name]) for name, p in editor.editable.model.named_parameters())


@pytest.fixture
def fit(make_trainer: MakeTrainer, facts: list[Fact]) -> Fit:
    def run(editor: Editor, update: WeightUpdate, batch_size: int = 2, given: Sequence[Fact] | None = None) -> Any:
        data = FactsDataModule.of(given or facts, batch_size)
        make_trainer(update, limit_val_batches=0).fit(editor, data)
        return update

    return run


@pytest.mark.parametrize("mode", ["independent", "sequential"])
def test_each_batch_is_edited_in_its_mode(make_editor: MakeEditor, fit: Fit, bias: str, mode: str) -> None:
    editor = make_editor()
    before = state(editor)
    update = fit(editor, WeightUpdate(mode))  # type: ignore[arg-type]
    assert editor.made == [["0", "1"], ["2", "3"], ["4"]]
    assert editor.observed == (["0", "2", "4"] if mode == "sequential" else [])
    assert [[f.fact_id for f in b.facts] for b in update.edits.batches] == editor.made
    deltas = [b.edit.weight_changes()[bias].dense() for b in update.edits.batches]
    stands = deltas if mode == "sequential" else deltas[-1:]
    expected = before[bias].double()
    for delta in stands:  # each in one rounding
        expected = (expected + delta.double()).float().double()
    assert torch.equal(editor.editable.parameter(bias), expected.float())
    assert update.edits.batches[-1].hashes == hashes_of(editor.editable, [bias])
    assert update.edits.sequential == (mode == "sequential")
    update.applied.restore()
    assert same(editor, before)


def test_after_update_is_called_with_each_batch_that_acts(
    make_editor: MakeEditor, make_trainer: MakeTrainer, facts: list[Fact], bias: str, tmp_path: Path
) -> None:
    """As its documentation has it: a figure of each update, logged."""
    seen: list[tuple[int, int, bool]] = []

    class Norms(WeightUpdate):
        def after_update(self, editor: Editor, batch: EditBatch) -> None:
            acts = hashes_of(editor.editable, [bias]) == batch.hashes
            seen.append((len(batch.facts), len(self.edits.batches), acts and self.edits.batches[-1] is batch))
            editor.log("norm", sum(delta.norm() for delta in batch.edit.weight_changes().values()))

    editor, logged = make_editor(), Logged()
    trainer = make_trainer(Norms("sequential"), limit_val_batches=0, logger=logged)
    trainer.fit(editor, FactsDataModule.of(facts, 2))
    assert seen == [(2, 1, True), (2, 2, True), (1, 3, True)]
    norms = [metrics["norm"] for metrics in logged.metrics if "norm" in metrics]
    assert norms == pytest.approx([(0.5 * torch.linspace(-1, 1, 128) + 0.01 * n).norm().item() for n in range(3)])


class Logged(L.pytorch.loggers.logger.DummyLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], *args: Any, **kwargs: Any) -> None:
        self.metrics.append(dict(metrics))


# ---------------------------------------------------------------- whole or not at all


@pytest.mark.parametrize("mode", ["independent", "sequential"])
def test_a_ledger_that_cannot_be_written_leaves_model_and_ledger_as_they_were(
    make_editor: MakeEditor, fit: Fit, tmp_path: Path, mode: str
) -> None:
    whole = make_editor()
    fit(whole, WeightUpdate(mode), given=None)  # type: ignore[arg-type]
    editor = make_editor()
    before, after_first = state(editor), None

    class Watching(WeightUpdate):
        def after_update(self, editor: Editor, batch: EditBatch) -> None:
            nonlocal after_first
            after_first = state(editor)

    update = Watching(mode)  # type: ignore[arg-type]
    update.write_to(tmp_path)
    (tmp_path / "batch_00001.safetensors").mkdir()  # in the way of the second batch
    with pytest.raises(InputError, match=r"edits: expected to write .*batch_00001"):
        fit(editor, update)
    assert editor.made == [["0", "1"], ["2", "3"]]
    assert [[f.fact_id for f in b.facts] for b in update.edits.batches] == [["0", "1"]]
    assert editor.observed == (["0"] if mode == "sequential" else [])  # what was not kept was not
    assert after_first is not None
    assert same(editor, after_first if mode == "sequential" else before)
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]
    (tmp_path / "batch_00001.safetensors").rmdir()
    assert len(load_edits(tmp_path).batches) == 1
    update.applied.restore()
    assert same(editor, before)


@pytest.mark.parametrize("error", [InputError("field: expected"), RuntimeError("inside"), KeyboardInterrupt()])
def test_an_edit_that_cannot_be_made_changes_nothing(
    make_editor: MakeEditor, fit: Fit, tmp_path: Path, error: BaseException
) -> None:
    editor = make_editor()
    make, states = editor.edit, [state(editor)]

    def second_fails(batch: Sequence[Fact]) -> WeightEdit:
        states.append(state(editor))
        if batch[0].fact_id == "2":
            raise error
        edit: WeightEdit = make(batch)
        return edit

    editor.edit = second_fails
    update = WeightUpdate("sequential")
    update.write_to(tmp_path)
    with pytest.raises((type(error), SystemExit)):  # Trainer makes Ctrl-C an exit
        fit(editor, update)
    assert len(states) == 3
    assert same(editor, states[2])
    assert not same(editor, states[0])
    assert len(update.edits.batches) == len(load_edits(tmp_path).batches) == 1


def test_ctrl_c_while_a_batch_is_written_takes_the_edit_back(
    make_editor: MakeEditor, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("editkit.callbacks.weight_update.write_batch", interrupted)
    editor, update = make_editor(), WeightUpdate("sequential")
    before = state(editor)
    update.write_to(tmp_path)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(editor, update)
    assert same(editor, before)
    assert not update.edits.batches


def test_an_edit_that_does_not_fit_the_model_is_not_kept(make_editor: MakeEditor, fit: Fit, bias: str) -> None:
    editor = make_editor()
    editor.edit = lambda batch: WeightEdit(
        deltas={bias: DenseDelta(torch.ones(128)), "transformer.ln_f.bias": DenseDelta(torch.ones(7))}
    )
    before, update = state(editor), WeightUpdate()
    with pytest.raises(InputError, match=r"shape \(32,\) for transformer.ln_f.bias"):
        fit(editor, update)
    assert same(editor, before)
    assert not update.edits.batches


# ---------------------------------------------------------------- where a ledger ends


@pytest.mark.parametrize("mode", ["independent", "sequential"])
@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_run_that_is_gone_on_with_ends_as_one_that_was_not(
    make_editor: MakeEditor, fit: Fit, tmp_path: Path, mode: str, kept: int
) -> None:
    whole, update = make_editor(), WeightUpdate(mode)  # type: ignore[arg-type]
    update.write_to(tmp_path)
    fit(whole, update)
    end, files = state(whole), {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    ledger = load_edits(tmp_path)
    for start in {kept, max(kept - 1, 0)}:  # the last one that is kept may not be measured yet
        replace(ledger, batches=ledger.batches[:kept]).save(tmp_path)
        editor, again = make_editor(), WeightUpdate(mode)  # type: ignore[arg-type]
        again.write_to(tmp_path)
        again.resume_from(load_edits(tmp_path), None if start == kept else start)
        fit(editor, again)
        assert same(editor, end)
        assert editor.made == whole.made[kept:]
        assert editor.observed == whole.observed
        assert [b.hashes for b in again.edits.batches] == [b.hashes for b in update.edits.batches]
        assert again.edits.about == update.edits.about
        assert sorted(f.name for f in tmp_path.iterdir()) == sorted(files)
        again.applied.restore()
        assert same(editor, state(make_editor()))


def test_another_run_s_ledger_is_not_gone_on_with(make_editor: MakeEditor, fit: Fit, facts: list[Fact]) -> None:
    begun = fit(make_editor(), WeightUpdate("sequential")).edits
    begun = replace(begun, batches=begun.batches[:1])
    others = [replace(fact, fact_id=str(9 - n)) for n, fact in enumerate(facts)]
    for options, mode, given, told in (
        ({"size": 0.25}, "sequential", facts, r"model \(hyperparameters\) differs"),
        ({}, "independent", facts, "weight_update.mode differs"),
        ({}, "sequential", others, r"data \(facts of batch 0\) differs"),
    ):
        editor, update = make_editor(**options), WeightUpdate(mode)  # type: ignore[arg-type]
        before = state(editor)
        update.resume_from(begun)
        with pytest.raises(InputError, match=told):
            fit(editor, update, given=given)
        assert same(editor, before)
        assert not editor.prepared  # nothing was begun


# ---------------------------------------------------------------- the plan


def test_the_plan_is_made_of_what_trainer_editor_and_data_ask(
    make_editor: MakeEditor, make_trainer: MakeTrainer, facts: list[Fact], tmp_path: Path
) -> None:
    editor, update = make_editor(), WeightUpdate("sequential")
    update.write_to(tmp_path)
    evaluation = Evaluation("public")
    data = FactsDataModule.of(facts, 2)
    plan = update.make_plan(make_trainer(update, evaluation, max_epochs=2), editor, data)
    assert (plan.batch_size, plan.num_batches, plan.sequential, plan.folder) == (2, 2, True, tmp_path)
    assert plan.questions == evaluation.protocol.questions
    assert data.plan == plan
    assert plan.tuning is None
    plan = update.make_plan(make_trainer(update), editor, data)
    assert plan.num_batches == 3
    editor.max_batch_size = 1
    with pytest.raises(InputError, match=r"data.batch_size: this editor takes 1 fact"):
        update.make_plan(make_trainer(update), editor, data)
    assert update.make_plan(make_trainer(update), editor, FactsDataModule.of(facts)).num_batches == 5


def test_an_editor_that_tunes_gets_others_facts_and_what_scores_them(
    make_editor: MakeEditor, make_trainer: MakeTrainer, facts: list[Fact], bias: str
) -> None:
    editor = make_editor()
    tuning = type("Tuning", (type(editor),), {"needs_tuning": property(lambda self: True)})
    editor = make_editor(tuning)
    update, data = WeightUpdate(), FactsDataModule.of(facts, 2)
    plan = update.make_plan(make_trainer(update), editor, data)
    assert plan.tuning is not None and plan.tuning.score is not None
    assert [f.fact_id for f in plan.tuning.facts] == ["0", "1"]
    first = plan.tuning.score(plan.tuning.rows)
    assert set(first) == {"PS", "NS"}
    assert plan.tuning.score(plan.tuning.rows) == first
    rows = [replace(row, target_true=row.target_new, target_new=row.target_true) for row in plan.tuning.rows]
    turned = plan.tuning.score(rows)  # whichever target was likelier is the other now
    assert {name: 100 - value for name, value in turned.items()} == pytest.approx(first)
    fitted: list[RunPlan] = editor.prepared
    make_trainer(update, limit_val_batches=0).fit(editor, data)
    assert fitted[0].tuning is not None and fitted[0].tuning.rows == plan.tuning.rows


def test_an_editor_that_cannot_do_it_says_so_before_anything(make_editor: MakeEditor, fit: Fit, tmp_path: Path) -> None:
    editor, update = make_editor(), WeightUpdate()

    def check(plan: RunPlan) -> None:
        raise InputError(f"model.size: expected less than {plan.batch_size}")

    editor.check = check
    update.write_to(tmp_path / "edits")
    with pytest.raises(InputError, match=r"model.size: expected less than 2"):
        fit(editor, update)
    assert not editor.prepared
    assert not (tmp_path / "edits").exists()


def test_it_wants_an_editor_and_facts(make_editor: MakeEditor, make_trainer: MakeTrainer, facts: list[Fact]) -> None:
    with pytest.raises(InputError, match=r"model: expected an editkit.Editor, but got BoringModel"):
        make_trainer(WeightUpdate()).fit(BoringModel(), FactsDataModule.of(facts))

    class Other(L.LightningDataModule):
        def train_dataloader(self) -> list[list[Fact]]:
            return [[]]

    with pytest.raises(InputError, match=r"data: expected an editkit.FactsDataModule, but got Other"):
        make_trainer(WeightUpdate()).fit(make_editor(), Other())


def test_a_ledger_is_kept_as_the_run_goes_on(make_editor: MakeEditor, fit: Fit, tmp_path: Path) -> None:
    counts: list[int] = []

    class Reading(WeightUpdate):
        def after_update(self, editor: Editor, batch: EditBatch) -> None:
            kept: Edits = load_edits(tmp_path)
            counts.append(len(kept.batches))
            assert kept.batches[-1].hashes == batch.hashes
            assert kept.about["editor"].endswith("Bias")

    update = Reading("sequential")
    update.write_to(tmp_path)
    fit(make_editor(), update)
    assert counts == [1, 2, 3]
