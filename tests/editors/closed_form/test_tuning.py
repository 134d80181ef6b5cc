"""``ridge: auto``: scored by what is not reported, each ridge as if it had been given, the best one taken and kept."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import lightning as L
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import editkit
from editkit import EMMET, MEMIT, Fact, InputError, ValueSearch, WeightUpdate
from editkit.cli.main import main
from editkit.covariance import factored_second_moments
from editkit.data.module import FactsDataModule
from editkit.data.plan import Tuning
from editkit.data.rows import evaluation_rows
from editkit.editors import ClosedFormEditor
from editkit.editors.closed_form.tuning import FINER, RIDGES, PathPoint, _between_neighbors, best, score_path
from editkit.evaluation.evaluator import Evaluator
from editkit.evaluation.protocol import Protocol
from editkit.evaluation.tuning import tuning_score

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
ROOT = Path(__file__).resolve().parents[3]
SEARCH = {"context_templates": [["{}"]], "num_steps": 5}


def editor(moments: Path, kind: type[ClosedFormEditor] = MEMIT, **options: object) -> ClosedFormEditor:
    source = editkit.SecondMomentSource(path=str(moments), num_tokens=8000)
    return kind(values=ValueSearch(**SEARCH), second_moment=source, **{"layers": [0], **options})


def data(**options: object) -> FactsDataModule:
    module = FactsDataModule(**{"num_facts": 8, "batch_size": 4, **options})
    module.setup()
    return module


@pytest.mark.parametrize("layers", [[0], [0, 1]])
def test_each_point_is_what_that_ridge_does(atlas: Loaded, moments: Path, layers: list[int]) -> None:
    """The scores on the path are those of runs with that ridge, one by one; and the weights come back."""
    tuning = data().make_plan(hold_out=True).tuning
    assert tuning is not None
    rows = evaluation_rows(tuning.facts, range(4))  # all of them, as an edit reports them
    tuned = editor(moments, preservation_weight="auto", layers=layers)
    tuned.attach(*atlas)
    before = atlas[0].transformer.h[0].mlp.c_proj.weight.clone()
    tuned.preserve(factored_second_moments(tuned.editable, tuned.tokenizer, layers, tuned.second_moment))
    score = tuning_score(Evaluator(tuned.editable, tuned.tokenizer, Protocol()))
    points = score_path(tuned.find, tuned.layer_solver, Tuning(tuning.facts, tuple(rows), score), tuned)
    assert torch.equal(atlas[0].transformer.h[0].mlp.c_proj.weight, before)
    assert [p.rho for p in points] == sorted(p.rho for p in points)
    assert points[0].norm > points[-1].norm
    for point in (points[0], points[len(points) // 2], points[-1]):
        given = editor(moments, preservation_weight=point.rho, layers=layers)
        edited = editkit.edit(*atlas, tuning.facts, given, progress=False)
        alone = edited.report()["after"]
        assert {name: pytest.approx(score, abs=0.1) for name, score in point.scores.items()} == {
            name: alone[name] for name in point.scores
        }
        edited.undo()


def test_the_best_point_is_the_highest_and_of_equals_the_mildest() -> None:
    points = [PathPoint(rho, {"S": s}, 1.0) for rho, s in ((0.1, 80.0), (1.0, 90.0), (10.0, 90.0), (100.0, 70.0))]
    assert best(points).rho == 10.0


def test_facts_without_scores_cannot_choose(atlas: Loaded, moments: Path) -> None:
    facts = [Fact("Rome", "{} lies in", "Spain"), Fact("Oslo", "{} lies in", "Peru")]
    with pytest.raises(InputError, match="ridge: 'auto' chooses by scores"):
        editkit.edit(*atlas, facts, editor(moments, EMMET, ridge="auto"), progress=False)


def test_an_editor_used_twice_chooses_twice(atlas: Loaded, moments: Path) -> None:
    """Each run has its own path and ρ: of its facts, and of its model."""

    def edit(loaded: Loaded, made: ClosedFormEditor, facts: list[Fact]) -> editkit.EditedModel:
        return editkit.edit(*loaded, facts, made, batch_size=3, progress=False, evaluate=False)

    given = data(num_facts=6).selected
    twice = editor(moments, EMMET, ridge="auto")
    abouts = []
    for facts in (given[:3], given[3:], given[:3]):
        edited = edit(atlas, twice, facts)
        abouts.append(edited.edits.about)
        edited.undo()
    fresh = edit(atlas, editor(moments, EMMET, ridge="auto"), given[3:])
    assert abouts[1] == fresh.edits.about
    fresh.undo()
    assert abouts[0] == abouts[2]
    paths = [about["ridge_path"] for about in abouts[:2]]
    assert len(paths[0]) == len(paths[1]) == RIDGES + FINER
    assert paths[0] != paths[1]
    for about in abouts:
        assert best([PathPoint(r["rho"], {"S": r["S"]}, 0.0) for r in about["ridge_path"]]).rho == about["rho"]

    torch.manual_seed(5)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(atlas[1]), hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=128,
    )  # fmt: skip
    other = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), atlas[1]
    twice.second_moment = editkit.SecondMomentSource(text="atlas", num_tokens=3000)
    elsewhere = edit(other, twice, given[:3])
    assert elsewhere.edits.about["ridge_path"] != paths[0]
    elsewhere.undo()
    alone = editor(moments, EMMET, ridge="auto")
    alone.second_moment = twice.second_moment
    again = edit(other, alone, given[:3]).edits.about
    assert again["rho"] == elsewhere.edits.about["rho"]
    assert again["ridge_path"] == elsewhere.edits.about["ridge_path"]


def test_two_runs_of_one_editor_choose_twice(atlas: Loaded, moments: Path) -> None:
    """Under a bare Trainer too, where nobody tells the editor that the model is another."""
    given = data(num_facts=6).selected
    twice = editor(moments, EMMET, ridge="auto")
    twice.attach(*atlas)
    found = []
    for facts in (given[:3], given[3:], given[:3]):
        update = WeightUpdate()
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=-1, reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=0,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            limit_val_batches=0, callbacks=[update],
        )  # fmt: skip
        trainer.fit(twice, FactsDataModule.of(facts, 3))
        found.append((update.edits.about["rho"], update.edits.about["ridge_path"]))
        assert twice.rho == found[-1][0]
        assert update.applied is not None
        update.applied.restore()
    assert found[0] == found[2]
    assert found[0][1] != found[1][1]


def test_auto_waits_for_a_run(atlas: Loaded, moments: Path) -> None:
    waiting = editor(moments, EMMET, ridge="auto")
    waiting.attach(*atlas)
    with pytest.raises(InputError, match="ridge: 'auto' is chosen when a run begins"):
        _ = waiting.rho


@pytest.mark.parametrize(("kind", "option"), [(EMMET, "ridge"), (MEMIT, "preservation_weight")])
def test_the_chosen_ridge_is_that_of_the_solve(
    atlas: Loaded, moments: Path, kind: type[ClosedFormEditor], option: str
) -> None:
    """``auto`` makes the edit that its ρ makes when it is given; also where EMMET has a weight w on C: ρ = αw."""
    weight = {"preservation_weight": 4.0} if kind is EMMET else {}
    facts = data(num_facts=3).selected
    edits = []
    for value in ("auto", None):
        rho = edits[0].about["rho"] if edits else None
        given = value or (rho / 4.0 if kind is EMMET else rho)
        made = editor(moments, kind, **{option: given}, **weight)
        edited = editkit.edit(*atlas, facts, made, progress=False, evaluate=False)
        edits.append(edited.edits)
        edited.undo()
    one, two = (e.batches[0].edit.weight_changes() for e in edits)
    for name, delta in one.items():
        torch.testing.assert_close(delta.dense(), two[name].dense(), rtol=1e-5, atol=1e-7)


def test_an_interrupted_run_keeps_its_choice(tmp_path: Path, moments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [
        "fit", "--config", str(ROOT / "configs" / "quickstart.yaml"),
        "--config", str(ROOT / "configs" / "evaluation" / "facts-alone.yaml"),
        "--data.num_facts=6", "--data.batch_size=3",
        f"--model.second_moment={json.dumps({'path': str(moments), 'num_tokens': 8000})}", "--model.ridge=auto",
        "--model.values.num_steps=4", "--trainer.enable_progress_bar=false", f"--run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert main(command) == 0
    edits = tmp_path / "run" / "edits"
    about = json.loads((edits / "edits.json").read_text(encoding="utf-8"))["about"]
    assert about["hyperparameters"]["ridge"] == "auto"
    with (edits / "ridge_path.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [float(row["rho"]) for row in table] == [row["rho"] for row in about["ridge_path"]]
    assert max(table, key=lambda row: (float(row["S"]), float(row["rho"])))["rho"] == str(about["rho"])
    assert (edits / "ridge_path.png").read_bytes().startswith(b"\x89PNG")
    before = (tmp_path / "run" / "metrics.json").read_text(encoding="utf-8")
    (edits / "batch_00001.safetensors").unlink()  # as if killed before it; the index still names it
    index = json.loads((edits / "edits.json").read_text(encoding="utf-8"))
    (edits / "edits.json").write_text(json.dumps({**index, "batches": []}), encoding="utf-8")
    monkeypatch.setattr("editkit.editors.closed_form.tuning.score_path", None)  # would fail if it were asked again
    assert main(command) == 0
    assert (tmp_path / "run" / "metrics.json").read_text(encoding="utf-8") == before


def test_the_path_is_looked_at_closer_around_its_best() -> None:
    grid = [1.0, 4.0, 16.0, 64.0]
    inside = _between_neighbors(grid, 16.0)
    assert len(inside) == FINER
    assert 4.0 < inside[0] < inside[1] < 16.0 < inside[2] < inside[3] < 64.0
    for edge, low, high in ((1.0, 1.0, 4.0), (64.0, 16.0, 64.0)):
        found = _between_neighbors(grid, edge)
        assert len(found) == FINER
        assert all(low < rho < high for rho in found)
