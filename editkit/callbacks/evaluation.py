"""Evaluation in the validation loop: rows are measured as they come, scored once, and logged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from editkit.data.module import FactsDataModule
from editkit.editors.base import Editor
from editkit.evaluation.evaluator import Evaluator, Result, fact_of, in_order
from editkit.evaluation.protocol import Protocol
from editkit.evaluation.results import Record, RunResults, Validation
from editkit.utils.distributed import gather
from editkit.utils.errors import shorten

SHOWN = 5  # facts named in a warning
FEW_NEIGHBORS = 20.0  # NS before any edit, 0-100, below which prompts seem not to share the fact's answer


class Evaluation(L.Callback):
    """Measures what ``FactsDataModule`` asks in each validation, under one protocol.

    Args:
        protocol: how edits are measured: "paper" (default), "public" or "easyedit", or the fields of one's own.

    Attributes:
        results: all that was measured so far; None before the first validation.
        latest: what the last validation found.
    """

    def __init__(self, protocol: Protocol | str | None = None) -> None:
        self.protocol = Protocol.of(protocol)
        self.results: RunResults | None = None
        self.latest: Validation | None = None
        self._evaluator: Evaluator | None = None
        self._found: list[Result] = []

    @classmethod
    def of(cls, trainer: L.Trainer) -> Evaluation | None:
        """The one that a trainer has, if any."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        return next((callback for callback in callbacks if isinstance(callback, cls)), None)

    def begin(self, data: FactsDataModule, sequential: bool, records: Iterable[Record] = ()) -> RunResults:
        """Begin with nothing measured, or with the records of an interrupted run.

        Args:
            data: the run's facts and probes.
            sequential: whether each batch of edits stays.
            records: what was measured before.
        """
        self.results = RunResults(data.plan.facts, data.probe_sets, sequential)
        self.results.take(records)
        return self.results

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # a baseline may have been measured before the plan was made
        data = FactsDataModule.of_trainer(trainer)
        if self.results is not None and self.results.sequential != data.plan.sequential:
            self.begin(data, data.plan.sequential, self.results.records)

    @override
    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Editor)
        data = FactsDataModule.of_trainer(trainer)
        results = self.results or self.begin(data, data.plan.sequential)
        baseline = None if "before" in data.measurement.phases else results.baseline or {}
        self._evaluator = Evaluator(pl_module.editable, pl_module.tokenizer, self.protocol, data.probe_sets, baseline)
        self._found = []

    @override
    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        assert self._evaluator is not None
        self._found += self._evaluator.measure(batch)

    @override
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.results is not None and self._evaluator is not None
        measurement = FactsDataModule.of_trainer(trainer).measurement
        results = in_order(result for part in gather(self._found) for result in part)
        self.latest = found = self.results.add(results, measurement)
        if found.skipped:
            left_out = dict.fromkeys(fact_of(result) for result in results if not result.fits)
            named = [shorten(self.results.facts[fact].fact_id, 24) for fact in left_out if fact >= 0]
            of = f" (of fact{'s' * (len(named) > 1)} {', '.join(named[:SHOWN])}{', …' * (len(named) > SHOWN)})"
            rank_zero_warn(
                f"evaluation: {found.skipped} of {len(results)} rows{of * bool(named)} are longer than the model's "
                f"context window of {self._evaluator.editable.context} tokens, or than protocol.generation_length; "
                "they are left out of all scores",
                stacklevel=2,
            )
        kept = found.scores.get("before", {}).get("NS")
        if kept is not None and kept["mean"] < FEW_NEIGHBORS:
            rank_zero_warn(
                f"data.facts: before any edit the model says target_true at {kept['mean']:.0f}% of the "
                "neighborhood_prompts, so NS tells little: expected prompts about other subjects whose answer is the "
                "fact's target_true; give others as unrelated_prompts with unrelated_answers",
                stacklevel=2,
            )
        self._evaluator = None
        for phase, scores in found.scores.items():
            where = f"val/{phase}" if phase == "final" else "val"
            _log(pl_module, {f"{where}/{name}": figure["mean"] for name, figure in scores.items()})
        for title, figures in (found.point.figures if found.point is not None else {}).items():
            _log(pl_module, {f"val/{title}/{name}": figure["mean"] for name, figure in figures.items()})


def _log(module: L.LightningModule, figures: dict[str, float]) -> None:
    module.log_dict(figures, prog_bar=False, rank_zero_only=True, batch_size=1)
