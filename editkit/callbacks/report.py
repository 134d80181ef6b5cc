"""What a run leaves behind: every row measured, metrics before and after, the ledger, and a table to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from typing_extensions import override

from editkit.data.module import EvaluationRow, FactsDataModule
from editkit.editors.base import Editor, Scored
from editkit.files import write_whole
from editkit.metrics.bundle import EditingScores
from editkit.metrics.editing import KINDS
from editkit.models.generate import continue_greedily
from editkit.records import Row, join_parts, read_records, write_part

SAMPLE = "sample"  # the kind of rows that hold the model's own words
SHORT = ("ES", "EM", "PS", "PM", "NS", "NM", "S")


class Report(L.Callback):
    """Collects the validation rows of all batches and writes the run folder; prints a table at the end.

    Args:
        samples: prompts for which the model's own words are shown before and after.
        sample_tokens: tokens of each continuation.

    Attributes:
        before: scores of the unedited model on the run's facts.
        after: scores of each fact after its own batch of edits.
        words: per shown fact, the prompt and the model's words before and after.
        rows: every prompt measured, as in records.jsonl.
        folder: where they are written as they come in; None: nowhere.
    """

    def __init__(self, samples: int = 3, sample_tokens: int = 8) -> None:
        self.samples, self.sample_tokens = samples, sample_tokens
        self.before, self.after = EditingScores(), EditingScores()
        self.words: dict[int, dict[str, str]] = {}
        self.rows: list[Row] = []
        self.folder: Path | None = None

    def keep_in(self, folder: Path, data: FactsDataModule) -> None:
        """Write into ``folder`` from now on; what an interrupted run has measured there is taken over."""
        self.folder, self.rows = folder, read_records(folder)
        index = {fact.fact_id: i for i, fact in enumerate(data.selected)}
        for phase, scores in (("before", self.before), ("after", self.after)):
            taken = [row for row in self.rows if row["phase"] == phase and row["kind"] in KINDS]
            at = [
                EvaluationRow(index[r["fact"]], KINDS.index(r["kind"]), r["prompt"], r["target_new"], r["target_true"])
                for r in taken
            ]
            if at:
                scores.update(at, *(torch.tensor([row[name] for row in taken]) for name in ("nll_new", "nll_true")))
        for row in self.rows:
            if row["kind"] == SAMPLE:
                self._note(index[row["fact"]], row)

    def evaluated(self, phase: str, batch: int | None = None) -> bool:
        """Whether the unedited model, or the model after a batch, has been measured."""
        return any(row["phase"] == phase and row["batch"] == batch for row in self.rows)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Editor)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, FactsDataModule):
            return
        edited = trainer.state.fn == "fit"
        phase, batch = ("after", trainer.current_epoch) if edited else ("before", None)
        rows = self._collect(pl_module.seen, data, phase, batch)
        present = data.batch_indices(trainer.current_epoch) if edited else range(len(data.selected))
        shown = [i for i in range(min(self.samples, len(data.selected))) if i in present]
        prompts = [data.selected[i].text() for i in shown]
        said = continue_greedily(pl_module.family, pl_module.tokenizer, prompts, self.sample_tokens)
        for i, prompt, text in zip(shown, prompts, said, strict=True):
            fact = data.selected[i]
            row = {
                "fact": fact.fact_id, "kind": SAMPLE, "prompt": prompt, "target_new": fact.target_new, "phase": phase,
                "batch": batch, "text": text,
            }  # fmt: skip
            rows.append(row)
            self._note(i, row)
        self.rows += rows
        if self.folder is not None and trainer.is_global_zero:
            write_part(self.folder, phase, batch, rows)

    def _note(self, index: int, row: Row) -> None:
        entry = self.words.setdefault(index, {"prompt": row["prompt"], "target_new": row["target_new"]})
        entry[row["phase"]] = row["text"]

    def _collect(self, seen: list[Scored], data: FactsDataModule, phase: str, batch: int | None) -> list[Row]:
        scores = self.before if phase == "before" else self.after
        found = []
        for rows, nll_new, nll_true in seen:
            scores.update(rows, nll_new, nll_true)
            for row, new, true in zip(rows, nll_new.tolist(), nll_true.tolist(), strict=True):
                found.append(
                    {
                        "fact": data.selected[row.fact].fact_id, "kind": KINDS[row.kind], "prompt": row.prompt,
                        "target_new": row.target_new, "target_true": row.target_true, "phase": phase, "batch": batch,
                        "nll_new": new, "nll_true": true,
                    }
                )  # fmt: skip
        return found

    def metrics(self) -> dict[str, Any]:
        """``{"before": {…}, "after": {…}}`` with intervals, and the sample prompts; scores on the 0-100 scale."""
        found: dict[str, Any] = {}
        for phase, scores in (("before", self.before), ("after", self.after)):
            results = scores.results()
            if results:
                found[phase] = {name: r["mean"] for name, r in results.items()}
                found.setdefault("intervals", {})[phase] = {n: [r["low"], r["high"]] for n, r in results.items()}
        return {**found, "samples": list(self.words.values())}

    def write(self) -> None:
        """Write metrics.json and records.jsonl into the run folder."""
        assert self.folder is not None
        text = json.dumps(self.metrics(), indent=1, ensure_ascii=False) + "\n"
        write_whole(self.folder / "metrics.json", lambda part: part.write_text(text, encoding="utf-8"), "run_dir")
        join_parts(self.folder)

    def show(self, console: Console, title: str) -> None:
        """Print the scores before → after with 95% intervals, and the sample prompts."""
        metrics = self.metrics()
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for name in SHORT:
            table.add_column(name, justify="right")
        for phase in ("before", "after"):
            if phase in metrics:
                values, spans = metrics[phase], metrics["intervals"][phase]
                table.add_row(phase, *(f"{values[n]:.1f}" if n in values else "–" for n in SHORT))
                table.add_row(
                    "  95%", *(f"{spans[n][0]:.0f}–{spans[n][1]:.0f}" if n in spans else "" for n in SHORT), style="dim"
                )
        if table.row_count:
            console.print(table)
        else:
            console.print(
                "No scores: they compare target_new with target_true, and no fact has a target_true.", soft_wrap=True
            )
        for entry in self.words.values():
            console.print(f"[bold]{entry['prompt']}[/bold] …  (asked for: {entry['target_new']})", highlight=False)
            for phase in ("before", "after"):
                if phase in entry:
                    console.print(f"  {phase:6} {' '.join(entry[phase].split())}", highlight=False, markup=False)
