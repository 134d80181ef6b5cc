"""The weight update: what an editor found in an epoch becomes an edit of the model, and a batch of the ledger."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
from typing_extensions import override

from editkit.callbacks.evaluation import Evaluation
from editkit.data.facts import Fact
from editkit.data.module import FactsDataModule
from editkit.data.plan import RunPlan
from editkit.data.room import check_room
from editkit.editors.base import Editor
from editkit.editors.contradictions import check_contradictions
from editkit.edits import AppliedEdits, EditBatch, Edits
from editkit.edits.applied import matches_record
from editkit.edits.batch import hashes_of
from editkit.edits.files import write_batch
from editkit.edits.same_run import check_same_run
from editkit.evaluation.evaluator import Evaluator
from editkit.evaluation.protocol import Protocol
from editkit.evaluation.ridge_path import write_path
from editkit.evaluation.tuning import tuning_score
from editkit.models.fingerprint import fingerprint
from editkit.utils.distributed import broadcast_object, raise_on_all_ranks, rank_and_size
from editkit.utils.errors import InputError, shorten
from editkit.utils.progress import progress_bar


class WeightUpdate(L.Callback):
    """Makes and applies the edit of each batch of facts, and keeps the ledger.

    Args:
        mode: "independent": each batch is made on the unedited model, restored bit-exactly before it; "sequential":
            each on top of those before it. The last batch's edit stays in both.

    Attributes:
        edits: the ledger so far.
        applied: the edits that act on the model, and the way back; None before the fit.
        folder: where the ledger is kept as it grows; None: nowhere.

    To act on each update, subclass and override ``after_update``, and give the subclass as ``weight_update``::

        class Norms(WeightUpdate):
            def after_update(self, editor, batch):
                editor.log("norm", sum(delta.norm() for delta in batch.edit.weight_changes().values()))
    """

    def __init__(self, mode: Literal["independent", "sequential"] = "independent") -> None:
        self.mode = mode
        self.edits = Edits(sequential=mode == "sequential")
        self.applied: AppliedEdits | None = None
        self.folder: Path | None = None
        self._announce = True
        self._start = 0

    def after_update(self, editor: Editor, batch: EditBatch) -> None:
        """Called with each finished batch, after its edit was applied; does nothing here."""

    # ---------------------------------------------------------------- before the fit

    def write_to(self, folder: Path) -> None:
        """Keep the ledger in ``folder`` from now on."""
        self.folder = folder

    def keep_silent(self) -> None:
        """Announce nothing of what takes long."""
        self._announce = False

    def resume_from(self, edits: Edits, start: int | None = None) -> None:
        """Begin with a ledger's batches.

        Args:
            edits: of the same model, editor and facts; ``on_fit_start`` checks that.
            start: the batch to begin with. One that the ledger has is applied from there, not found again, and then
                measured. Default: the first one that it lacks.
        """
        self.edits, self._start = edits, len(edits.batches) if start is None else start

    def make_plan(self, trainer: L.Trainer, editor: Editor, data: FactsDataModule) -> RunPlan:
        """Settle how the run proceeds, and check that the editor can do it; the data module then deals by the plan.

        Args:
            trainer: whose ``max_epochs`` may ask for fewer batches, and whose ``Evaluation`` says how to measure.
            editor: with its model.
            data: with its facts read.
        """
        editor.check_settings()
        evaluation = Evaluation.of(trainer)
        protocol = evaluation.protocol if evaluation is not None else Protocol()
        most = trainer.max_epochs
        plan = data.make_plan(
            editor.max_batch_size,
            self.mode == "sequential",
            most if most is not None and most >= 0 else None,
            editor.needs_tuning,
            tuning_score(Evaluator(editor.editable, editor.tokenizer, protocol)),
            batches_done=len(self.edits.batches),
            questions=protocol.questions,
            folder=self.folder,
            findings=self.edits.about,
            progress=trainer.progress_bar_callback is not None,
            announce=self._announce,
        )
        check_room(plan.facts, editor.tokenizer, editor.editable.context)
        check_contradictions(plan, editor.dependent)
        editor.check(plan)
        return plan

    # ---------------------------------------------------------------- Lightning

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Settle the number of epochs: one per batch of edits."""
        if stage != "fit":
            return
        if not isinstance(pl_module, Editor):
            raise InputError(f"model: expected an editkit.Editor, but got {type(pl_module).__name__}")
        pl_module.configure_model()
        self.folder = broadcast_object(self.folder)
        trainer.fit_loop.max_epochs = self.make_plan(
            trainer, pl_module, FactsDataModule.of_trainer(trainer)
        ).num_batches

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Editor)
        editor, plan = pl_module, FactsDataModule.of_trainer(trainer).plan
        editor.editable.model.eval()
        model, about = editor.editable.model, editor.about()
        if self.edits.model:
            check_same_run(self.edits, model, about, plan)
        unedited = fingerprint(model)
        self.applied = AppliedEdits(editor.editable, f"{type(editor).__name__} of {_named(plan.facts)}")
        editor.prepare(plan)
        self.edits = replace(self.edits, model=unedited, about={**self.edits.about, **about, **editor.findings()})
        self._resume(trainer, editor, plan)
        self._save_index()

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.mode == "independent" and self.applied is not None:
            self.applied.restore()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # validation runs before on_train_epoch_end, so the edit must be made here
        if not trainer.is_last_batch:
            return
        assert isinstance(pl_module, Editor)
        epoch = trainer.current_epoch
        if epoch < len(self.edits.batches):
            self._apply(pl_module, self.edits.batches[epoch])
        else:
            self.update(pl_module, FactsDataModule.of_trainer(trainer).plan.batch(epoch))

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save_index()

    # ---------------------------------------------------------------- the update

    def update(self, editor: Editor, facts: Sequence[Fact]) -> EditBatch:
        """Make the edit of a batch of facts, apply it, and keep it; of several processes, as rank 0 makes it.

        Everything is undone if the edit cannot be made, applied or kept.
        """
        rank, _ = rank_and_size()
        editor.synchronize()
        edit, error = None, None
        try:
            edit = editor.edit(facts).rounded() if rank == 0 else None
        except Exception as caught:
            error = caught
        raise_on_all_ranks(error)
        edit = broadcast_object(edit)
        assert edit is not None and self.applied is not None
        with ExitStack() as undo:
            try:
                undo.callback(self.applied.apply(edit))
                batch = EditBatch.of(facts, edit, editor.editable)
                if self.folder is not None and rank == 0:
                    write_batch(self.folder, len(self.edits.batches), batch, self.edits.model)
            except Exception as caught:
                error = caught
            raise_on_all_ranks(error)
            undo.pop_all()  # it stays
        recorded = broadcast_object(batch.hashes)
        self.edits.batches.append(batch)
        if self.mode == "sequential":
            editor.observe(edit)
        self.after_update(editor, batch)
        raise_on_all_ranks(_differing(editor, recorded, batch, rank))
        return batch

    def _apply(self, editor: Editor, batch: EditBatch) -> None:
        """A batch of the ledger acts on the model again."""
        assert self.applied is not None
        self.applied.apply(batch.edit)
        if self.mode == "sequential":
            editor.observe(batch.edit)

    def _resume(self, trainer: L.Trainer, editor: Editor, plan: RunPlan) -> None:
        """Bring the model and the editor to where the ledger's first ``_start`` batches leave them."""
        first = self.edits.batches[: self._start]
        last = self._start == plan.num_batches
        chosen = first if self.mode == "sequential" else first[-1:] if last else []
        with progress_bar(shown=plan.progress and rank_and_size()[0] == 0 and len(chosen) >= 10) as bar:
            for batch in bar.track(chosen, description="Edits so far"):
                self._apply(editor, batch)
        if chosen and not matches_record(editor.editable, chosen[-1]):
            warnings.warn(
                "run_dir: the weights agree with those of the interrupted run to rounding, not bit for bit: it was on "
                "another machine or version of torch",
                stacklevel=2,
            )
        progress = trainer.fit_loop.epoch_progress.current
        for name in ("ready", "started", "processed", "completed"):
            setattr(progress, name, self._start)

    def _save_index(self) -> None:
        if self.folder is not None and rank_and_size()[0] == 0:
            self.edits.save_index(self.folder)
            if path := self.edits.about.get("ridge_path"):
                write_path(self.folder, path, self.edits.about["rho"])


def _named(facts: Sequence[Fact]) -> str:
    """Facts for a message."""
    others = f" and {len(facts) - 1} more" if len(facts) > 1 else ""
    return shorten(facts[0].text()) + others if facts else "no facts"


def _differing(editor: Editor, recorded: dict[str, str], batch: EditBatch, rank: int) -> InputError | None:
    """The error to raise unless this process's weights are bit for bit those that rank 0 has after ``batch``."""
    if hashes_of(editor.editable, batch.edit.parameters) == recorded:
        return None
    return InputError(
        f"trainer.devices: expected the same weights on all processes, but those of process {rank} differ after the "
        "edit; use machines of one kind"
    )
