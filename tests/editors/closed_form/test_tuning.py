"""``ridge: auto``: scored by what is not reported, each ridge as if it had been given, the best one taken and kept."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import editkit
from editkit import EMMET, MEMIT, Fact, InputError, ValueSearch
from editkit.cli.main import main
from editkit.covariance import factored_second_moments
from editkit.data.module import FactsDataModule, evaluation_rows
from editkit.editors.closed_form.editor import Editor
from editkit.editors.closed_form.tuning import FINER, PathPoint, _between_neighbors, best, score_path

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
ROOT = Path(__file__).resolve().parents[3]
SEARCH = {"context_templates": [["{}"]], "num_steps": 5}


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moments")


def editor(moments: Path, kind: type[Editor] = MEMIT, **options: object) -> Editor:
    source = editkit.SecondMomentSource(path=str(moments), num_tokens=8000)
    return kind(values=ValueSearch(**SEARCH), second_moment=source, **{"layers": [0], **options})


def data(**options: object) -> FactsDataModule:
    module = FactsDataModule(**{"num_facts": 8, "batch_size": 4, **options})
    module.setup()
    return module


@pytest.mark.parametrize("layers", [[0], [0, 1]])
def test_each_point_is_what_that_ridge_does(atlas: Loaded, moments: Path, layers: list[int]) -> None:
    """The scores on the path are those of runs with that ridge, one by one; and the weights come back."""
    module = data()
    module.hold_out()
    rows = evaluation_rows(module.tuning, range(4))  # all of them, as an edit reports them
    tuned = editor(moments, preservation_weight="auto", layers=layers)
    tuned.attach(*atlas)
    before = atlas[0].transformer.h[0].mlp.c_proj.weight.clone()
    factored = factored_second_moments(tuned.editable, tuned.tokenizer, layers, tuned.second_moment)
    points = score_path(tuned, factored, module.tuning, rows)
    assert torch.equal(atlas[0].transformer.h[0].mlp.c_proj.weight, before)
    assert [p.rho for p in points] == sorted(p.rho for p in points)
    assert points[0].norm > points[-1].norm
    for point in (points[0], points[len(points) // 2], points[-1]):
        given = editor(moments, preservation_weight=point.rho, layers=layers)
        edited = editkit.edit(*atlas, module.tuning, given, progress=False)
        alone = edited.report()["after"]
        assert {name: pytest.approx(score, abs=0.1) for name, score in point.scores.items()} == {
            name: alone[name] for name in point.scores
        }
        edited.undo()


def test_the_best_point_is_the_highest_and_of_equals_the_mildest() -> None:
    points = [PathPoint(rho, {"S": s}, 1.0) for rho, s in ((0.1, 80.0), (1.0, 90.0), (10.0, 90.0), (100.0, 70.0))]
    assert best(points).rho == 10.0


def test_other_facts_are_taken_where_there_are_enough() -> None:
    module = data()
    reported = list(module.selected)
    module.hold_out()
    assert module.selected == reported  # nothing is taken from them
    assert len(module.tuning) == module.batch_size
    assert not {f.subject for f in module.tuning} & {f.subject for f in reported}
    prompts = {row.prompt for row in evaluation_rows(module.selected, range(8))}
    assert not prompts & {row.prompt for row in module.hold_out()}


def test_of_facts_without_others_half_of_the_prompts_is_held_out() -> None:
    given = data(num_facts=6).selected
    module = FactsDataModule.of(given, 4)
    tuning = {row.prompt for row in module.hold_out()}
    assert module.hold_out()  # a second time changes nothing
    reported = {row.prompt for row in evaluation_rows(module.selected, range(6))}
    assert not tuning & reported
    everything = {row.prompt for row in evaluation_rows(given, range(6))}
    assert tuning | reported <= everything
    kinds = [row.kind for row in module.hold_out()]
    assert min(kinds.count(1), kinds.count(2)) > 0
    assert not kinds.count(0)
    assert [f.text() for f in module.selected] == [f.text() for f in given]
    assert module.selected[4:] == given[4:]  # facts of later batches keep all


def test_facts_without_scores_cannot_choose(atlas: Loaded, moments: Path) -> None:
    facts = [Fact("Rome", "{} lies in", "Spain"), Fact("Oslo", "{} lies in", "Peru")]
    with pytest.raises(InputError, match="ridge: 'auto' chooses by scores"):
        editkit.edit(*atlas, facts, editor(moments, EMMET, ridge="auto"), progress=False)


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
    monkeypatch.setattr("editkit.callbacks.weight_update.score_path", None)  # would fail if it were asked again
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
