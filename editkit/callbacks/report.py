"""What a run leaves behind: every row measured, metrics before and after, and tables to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console
from rich.text import Text
from typing_extensions import override

from editkit.callbacks.evaluation import Evaluation
from editkit.data.module import FactsDataModule
from editkit.data.plan import PHASES, RunPlan
from editkit.editors.base import Editor
from editkit.evaluation.files import write_part, write_records
from editkit.evaluation.plots import write_path
from editkit.evaluation.results import SAMPLE, Record, RunResults
from editkit.evaluation.tables import notes, tables
from editkit.models.generation import continue_greedily
from editkit.utils.files import atomic_write
from editkit.utils.words import counted


class Report(L.Callback):
    """Notes the model's own words at each validation, writes the run folder as the run goes on, and shows tables.

    Args:
        samples: prompts for which the model's own words are shown before and after.
        sample_tokens: tokens of each continuation.

    Attributes:
        folder: where rows are written as they come in; None: nowhere.
    """

    def __init__(self, samples: NonNegativeInt = 3, sample_tokens: PositiveInt = 8) -> None:
        self.samples, self.sample_tokens = samples, sample_tokens
        self.folder: Path | None = None

    def write_to(self, folder: Path) -> None:
        """Write into ``folder``, the run folder, from now on."""
        self.folder = folder

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        evaluation = Evaluation.of(trainer)
        if evaluation is None:  # nothing is measured
            return
        assert isinstance(pl_module, Editor) and evaluation.results is not None and evaluation.latest is not None
        plan, found = FactsDataModule.of_trainer(trainer).plan, evaluation.latest
        phases, batch = found.measurement.phases, found.measurement.batch
        samples = [
            {**sample, "phase": phase, "batch": batch}
            for phase, facts in phases.items()
            for sample in self._samples(pl_module, plan, facts)
        ]
        evaluation.results.add_samples(samples)
        if self.folder is not None and trainer.is_global_zero:
            write_part(self.folder, next(iter(phases)), batch, [*found.records, *samples])

    def _samples(self, editor: Editor, plan: RunPlan, facts: Sequence[int]) -> list[Record]:
        shown = [plan.facts[i] for i in range(min(self.samples, len(plan.facts))) if i in facts]
        words = continue_greedily(editor.editable, editor.tokenizer, [f.text() for f in shown], self.sample_tokens)
        return [
            {
                "fact": fact.fact_id, "kind": SAMPLE, "prompt": fact.text(), "target_new": fact.target_new,
                "text": text,
            }
            for fact, text in zip(shown, words, strict=True)
        ]  # fmt: skip


def main_metrics(results: RunResults) -> dict[str, str]:
    """Per probe, the metric that is drawn and shown: its task's."""
    return {title: p.task.main for p in results.probes for title in (p.probe.title, f"{p.probe.title} (generated)")}


def write_report(
    folder: Path, results: RunResults, metrics: dict[str, Any], title: str = "", plan: RunPlan | None = None
) -> None:
    """Write metrics.json, records.jsonl and the path of the probes into the run folder.

    Args:
        folder: the run folder.
        results: all that was measured.
        metrics: its figures, ``RunResults.metrics``.
        title: of the picture.
        plan: the run's, for the number of facts edited after each batch.
    """
    text = json.dumps(metrics, indent=1, ensure_ascii=False) + "\n"
    atomic_write(folder / "metrics.json", lambda part: part.write_text(text, encoding="utf-8"), "run_dir")
    parts: dict[tuple[str, int | None], list[Record]] = {}  # in the order in which they would be read back
    for record in results.records:
        parts.setdefault((record["phase"], record["batch"]), []).append(record)
    write_records(folder, [record for part in parts.values() for record in part])
    if results.points:
        edited = [plan.positions(n).stop for n in range(plan.num_batches)] if plan is not None else []
        write_path(folder, results.points, main_metrics(results), edited, title)


def show_report(console: Console, results: RunResults, metrics: dict[str, Any], title: str) -> None:
    """Print the scores before → after with 95% intervals, and the sample prompts."""
    if results.facts and not results.records:
        console.print("No scores: nothing was measured.")
    elif not any("ES" in metrics.get(phase, {}) for phase in ("before", "after")):
        console.print(
            "No scores: they compare target_new with target_true, and no fact has a target_true.", soft_wrap=True
        )
    for table in tables(metrics, title, main_metrics(results)):
        console.print(table)
    for line in notes(metrics, main_metrics(results)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for phase, count in metrics.get("skipped", {}).items():
        rows, were = counted(count, "row is", "rows are"), "was" if count == 1 else "were"
        console.print(f"{phase}: {rows} longer than the context window and {were} left out")
    for entry in metrics["samples"]:
        console.print(Text.assemble((entry["prompt"], "bold"), f" …  (asked for: {entry['target_new']})"))
        for phase in PHASES:
            if phase in entry:
                console.print(f"  {phase:6} {' '.join(entry[phase].split())}", highlight=False, markup=False)
