"""What a run leaves behind: every row measured, metrics before and after, the ledger, and tables to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from typing_extensions import override

from editkit.data.module import FactsDataModule
from editkit.editors.closed_form.editor import Editor
from editkit.evaluation.files import Row, read_records, write_part, write_records
from editkit.evaluation.plots import write_path
from editkit.evaluation.protocol import Protocol
from editkit.evaluation.results import RunResults
from editkit.evaluation.tables import notes, tables
from editkit.models.generation import continue_greedily
from editkit.utils.files import atomic_write

SAMPLE = "sample"  # the kind of rows that hold the model's own words


class Report(L.Callback):
    """Collects the validation rows of all batches and writes the run folder; prints tables at the end.

    Args:
        samples: prompts for which the model's own words are shown before and after.
        sample_tokens: tokens of each continuation.

    Attributes:
        book: all that was measured.
        words: per shown fact, the prompt and the model's words before and after.
        folder: where rows are written as they come in; None: nowhere.
    """

    def __init__(self, samples: int = 3, sample_tokens: int = 8) -> None:
        self.samples, self.sample_tokens = samples, sample_tokens
        self.words: dict[int, dict[str, str]] = {}
        self.book: RunResults | None = None
        self.protocol = Protocol()
        self.folder: Path | None = None

    def keep_in(self, folder: Path, data: FactsDataModule, made: int = 0) -> None:
        """Write into ``folder`` from now on.

        Args:
            folder: the run folder; what an interrupted run has measured there is taken over.
            data: the run's facts.
            made: batches of edits that the ledger has; scores of others do not count.
        """
        self.folder = folder
        rows = [row for row in read_records(folder) if row["batch"] is None or row["batch"] < made]
        self._book_of(data).take(rows)
        index = {fact.fact_id: i for i, fact in enumerate(data.selected)}
        for row in rows:
            if row["kind"] == SAMPLE:
                self._note(index[row["fact"]], row)

    def evaluated(self, phase: str, batch: int | None = None) -> bool:
        """Whether the unedited model, or the model after a batch, has been measured."""
        rows = self.book.rows if self.book is not None else []
        return any(row["phase"] == phase and row["batch"] == batch for row in rows)

    def _book_of(self, data: FactsDataModule) -> RunResults:
        if self.book is None:
            self.book = RunResults(data.selected, data.probe_sets)
        return self.book

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(pl_module, Editor) or not isinstance(data, FactsDataModule):
            return
        self.protocol, book = pl_module.protocol, self._book_of(data)
        book.sequential = data.sequential
        # what the unedited model said may have been measured by a run that was interrupted
        pl_module.original = pl_module.original or book.original

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Editor)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, FactsDataModule):
            return
        self.protocol, book = pl_module.protocol, self._book_of(data)
        batch = trainer.current_epoch if trainer.state.fn == "fit" else data.present
        phases = data.phases()
        phase = next(iter(phases))
        rows = book.add(pl_module.results, phases, batch)
        for name, facts in phases.items():
            samples = self._samples(pl_module, data, facts)
            book.rows += (added := [{**row, "phase": name, "batch": batch} for row in samples])
            rows += added
            for i, row in zip(self._shown(data, facts), added, strict=True):
                self._note(i, row)
        book.sequential = data.sequential
        if self.folder is not None and trainer.is_global_zero:
            write_part(self.folder, phase, batch, rows)

    def _shown(self, data: FactsDataModule, facts: Sequence[int]) -> list[int]:
        return [i for i in range(min(self.samples, len(data.selected))) if i in facts]

    def _samples(self, editor: Editor, data: FactsDataModule, facts: Sequence[int]) -> list[Row]:
        shown = [data.selected[i] for i in self._shown(data, facts)]
        said = continue_greedily(editor.editable, editor.tokenizer, [fact.text() for fact in shown], self.sample_tokens)
        return [
            {
                "fact": fact.fact_id, "kind": SAMPLE, "prompt": fact.text(), "target_new": fact.target_new,
                "text": text,
            }
            for fact, text in zip(shown, said, strict=True)
        ]  # fmt: skip

    def _note(self, index: int, row: Row) -> None:
        entry = self.words.setdefault(index, {"prompt": row["prompt"], "target_new": row["target_new"]})
        entry[row["phase"]] = row["text"]

    def metrics(self) -> dict[str, Any]:
        """Every figure: ``{"before": {…}, "after": {…}, …}`` with intervals, and the sample prompts.

        "before" and "after" have the facts' scores before any edit and after each fact's own batch, "final" those of
        all facts after the last of several sequential batches, "intervals" their 95% intervals, "probes" the model's
        other abilities, "protocol" how all was measured. Scores are on the 0-100 scale.
        """
        found = self.book.metrics(self.protocol) if self.book is not None else {}
        return {**found, "samples": [self.words[i] for i in sorted(self.words)]}

    @property
    def main(self) -> dict[str, str]:
        """Per probe, the metric that is drawn and shown: its task's."""
        probes = self.book.probes if self.book is not None else []
        return {title: p.task.main for p in probes for title in (p.probe.title, f"{p.probe.title} (generated)")}

    def write(self, title: str = "", edits: list[int] | None = None) -> None:
        """Write metrics.json, records.jsonl and the path of the probes into the run folder.

        Args:
            title: of the picture.
            edits: per batch of edits, the number of facts edited when it is done.
        """
        assert self.folder is not None
        text = json.dumps(self.metrics(), indent=1, ensure_ascii=False) + "\n"
        atomic_write(self.folder / "metrics.json", lambda part: part.write_text(text, encoding="utf-8"), "run_dir")
        parts: dict[tuple[str, int | None], list[Row]] = {}  # in the order in which they would be read back
        for row in self.book.rows if self.book is not None else []:
            parts.setdefault((row["phase"], row["batch"]), []).append(row)
        write_records(self.folder, [row for part in parts.values() for row in part])
        if self.book is not None and self.book.points:
            write_path(self.folder, self.book.points, self.main, edits or [], title)

    def show(self, console: Console, title: str) -> None:
        """Print the scores before → after with 95% intervals, and the sample prompts."""
        metrics = self.metrics()
        if not any("ES" in metrics.get(phase, {}) for phase in ("before", "after")):
            console.print(
                "No scores: they compare target_new with target_true, and no fact has a target_true.", soft_wrap=True
            )
        for table in tables(metrics, title, self.main):
            console.print(table)
        for line in notes(metrics, self.main):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        for phase, count in metrics.get("skipped", {}).items():
            console.print(f"{phase}: {count} rows are longer than the context window and were left out")
        for entry in metrics["samples"]:
            console.print(f"[bold]{entry['prompt']}[/bold] …  (asked for: {entry['target_new']})", highlight=False)
            for phase in ("before", "after", "final"):
                if phase in entry:
                    console.print(f"  {phase:6} {' '.join(entry[phase].split())}", highlight=False, markup=False)
