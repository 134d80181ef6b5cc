"""``editkit fit`` on two processes: the edits and metrics of one, and an error of one that ends both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from editkit.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
TWO = ["--trainer.devices=2", "--trainer.accelerator=cpu"]


def arguments(folder: Path) -> list[str]:
    moments = json.dumps({"path": str(folder / "moments"), "num_tokens": 8000})
    return [
        "fit", "--config", str(ROOT / "configs" / "quickstart.yaml"),
        "--data.probes=[{task: sst2, examples: 6, shots: 1}]", "--data.text.num_tokens=300",
        "--evaluation.protocol.generation_length=24", f"--model.second_moment={moments}",
        "--data.num_facts=5", "--data.batch_size=4", "--weight_update.mode=sequential",
        "--model.values.num_steps=4", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip


def on_two(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "editkit.cli", *args, *TWO]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_two_processes_make_the_edits_of_one(tmp_path: Path) -> None:
    # batches of four facts and of one: on two processes the second has nothing to do in the last
    done = on_two(*arguments(tmp_path), f"--run_dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 1
    assert main([*arguments(tmp_path), f"--run_dir={tmp_path / 'one'}"]) == 0
    for file in sorted((tmp_path / "one" / "edits").glob("*.safetensors")):
        one, two = load_file(file), load_file(tmp_path / "two" / "edits" / file.name)
        assert one.keys() == two.keys()
        for name in {name.removesuffix(":left") for name in one if name.endswith(":left")}:
            ours, theirs = (d[f"{name}:left"] @ d[f"{name}:right"].T for d in (two, one))
            assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    rows = [
        [json.loads(line) for line in (tmp_path / run / "records.jsonl").read_text(encoding="utf-8").splitlines()]
        for run in ("one", "two")
    ]
    # facts, generated texts, probes and held-out text: each row once, in one order, whatever the number of processes
    key = ("phase", "batch", "kind", "fact", "probe", "number", "prompt")
    first, second = ([[row.get(k) for k in key] for row in part] for part in rows)
    assert first == second
    assert {row["kind"] for row in rows[0]} >= {"rewrite", "neighborhood", "generation", "probe", "text", "sample"}
    nll = [torch.tensor([row["nll_new"] for row in part if "nll_new" in row]) for part in rows]
    torch.testing.assert_close(*nll, rtol=1e-3, atol=1e-4)
    before = [[row["text"] for row in p if row["kind"] == "generation" and row["phase"] == "before"] for p in rows]
    assert before[0] == before[1]  # the draws too
    metrics = [json.loads((tmp_path / run / "metrics.json").read_text(encoding="utf-8")) for run in ("one", "two")]
    assert metrics[0]["before"] == pytest.approx(metrics[1]["before"], abs=1e-2)
    for name, entry in metrics[0]["probes"].items():
        assert metrics[1]["probes"][name]["before"] == pytest.approx(entry["before"], abs=1e-2)

    # as if it had been killed before the last batch: two processes go on where one ledger ends
    run = tmp_path / "two" / "edits"
    last = load_file(run / "batch_00001.safetensors")
    (run / "batch_00001.safetensors").unlink()
    index = json.loads((run / "edits.json").read_text(encoding="utf-8"))
    (run / "edits.json").write_text(json.dumps({**index, "batches": []}), encoding="utf-8")
    metrics = (tmp_path / "two" / "metrics.json").read_text(encoding="utf-8")
    done = on_two(*arguments(tmp_path), f"--run_dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"run folder: {tmp_path / 'two'} has 1 of 2 batches: going on\n") == 1
    again = load_file(run / "batch_00001.safetensors")
    assert all(torch.equal(again[name], last[name]) for name in last)
    assert (tmp_path / "two" / "metrics.json").read_text(encoding="utf-8") == metrics


def test_an_error_on_one_process_ends_both(tmp_path: Path) -> None:
    editor = tmp_path / "one_fails.py"
    editor.write_text(
        "import torch\n"
        "from editkit import EMMET\n"
        "class OneFails(EMMET):\n"
        "    def value_loss(self, nll, kl, offset, start):\n"
        "        loss = super().value_loss(nll, kl, offset, start)\n"
        "        return loss * torch.nan if self.trainer.global_rank == 1 else loss\n",
        encoding="utf-8",
    )
    command = [*arguments(tmp_path), f"--run_dir={tmp_path / 'run'}", "--model=one_fails.OneFails"]
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from editkit.cli.main import main; sys.exit(main())"
    script = tmp_path / "editkit_here.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), *command, *TWO], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 2, done.stderr
    told = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(told) == 1, done.stderr
    assert "the loss is not finite for" in told[0]
