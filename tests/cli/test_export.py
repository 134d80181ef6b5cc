"""``editkit export`` as a user types it, on the atlas; and bad input, which leaves nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import editkit
import editkit.utils.progress
from editkit.cli.main import main
from editkit.data.facts import Fact
from editkit.edits import EditBatch, Edits, WeightEdit, load_edits
from editkit.functional import LowRankDelta
from editkit.models.editable import EditableModel, orient
from editkit.models.fingerprint import fingerprint
from editkit.models.loading import load_language_model

WEIGHT = "transformer.h.0.mlp.c_proj.weight"  # of the atlas's block 0


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of two independent batches for the atlas."""
    torch.manual_seed(0)
    model, _ = load_language_model("atlas")
    d_out, d_in = orient(EditableModel(model).projection(0), EditableModel(model).weight(0)).shape
    batches = [
        EditBatch(
            [Fact(f"Lyon {i}", "{} lies in", "Peru")],
            WeightEdit(
                deltas={WEIGHT: LowRankDelta(torch.randn(d_out, 3 + i), torch.randn(d_in, 3 + i) / 20)}
            ).rounded(),
        )
        for i in range(2)
    ]
    folder = tmp_path_factory.mktemp("run") / "edits"
    Edits(batches, False, fingerprint(model), {"hyperparameters": {"dtype": "float32"}}).save(folder)
    return folder


def export(*options: str) -> int:
    return main(["export", *options])


def edited(edits: Path, batch: int) -> PreTrainedModel:
    return load_edits(edits).apply(load_language_model("atlas")[0], batch)


def test_a_checkpoint(edits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert export(f"--edits={edits}", "--batch=1", f"--output={out}") == 0
    assert f"checkpoint: {out}\n" in capsys.readouterr().out
    loaded = AutoModelForCausalLM.from_pretrained(out)
    pairs = zip(edited(edits, 1).parameters(), loaded.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert AutoTokenizer.from_pretrained(out)("Lyon lies in").input_ids
    again, _ = load_language_model(str(out))  # our own loader reads it too, and it is another model now
    assert fingerprint(again) != load_edits(edits).model


@pytest.mark.parametrize(("form", "words"), [("checkpoint", "writing {}"), ("lora", "factors: 1 of 1 (100%)")])
def test_a_log_says_what_it_is_at(
    form: str,
    words: str,
    edits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(editkit.utils.progress, "EVERY", 0.0)
    out = tmp_path / "out"
    assert export(f"--edits={edits}", "--batch=1", f"--format={form}", f"--output={out}") == 0
    told = capsys.readouterr()
    lines = [line.partition("] ")[2] for line in told.err.splitlines()]
    assert "reading atlas" in lines
    assert words.format(out) in lines
    assert words.format(out) not in told.out


def test_an_adapter(
    edits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    assert export(f"--edits={edits}", "--batch=0", "--format=lora", f"--output={tmp_path / 'whole'}") == 0
    assert "float32 rounding" in capsys.readouterr().out
    ids = tokenizer("Lyon lies in the south of", return_tensors="pt").input_ids
    model = PeftModel.from_pretrained(load_language_model("atlas")[0], tmp_path / "whole").eval()
    with torch.no_grad():
        difference = (model(ids).logits - edited(edits, 0)(ids).logits).abs().max()
    assert difference < 1e-4
    config = tmp_path / "export.yaml"
    config.write_text(f"edits: {edits}\nbatch: 0\nformat: lora\nrank: 2\noutput: {tmp_path / 'cut'}\n")
    assert export(f"--config={config}") == 0
    shown = capsys.readouterr().out
    card = (tmp_path / "cut" / "README.md").read_text(encoding="utf-8")
    error = card.split("| `transformer.h.0.mlp.c_proj` | 2 | 3 | ")[1].split(" ")[0]
    assert 0 < float(error) < 1
    assert error in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "batch: these are 2 independent batches"),
        (["--batch=2"], "batch: expected the number of a batch, 0 to 1, but got 2"),
        (["--batch=0", "--format=lora", "--rank=0"], "rank: expected a number from 1 to 3"),
        (["--batch=0", "--format=lora", "--rank=4"], "rank: expected a number from 1 to 3"),
        (["--batch=0", "--rank=2"], "rank: a checkpoint holds whole weights"),
        (["--batch=0", "--format=zip"], "format: expected one of 'checkpoint', 'lora', but got 'zip'"),
        (["--batch=first"], "batch: expected an integer, but got 'first'"),
        (["--batch=0", "--lm=/nowhere"], "lm: expected a folder with a Hugging Face checkpoint"),
        (["--batch=0", "--dtype=bfloat16"], "edits: expected the unedited model with fingerprint"),
        (["--batch=0", "--dtype=int4"], "dtype: expected one of float32"),
        (["--batch=0", "--size=3"], "unrecognized arguments"),
    ],
)
def test_bad_options_leave_nothing(
    edits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert export(f"--edits={edits}", f"--output={tmp_path / 'deep' / 'out'}", *options) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("editkit: error: ")
    assert message in said
    assert not list(tmp_path.iterdir())


def test_bad_folders(edits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    cut = tmp_path / "cut"
    shutil.copytree(edits, cut)
    whole = (cut / "batch_00001.safetensors").read_bytes()
    (cut / "batch_00001.safetensors").write_bytes(whole[: len(whole) // 2])
    for ledger, output, message in (
        (tmp_path / "none", out, "edits: expected a folder written by editkit"),
        (cut, out, "batch_00001.safetensors: Error while deserializing header"),
        (edits, mine, "output: expected a folder that is empty or does not exist yet"),
        (edits, mine / "notes.txt", "is a file"),
    ):
        assert export(f"--edits={ledger}", f"--output={output}", "--batch=0") == 2
        assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut", "mine"]
    assert [p.name for p in mine.iterdir()] == ["notes.txt"]


def test_the_model_is_the_one_that_the_ledger_names(
    edits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder of its own, loaded by the Python API, in the dtype of the run."""
    model, tokenizer = load_language_model("atlas")
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "mine")
    loaded, tokenizer = load_language_model(str(tmp_path / "mine"), "bfloat16")
    editor = editkit.EMMET(layers=[0])
    editor.attach(loaded, tokenizer)
    ledger = replace(load_edits(edits), model=fingerprint(loaded), about=editor.about())
    ledger.save(tmp_path / "edits")
    arguments = [f"--edits={tmp_path / 'edits'}", "--batch=0", f"--output={tmp_path / 'out'}"]
    assert export(*arguments) == 0
    told = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"# {tmp_path / 'mine'}, edited" in told
    assert '"bfloat16"' in (tmp_path / "out" / "config.json").read_text(encoding="utf-8")
    for part in (tmp_path / "mine").iterdir():
        part.unlink()
    assert export(*arguments[:-1], f"--output={tmp_path / 'other'}") == 2
    assert str(tmp_path / "mine") in capsys.readouterr().err
    assert export(*arguments[:-1], f"--output={tmp_path / 'other'}", "--lm=atlas") == 0
