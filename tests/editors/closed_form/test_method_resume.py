"""Sequential runs of methods that carry something from batch to batch, cut short after each batch and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from interrupted import ROOT, contents

from editkit import load_edits
from editkit.cli.main import main
from editkit.editors import ClosedFormEditor
from editkit.edits import Edit

BATCHES, BATCH = 3, 2
SEARCH = [
    "--model.values.num_steps=4", '--model.values.context_templates=[["{}"]]', "--model.values.clamp=5",
    "--model.values.decay=0",
]  # fmt: skip
PRUNE = '[{"class_path": "editkit.PRUNE", "init_args": {"base": 2.0, "when": "each"}}]'
METHODS = {
    "AlphaEdit": ["--model=editkit.AlphaEdit", "--model.damping=0.1", *SEARCH],
    "LyapLock": [
        "--model=editkit.LyapLock", "--model.preservation_weight=20", "--model.tolerance=0.5", *SEARCH,
    ],
    "UltraEdit": ["--model=editkit.UltraEdit", "--model.lr=0.001"],
    "SimIE": ["--model=editkit.SimIE", "--model.editor=editkit.MEMIT", "--model.editor.layers=[0]",
              "--model.editor.preservation_weight=20", "--model.editor.values.num_steps=4"],
    "NSE": ["--model=editkit.NSE", "--model.preservation_weight=20", "--model.share=0.4", *SEARCH],
    "PRUNE": ["--model=editkit.SequentialMEMIT", "--model.preservation_weight=0.01", f"--model.restraints={PRUNE}",
              *SEARCH, "--model.values.clamp=40"],
}  # fmt: skip


def arguments(name: str, moments: Path, run: Path) -> list[str]:
    where = json.dumps({"path": str(moments), "num_tokens": 8000})
    # a model's arguments come after its class
    theirs = [*METHODS[name], "--model.layers=[0]", f"--model.second_moment={where}"]
    if name == "SimIE":
        theirs.append(f"--model.editor.second_moment={where}")
    return [
        "fit", "--config", str(ROOT / "configs" / "evaluation" / "facts-alone.yaml"), *theirs,
        f"--data.num_facts={BATCHES * BATCH}", f"--data.batch_size={BATCH}", "--weight_update.mode=sequential",
        "--trainer.enable_progress_bar=false", f"--run_dir={run}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs, by method, made as they are asked for."""
    return {"": tmp_path_factory.mktemp("runs")}


def finished(name: str, runs: dict[str, Path], moments: Path) -> Path:
    if name not in runs:
        run = runs[""] / name
        assert main(arguments(name, moments, run)) == 0
        runs[name] = run
    return runs[name]


def cut_short(whole: Path, run: Path, done: int) -> None:
    """What a kill after some batches leaves: their files and rows, and the index as it was when the run began."""
    shutil.copytree(whole, run)
    for number in range(done, BATCHES):
        (run / "edits" / f"batch_{number:05d}.safetensors").unlink()
    (run / "metrics.json").unlink()
    index = json.loads((run / "edits" / "edits.json").read_text(encoding="utf-8"))
    (run / "edits" / "edits.json").write_text(json.dumps({**index, "batches": []}), encoding="utf-8")
    lines = (run / "records.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    left = [n for n, row in enumerate(rows) if row["batch"] is None or row["batch"] < min(done, BATCHES - 1)]
    assert len(left) < len(rows)
    (run / "records.jsonl").write_text("".join(lines[n] for n in left), encoding="utf-8")


@pytest.mark.parametrize("done", [1, 2, 3])
@pytest.mark.parametrize(
    "name",
    [n if n in ("AlphaEdit", "LyapLock", "UltraEdit") else pytest.param(n, marks=pytest.mark.slow) for n in METHODS],
)
def test_gone_on_with_as_if_never_stopped(
    name: str, done: int, runs: dict[str, Path], moments: Path, tmp_path: Path
) -> None:
    whole, run = finished(name, runs, moments), tmp_path / "run"
    cut_short(whole, run, done)
    assert main(arguments(name, moments, run)) == 0
    assert contents(run) == contents(whole)


@pytest.mark.parametrize("name", ["AlphaEdit", "LyapLock", "UltraEdit"])
def test_something_is_carried(name: str, runs: dict[str, Path], moments: Path) -> None:
    """Or there would be nothing to lose: what the parts take up of each batch is in its ledger."""
    ledger = load_edits(finished(name, runs, moments) / "edits")
    assert len(ledger.batches) == BATCHES
    wanted = "residual.0.mean" if name == "UltraEdit" else "keys.0"
    assert all(wanted in batch.edit.state for batch in ledger.batches)
    if name == "UltraEdit":
        counts = [int(batch.edit.state["residual.0.count"]) for batch in ledger.batches]
        assert counts == sorted(set(counts))


@pytest.mark.parametrize("name", ["AlphaEdit", "LyapLock", "UltraEdit"])
def test_a_ledger_that_lost_it_ends_elsewhere(
    name: str, runs: dict[str, Path], moments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the runs above agree because it is taken up again."""
    whole, run = finished(name, runs, moments), tmp_path / "run"
    cut_short(whole, run, 2)
    observe = ClosedFormEditor.observe
    seen: list[Edit] = []

    def forgetful(self: ClosedFormEditor, edit: Edit) -> None:
        seen.append(edit)
        if len(seen) > 2:
            observe(self, edit)

    monkeypatch.setattr(ClosedFormEditor, "observe", forgetful)
    assert main(arguments(name, moments, run)) == 0
    names = [f"batch_{number:05d}.safetensors" for number in range(BATCHES)]
    same = [(run / "edits" / file).read_bytes() == (whole / "edits" / file).read_bytes() for file in names]
    assert same == [True, True, False]
