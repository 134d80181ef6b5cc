"""What a run leaves behind: every row measured, metrics before and after, the ledger, and a table to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.table import Table
from typing_extensions import override

from editkit.callbacks.weight_update import WeightUpdate
from editkit.data.module import FactsDataModule
from editkit.editors.base import Editor, Scored
from editkit.errors import InputError
from editkit.metrics.bundle import EditingScores
from editkit.metrics.editing import KINDS
from editkit.models.score import continue_greedily

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
    """

    def __init__(self, samples: int = 3, sample_tokens: int = 8) -> None:
        self.samples, self.sample_tokens = samples, sample_tokens
        self.before, self.after = EditingScores(), EditingScores()
        self.words: dict[int, dict[str, str]] = {}
        self.rows: list[dict[str, Any]] = []
        self.folder: Path | None = None

    def open(self, folder: Path) -> None:
        """Create the run folder; nothing is written anywhere before this."""
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise InputError(
                f"run_dir: expected a folder that can be created, but {folder} cannot ({error.strerror}); "
                "choose another"
            ) from error
        self.folder = folder

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Editor)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, FactsDataModule):
            return
        edited = trainer.state.fn == "fit"
        self._collect(pl_module.seen, data, trainer.current_epoch if edited else None)
        present = data.batch_indices(trainer.current_epoch) if edited else range(len(data.selected))
        shown = [i for i in range(min(self.samples, len(data.selected))) if i in present]
        prompts = [data.selected[i].text() for i in shown]
        said = continue_greedily(pl_module.family, pl_module.tokenizer, prompts, self.sample_tokens)
        for i, prompt, words in zip(shown, prompts, said, strict=True):
            entry = self.words.setdefault(i, {"prompt": prompt, "target_new": data.selected[i].target_new})
            entry["after" if edited else "before"] = words
        if edited and self.folder is not None:
            update = next(c for c in trainer.callbacks if isinstance(c, WeightUpdate))  # type: ignore[attr-defined]
            update.edits.save_batch(self.folder / "edits", len(update.edits.batches) - 1)

    def _collect(self, seen: list[Scored], data: FactsDataModule, epoch: int | None) -> None:
        scores = self.before if epoch is None else self.after
        about = {"phase": "before" if epoch is None else "after", "batch": epoch}
        for rows, nll_new, nll_true in seen:
            scores.update(rows, nll_new, nll_true)
            for row, new, true in zip(rows, nll_new.tolist(), nll_true.tolist(), strict=True):
                self.rows.append(
                    {
                        "fact": data.selected[row.fact].fact_id, "kind": KINDS[row.kind], "prompt": row.prompt,
                        "target_new": row.target_new, "target_true": row.target_true, **about,
                        "nll_new": new, "nll_true": true,
                    }
                )  # fmt: skip

    def metrics(self) -> dict[str, Any]:
        """``{"before": {…}, "after": {…}}`` with intervals, and the sample prompts; scores on the 0-100 scale."""
        found: dict[str, Any] = {}
        for phase, scores in (("before", self.before), ("after", self.after)):
            results = scores.results()
            if results:
                found[phase] = {name: r["mean"] for name, r in results.items()}
                found.setdefault("intervals", {})[phase] = {n: [r["low"], r["high"]] for n, r in results.items()}
        return {**found, "samples": list(self.words.values())}

    def write(self, update: WeightUpdate | None = None) -> None:
        """Write metrics.json, records.jsonl and the ledger into the run folder."""
        assert self.folder is not None
        (self.folder / "metrics.json").write_text(
            json.dumps(self.metrics(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        with (self.folder / "records.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        if update is not None and update.edits.batches:
            update.edits.save_index(self.folder / "edits")

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
