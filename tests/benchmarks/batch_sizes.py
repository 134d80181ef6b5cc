"""From one fact to all of them at once, on the atlas: ROME, MEMIT and EMMET, on one block and spread over several.

    python tests/benchmarks/batch_sizes.py [--sizes 1 4 16 64 256 all] [--table docs/batch-sizes.md]

Every cell edits independent batches of its size, each on the unedited weights, and scores each fact after its own
batch. The facts are those of the atlas's "report" split, drawn without replacement by a seed; numbers of batches are
those of the paper's Table 2 as far as 1,085 facts go. Value vectors do not depend on the method, so that a batch's are
found once for all methods.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from editkit import EMMET, MEMIT, ROME, ClosedFormEditor, Fact, SecondMomentSource, ValueSearch, load_language_model
from editkit.atlas.world import load_world
from editkit.covariance import factored_second_moments
from editkit.data.facts import as_facts
from editkit.data.module import group_by_key
from editkit.data.rows import evaluation_rows
from editkit.editors.closed_form.vectors import ValueVectors
from editkit.edits import AppliedEdits
from editkit.evaluation.evaluator import Evaluator
from editkit.evaluation.protocol import Protocol
from editkit.evaluation.scores import FactScores

BATCHES = {1: 64, 4: 25, 16: 10, 64: 5, 256: 4}
METHODS: dict[str, tuple[type[ClosedFormEditor], dict[str, float]]] = {
    "ROME": (ROME, {}),
    "MEMIT, λ = 30": (MEMIT, {"preservation_weight": 30.0}),
    "EMMET, ρ = 0.1": (EMMET, {"ridge": 0.1}),
}
#: chosen on the "tune" split; the paper spreads over blocks that end where it edits a single one
LAYERS = {"block 0": [0], "blocks 0, 1": [0, 1]}
SEARCH = {"num_steps": 30, "clamp": 5.0, "decay": 0.0, "loss_threshold": 0.005}  # configs/quickstart.yaml
KEYS = ("ES", "PS", "NS", "S")


def score(editor: ClosedFormEditor, facts: Sequence[Fact], first: int, scores: FactScores) -> None:
    """Add a batch's rows to ``scores``."""
    rows = evaluation_rows(facts, range(first, first + len(facts)))
    scores.update(Evaluator(editor.editable, editor.tokenizer, Protocol(), baseline={}).edits(rows))


def measure(size: int | None, layers: list[int], split: str) -> tuple[dict[str, dict[str, float]], int, float]:
    """Scores of each method, number of facts, and seconds of one batch's update by MEMIT."""
    facts = as_facts(load_world().records(split))
    random.Random(0).shuffle(facts)
    size = size or len(facts)
    batches = [facts[i : i + size] for i in range(0, len(facts), size)][: BATCHES.get(size, 1)]
    model, tokenizer = load_language_model("atlas")
    editors = {
        name: kind(layers=layers, values=ValueSearch(**SEARCH), second_moment=SecondMomentSource(), **options)
        for name, (kind, options) in METHODS.items()
        if kind is not ROME or size == 1
    }
    lead = editors["MEMIT, λ = 30"]
    for editor in editors.values():
        editor.attach(model, tokenizer)
        editor.configure_model()
    second_moments = factored_second_moments(lead.editable, tokenizer, layers, lead.second_moment, progress=False)
    applied = AppliedEdits(lead.editable)
    scores = {name: FactScores() for name in editors}
    seconds = 0.0
    for index, batch in enumerate(track(batches, f"batches of {size}", transient=True)):
        groups = group_by_key(batch)
        vectors = ValueVectors.cat(
            [lead.find_values(groups[start : start + 256]) for start in range(0, len(groups), 256)]
        )
        for name, editor in editors.items():
            editor.preserve(second_moments)
            began = time.perf_counter()
            applied.apply(editor.edit_for(vectors))
            seconds += (time.perf_counter() - began) * (editor is lead) / len(batches)
            score(editor, batch, index * size, scores[name])
            applied.restore()
    found = {
        name: {key: r["mean"] for key, r in bundle.results(intervals=False).items()} for name, bundle in scores.items()
    }
    return found, sum(map(len, batches)), seconds


def main() -> None:
    """Measure and show; write the table where asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", default=["1", "4", "16", "64", "256", "all"])
    parser.add_argument("--split", default="report", choices=["report", "tune"])
    parser.add_argument("--layers", nargs="+", type=int, action="append", help="instead of the default sets of blocks")
    parser.add_argument("--table", type=Path, help="Markdown file whose table is replaced")
    options = parser.parse_args()
    torch.manual_seed(0)
    sets = {f"blocks {layers}": layers for layers in options.layers} if options.layers else LAYERS
    lines = [
        "| batch | facts | blocks | method | " + " | ".join(KEYS) + " |",
        "|---|---|---|---|" + "---|" * len(KEYS),
    ]
    console = Console()
    for size in options.sizes:
        for blocks, layers in sets.items():
            found, count, seconds = measure(None if size == "all" else int(size), layers, options.split)
            shown = f"{count:,}" if size == "all" else size
            for method, values in found.items():
                cells = " | ".join(f"{values[key]:.1f}" for key in KEYS)
                lines.append(f"| {shown} | {count:,} | {blocks} | {method} | {cells} |")
                console.print(lines[-1], highlight=False)
            console.print(f"  MEMIT's update of a batch: {seconds:.2f} s", style="dim", highlight=False)
    if options.table:
        page = options.table.read_text(encoding="utf-8")
        begin, end = "<!-- table -->\n", "<!-- end -->"
        head, rest = page.split(begin)
        table = "\n".join(lines)
        options.table.write_text(f"{head}{begin}{table}\n{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
