"""The seam holds: six editors of six kinds, each a file of its own that touches nothing else.

Each runs from the command line by its import path, is evaluated, kept in a ledger, resumed, undone and, where that is
possible, exported.
"""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import editkit
from editkit.cli.main import main
from editkit.models.editable import EditableModel
from editkit.models.generation import continue_greedily
from editkit.models.scoring import target_nll
from editkit.utils.hashes import tensor_hash

THROWAWAY = Path(__file__).parent / "throwaway"
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
CLOSED = ["--model.layers=[0]", "--model.values.num_steps=15", "--model.values.decay=0", "--model.values.clamp=4"]
EDITORS = {
    "running_keys.RunningKeys": ([*CLOSED, "--model.second_moment.num_tokens=8000"], "weights"),
    "gradient_step.GradientStep": (["--model.lr=0.3"], "weights"),
    "attention_lora.AttentionLoRA": ([], "weights"),
    "in_context.InContext": ([], "prompt"),
    "codebook.CodebookEditor": ([*CLOSED, '--model.values.context_templates=[["{}"]]'], "module"),
    "learned_step.LearnedStep": ([], "weights"),
}
FACTS, BATCHES = 4, 2


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(THROWAWAY)


def arguments(name: str, run: Path) -> list[str]:
    return [
        "fit", f"--model={name}", *EDITORS[name][0], f"--data.num_facts={FACTS}", "--data.batch_size=2",
        "--weight_update.mode=sequential", "--trainer.enable_progress_bar=false", f"--run_dir={run}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs, by editor, made as they are asked for."""
    return {"": tmp_path_factory.mktemp("runs")}


def finished(name: str, runs: dict[str, Path]) -> Path:
    if name not in runs:
        run = runs[""] / name
        assert main(arguments(name, run)) == 0
        runs[name] = run
    return runs[name]


def contents(run: Path) -> dict[str, object]:
    tensors = {
        f"{file.name} {name}": tensor_hash(tensor)
        for file in sorted((run / "edits").glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    return tensors | {f: (run / f).read_text(encoding="utf-8") for f in ("metrics.json", "edits/edits.json")}


def nll_new(loaded: Loaded, facts: list[editkit.Fact]) -> torch.Tensor:
    prompts, targets = [f.text() for f in facts], [f.target_new for f in facts]
    return target_nll(EditableModel(loaded[0]), loaded[1], prompts, targets)


@pytest.mark.parametrize("name", EDITORS)
def test_is_short_and_touches_nothing_else(name: str) -> None:
    file = THROWAWAY / f"{name.split('.')[0]}.py"
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) < 60
    assert "editkit.callbacks" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", EDITORS)
def test_runs_and_is_evaluated(name: str, runs: dict[str, Path]) -> None:
    run = finished(name, runs)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["before"]) == set(metrics["after"]) == set(metrics["final"])
    before, after = metrics["before"]["EM"], metrics["after"]["EM"]
    # the atlas has never read a text that says something twice, and takes no hints from a context
    assert after != before if EDITORS[name][1] == "prompt" else after > before
    about = json.loads((run / "edits" / "edits.json").read_text(encoding="utf-8"))["about"]
    assert about["editor"] == name


@pytest.mark.parametrize("name", EDITORS)
def test_is_kept_applied_and_undone(name: str, runs: dict[str, Path], atlas: Loaded) -> None:
    model, tokenizer = atlas
    edits = editkit.load_edits(finished(name, runs) / "edits")
    assert [batch.edit.kind for batch in edits.batches] == [EDITORS[name][1]] * BATCHES
    before = {n: p.clone() for n, p in model.named_parameters()}
    unedited = nll_new(atlas, edits.facts)
    edits.apply(model, tokenizer=tokenizer)
    edited = nll_new(atlas, edits.facts)
    if EDITORS[name][1] == "prompt":
        contexts = {f.subject: f"{f.text()} {f.target_new}. " for f in edits.facts}
        told = [f"{contexts[f.subject]}{f.text()}" for f in edits.facts]
        edits.undo(model)
        expected = target_nll(EditableModel(model), tokenizer, told, [f.target_new for f in edits.facts])
        edits.apply(model, tokenizer=tokenizer)
        assert torch.equal(edited, expected)
    else:
        assert edited.mean() < unedited.mean()
    rows = [json.loads(line) for line in (runs[name] / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    final = {r["fact"]: r["nll_new"] for r in rows if r["phase"] == "final" and r["kind"] == "rewrite"}
    measured = [final[f.fact_id] for f in edits.facts]
    assert edited.tolist() == pytest.approx(measured, rel=1e-3, abs=1e-4)
    edits.undo(model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert torch.equal(nll_new(atlas, edits.facts), unedited)
    for module in model.modules():
        assert not module._forward_hooks


@pytest.mark.parametrize("name", EDITORS)
def test_resumed_as_if_never_stopped(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    whole, run = finished(name, runs), tmp_path / "run"
    shutil.copytree(whole, run)
    # what a kill after the first batch leaves: its file, its rows, and the index as it was when the run began
    (run / "edits" / "batch_00001.safetensors").unlink()
    (run / "metrics.json").unlink()
    index = json.loads((run / "edits" / "edits.json").read_text(encoding="utf-8"))
    (run / "edits" / "edits.json").write_text(json.dumps({**index, "batches": []}), encoding="utf-8")
    assert main(arguments(name, run)) == 0
    assert contents(run) == contents(whole)


@pytest.mark.parametrize("name", EDITORS)
def test_one_batch_is_taken_back(name: str, atlas: Loaded) -> None:
    """``undo`` of the last of two batches is as if it had never been made, and of all, bit for bit the model before."""
    module, _, cls = name.rpartition(".")
    editor = getattr(importlib.import_module(module), cls)
    options: dict[str, object] = {}
    if issubclass(editor, editkit.ClosedFormEditor):
        options = {
            "layers": [0],
            "values": editkit.ValueSearch(num_steps=4, context_templates=[["{}"]]),
            "second_moment": editkit.SecondMomentSource(num_tokens=4000),
        }
    data = editkit.FactsDataModule(num_facts=FACTS)
    data.setup()
    facts = data.selected
    before = {n: p.clone() for n, p in atlas[0].named_parameters()}
    edited = editkit.edit(*atlas, facts, editor(**options), batch_size=2, evaluate=False, progress=False)
    edited.undo(batch=1)
    one = nll_new(atlas, facts)
    edited.undo()
    assert all(torch.equal(p, before[n]) for n, p in atlas[0].named_parameters())
    again = editkit.edit(*atlas, facts[:2], editor(**options), batch_size=2, evaluate=False, progress=False)
    assert torch.equal(nll_new(atlas, facts), one)
    again.undo()


@pytest.mark.parametrize("name", EDITORS)
def test_exported_where_it_can_be(
    name: str, runs: dict[str, Path], tmp_path: Path, atlas: Loaded, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = finished(name, runs), tmp_path / "out"
    code = main(["export", f"--edits={run / 'edits'}", f"--output={output}"])
    if EDITORS[name][1] != "weights":
        assert code == 2
        assert "no checkpoint or adapter holds" in capsys.readouterr().err
        assert not output.exists()
        return
    assert code == 0
    shipped = AutoModelForCausalLM.from_pretrained(output)
    edited = editkit.load_edits(run / "edits").apply(atlas[0])
    for (_, ours), (_, theirs) in zip(edited.named_parameters(), shipped.named_parameters(), strict=True):
        assert torch.equal(ours, theirs)
    adapter = main(["export", "--format=lora", f"--edits={run / 'edits'}", f"--output={tmp_path / 'lora'}"])
    assert adapter == (2 if name == "gradient_step.GradientStep" else 0)  # the change of a bias is no LoRA


def test_a_prompt_edit_acts_on_what_transformers_generates(runs: dict[str, Path], atlas: Loaded) -> None:
    model, tokenizer = atlas
    edits = editkit.load_edits(finished("in_context.InContext", runs) / "edits")
    fact = edits.facts[0]
    ids = tokenizer([fact.text(), "In the shops of"], return_tensors="pt", padding=True, padding_side="left")

    def words() -> list[str]:
        made = model.generate(**ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert torch.equal(made[:, : ids["input_ids"].shape[1]], ids["input_ids"])
        return [str(tokenizer.decode(row[ids["input_ids"].shape[1] :], skip_special_tokens=True)) for row in made]

    before = words()
    edits.apply(model)  # the tokenizer comes from the model's own checkpoint
    told, untold = words()
    assert told != before[0] and untold == before[1]
    assert told.strip() == continue_greedily(EditableModel(model), tokenizer, [fact.text()], 6)[0].strip()
    edits.undo(model)
    assert words() == before
    assert "generate" not in model.__dict__


def test_a_ledger_runs_no_foreign_code(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = editkit.load_edits(finished("codebook.CodebookEditor", runs) / "edits")
    edit = ledger.batches[0].edit
    assert isinstance(edit, editkit.ModuleEdit)
    monkeypatch.setattr(type(edit.module), "path", classmethod(lambda cls: "foreign.Codebook"))
    ledger.save(tmp_path / "edits")
    with pytest.raises(editkit.InputError, match="imports nothing by itself"):
        editkit.load_edits(tmp_path / "edits")
