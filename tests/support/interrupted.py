"""Runs of ``editkit fit`` that are cut short and gone on with: the command, and what is compared at the end."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from editkit.utils.hashes import tensor_hash

ROOT = Path(__file__).resolve().parents[2]
FACTS, BATCH = 10, 3  # four batches of edits, the last of one fact
# a process that sends itself a signal when it is about to do something for the n-th time
SIGNALLED_AT = """
import importlib, os, sys
owner, name, left, number = importlib.import_module(sys.argv[1]), sys.argv[2], [int(sys.argv[3])], int(sys.argv[4])
*path, name = name.split(".")
for part in path:
    owner = getattr(owner, part)
real = getattr(owner, name)
def deadly(*args, **kwargs):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), number)
    return real(*args, **kwargs)
setattr(owner, name, deadly)
sys.argv[1:5] = []
from editkit.cli.main import main
sys.exit(main())
"""


def arguments(moments: Path, run: Path, mode: str = "sequential", facts: int = FACTS) -> list[str]:
    where = json.dumps({"path": str(moments), "num_tokens": 8000})
    return [
        "fit", "--config", str(ROOT / "configs" / "quickstart.yaml"),
        "--config", str(ROOT / "configs" / "evaluation" / "facts-alone.yaml"), f"--model.second_moment={where}",
        f"--data.num_facts={facts}", f"--data.batch_size={BATCH}", "--data.facts_per_step=1",
        f"--weight_update.mode={mode}", "--model.values.num_steps=4", "--trainer.enable_progress_bar=false",
        *(["--model.earlier_keys=auto"] if mode == "sequential" else []), f"--run_dir={run}",
    ]  # fmt: skip


def contents(run: Path) -> dict[str, object]:
    """Everything that a run left, but for its config and logs."""
    tensors = {
        f"{file.name} {name}": tensor_hash(tensor)
        for file in sorted((run / "edits").glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    files = ("metrics.json", "records.jsonl", "edits/edits.json")
    return tensors | {name: (run / name).read_text(encoding="utf-8") for name in files}
