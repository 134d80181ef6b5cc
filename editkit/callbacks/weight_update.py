"""The weight update: once an epoch's value vectors are found, solve in closed form and write the weights."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from jsonargparse.typing import NonNegativeFloat
from torch import Tensor
from typing_extensions import override

from editkit.covariance import factored_second_moments
from editkit.data.facts import Fact
from editkit.data.module import FactsDataModule
from editkit.editors.closed_form.checkpoint import ValueCheckpoint
from editkit.editors.closed_form.dependence import settle_dependence
from editkit.editors.closed_form.editor import Editor, ValueVectors
from editkit.editors.closed_form.tuning import best, score_path
from editkit.edits import EditBatch, Edits, WeightSnapshot, apply_batch, apply_delta, load_edits, stored
from editkit.edits.files import INDEX, write_batch
from editkit.edits.weights import as_recorded, hashes, samples
from editkit.functional import Delta, FactoredSecondMoment, with_keys
from editkit.models.fingerprint import fingerprint
from editkit.runs.resume import check_same_run
from editkit.utils.distributed import broadcast_object, gather, place, raise_on_all_ranks
from editkit.utils.errors import InputError
from editkit.utils.progress import progress_bar


class WeightUpdate(L.Callback):
    """Applies ``Editor.solve`` at the end of each batch of edits, layer by layer, and keeps the ledger.

    Args:
        mode: "independent": each batch is made on the unedited weights, restored bit-exactly before it;
            "sequential": each on top of those before it. The last batch's weights stay in both.
        earlier_keys: weight β of the keys of earlier batches in sequential mode: the second moment C grows by βKKᵀ with
            each batch, so that later edits preserve it too. "auto" is 1/ρ, with which batches solved one after the
            other in least squares are one solve of all their facts, for the same keys and values. 0: forget them.
        dependent: what is done about facts whose keys depend on other facts' keys (section 5.1 of the paper): "keep"
            them, which needs a ridge; "drop" the later ones of each group from their batch; "fail" before anything is
            changed. They are named in the ledger's notes in any case.

    Attributes:
        edits: the ledger so far.
        moments: block to factored second moment of the unedited model, and of ``earlier_keys``.
        folder: where the ledger is kept as it grows; None: nowhere.

    To act on each update, subclass and override ``after_update``::

        class Norms(WeightUpdate):
            def after_update(self, editor, batch):
                editor.log("norm", sum(d.norm() for d in batch.deltas.values()))
    """

    def __init__(
        self,
        mode: Literal["independent", "sequential"] = "independent",
        earlier_keys: NonNegativeFloat | Literal["auto"] = 0.0,
        dependent: Literal["keep", "drop", "fail"] = "keep",
    ) -> None:
        if earlier_keys and mode == "independent":
            raise InputError(
                f"weight_update.earlier_keys: independent batches know of no earlier ones, but got {earlier_keys!r}; "
                "set weight_update.mode to sequential, or leave it out"
            )
        self.mode, self.earlier_keys, self.dependent = mode, earlier_keys, dependent
        self.edits = Edits(sequential=mode == "sequential")
        self.second_moments: dict[int, FactoredSecondMoment] = {}
        self.snapshot: WeightSnapshot | None = None
        self.folder: Path | None = None
        self.start = 0

    def after_update(self, editor: Editor, batch: EditBatch) -> None:
        """Called with each finished batch, after the weights were written; does nothing here."""

    # ---------------------------------------------------------------- going on where a ledger ends

    def keep_in(self, folder: Path) -> None:
        """Keep the ledger in ``folder`` from now on; where one is there already, go on after its batches."""
        if (folder / INDEX).exists():
            self.resume_from(load_edits(folder))
        self.folder = folder

    def resume_from(self, edits: Edits, start: int | None = None) -> None:
        """Begin with a ledger's batches made.

        Args:
            edits: of the same model, editor and facts; ``on_fit_start`` checks that.
            start: the batch to begin with. One that the ledger has is written from there, not found again, and then
                evaluated. Default: the first one that it lacks.
        """
        self.edits, self.start = edits, len(edits.batches) if start is None else start

    def check_same(self, editor: Editor, data: FactsDataModule) -> None:
        """Raise an ``InputError`` unless the ledger at hand was begun with this model, editor and facts."""
        if self.edits.model:
            check_same_run(self.edits, editor, self._about(editor), self.mode == "sequential", data)

    def _about(self, editor: Editor) -> dict[str, Any]:
        return {**editor.about(), "earlier_keys": self.earlier_keys, "dependent": self.dependent}

    def _go_on(self, trainer: L.Trainer, editor: Editor) -> None:
        """Bring weights and moments to where the ledger's first ``start`` batches leave them."""
        made = self.edits.batches[: self.start]
        last = isinstance(data := _data(trainer), FactsDataModule) and self.start == data.num_batches
        chosen = made if self.mode == "sequential" else made[-1:] if last else []
        shown = trainer.progress_bar_callback is not None and place()[0] == 0
        with progress_bar(shown=shown) as bar:
            for batch in bar.track(chosen, description="Edits so far"):
                self._write(editor, batch)
        if chosen and not as_recorded(editor.editable, chosen[-1]):
            warnings.warn(
                "run_dir: the weights agree with those of the interrupted run to rounding, not bit for bit: it was on "
                "another machine or version of torch",
                stacklevel=2,
            )
        progress = trainer.fit_loop.epoch_progress.current
        for name in ("ready", "started", "processed", "completed"):
            setattr(progress, name, self.start)
        if isinstance(data, FactsDataModule):
            data.made = len(self.edits.batches)

    def _write(self, editor: Editor, batch: EditBatch) -> None:
        """The weights and moments after a batch of the ledger."""
        apply_batch(editor.editable, batch)
        self._preserve(editor, batch.keys)

    def _preserve(self, editor: Editor, keys: dict[int, Tensor]) -> None:
        """Let later batches preserve these keys too."""
        for layer, moment in self.second_moments.items():
            if layer in keys:
                self.second_moments[layer] = with_keys(moment, keys[layer], self._weight_of_keys(editor))

    def _weight_of_keys(self, editor: Editor) -> float:
        if self.earlier_keys != "auto":
            return float(self.earlier_keys)
        if not editor.rho:
            raise InputError(
                "weight_update.earlier_keys: 'auto' is 1/ρ, but this editor's ridge ρ is 0; give a number, or "
                "the editor a ridge"
            )
        return 1.0 / editor.rho

    # ---------------------------------------------------------------- Lightning

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Settle the number of epochs: one per batch of edits."""
        if stage != "fit":
            return
        if not isinstance(pl_module, Editor):
            raise InputError(f"model: expected an editkit.Editor, but got {type(pl_module).__name__}")
        data = _data(trainer)
        if isinstance(data, FactsDataModule):
            data.resolve_batch_size(pl_module.max_batch_size)
            data.sequential = self.mode == "sequential"
            asked = trainer.max_epochs
            batches = data.num_batches
            trainer.fit_loop.max_epochs = batches if asked is None or asked < 0 else min(asked, batches)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Editor)
        editor, data = pl_module, _data(trainer)
        self.folder = broadcast_object(self.folder)
        editor.editable.model.eval()
        if isinstance(data, FactsDataModule):
            self.check_same(editor, data)
        self.edits.model = fingerprint(editor.editable.model)
        self.edits.about = {**self.edits.about, **self._about(editor)}
        self.snapshot = WeightSnapshot(editor.editable, editor.edited_layers)
        if not self.second_moments:
            progress = trainer.progress_bar_callback is not None
            self.second_moments = factored_second_moments(
                editor.editable, editor.tokenizer, editor.edited_layers, editor.second_moment, progress
            )
        if math.isnan(editor.rho):
            self._choose_ridge(trainer, editor)
        if self.earlier_keys:
            self._weight_of_keys(editor)
        self._go_on(trainer, editor)
        self._keep_index()

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Editor)
        if self.mode == "independent" and self.snapshot is not None:
            self.snapshot.restore()
        pl_module.found = ValueVectors()

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Editor)
        if self.folder is not None and batch:
            found, device = pl_module.found, pl_module.editable.device
            if ValueCheckpoint(self.folder).read(trainer.current_epoch, batch_idx, batch, found, device):
                batch.clear()  # the training step is left with nothing to find

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Editor)
        # of a batch of one step nothing but the update is left
        if self.folder is not None and batch and (batch_idx or not trainer.is_last_batch) and not pl_module.found.error:
            ValueCheckpoint(self.folder).write(trainer.current_epoch, batch_idx, batch, pl_module.found)
        # validation runs before on_train_epoch_end, so the weights must be written here
        if trainer.is_last_batch:
            if trainer.current_epoch < len(self.edits.batches):
                self._write(pl_module, self.edits.batches[trainer.current_epoch])
            else:
                self._update_everywhere(pl_module)

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._keep_index()

    # ---------------------------------------------------------------- the update

    def _update_everywhere(self, editor: Editor) -> None:
        """``update`` on what all processes found: made by rank 0, and written by the others as it was made there."""
        rank, world = place()
        if world == 1:
            self.update(editor)
            return
        raise_on_all_ranks(editor.found.error)
        editor.found = ValueVectors.together(gather(editor.found.on_cpu()), editor.editable.device)
        batch: EditBatch | None = None
        error: Exception | None = None
        try:
            batch = self.update(editor) if rank == 0 else None
        except Exception as caught:
            error = caught
        raise_on_all_ranks(error)
        batch = broadcast_object(batch)
        assert batch is not None
        if rank:
            self._write(editor, batch)
            self.edits.batches.append(batch)
            self.after_update(editor, batch)
        raise_on_all_ranks(_differing(editor, batch, rank))

    @torch.no_grad()
    def update(self, editor: Editor) -> EditBatch:
        """Solve and write each layer in turn, keys and residuals measured anew on the partly edited model.

        Everything is undone if a later layer cannot be solved, or the ledger not kept.
        """
        layers = editor.edited_layers
        notes = settle_dependence(editor, self.second_moments[layers[0]], self.dependent)
        groups, values = editor.found.groups, torch.cat(editor.found.values, 1)
        names = [group[0].subject for group in groups]
        before = WeightSnapshot(editor.editable, layers)
        deltas: dict[int, Delta] = {}
        kept: dict[int, Tensor] = {}
        try:
            for i, layer in enumerate(layers):
                # the first layer's keys came with the value search; later ones are felt through the edits before them
                keys = editor.keys(groups, layer) if i else torch.cat(editor.found.keys, 1)
                residuals = (values - editor.states(groups)) * editor.spread.share(len(layers) - i)
                deltas[layer] = stored(editor.solve(keys, residuals, self.second_moments[layer], names))
                apply_delta(editor.editable, layer, deltas[layer])
                if self.earlier_keys:
                    kept[layer] = keys.float().cpu()
            facts: list[Fact] = [fact for group in groups for fact in group]
            state = hashes(editor.editable, layers), samples(editor.editable, layers)
            batch = EditBatch(facts, deltas, *state, kept, notes)
            if self.folder is not None:
                write_batch(self.folder, len(self.edits.batches), batch)
        except BaseException:
            before.restore()
            raise
        self.edits.batches.append(batch)
        if self.folder is not None:
            ValueCheckpoint(self.folder).clear()
        self._preserve(editor, kept)
        self.after_update(editor, batch)
        return batch

    def _choose_ridge(self, trainer: L.Trainer, editor: Editor) -> None:
        """Choose ρ along the path, or take the one that an interrupted run has chosen."""
        data, about = _data(trainer), self.edits.about
        if "ridge_path" not in about:
            rows = data.hold_out()
            shown = trainer.progress_bar_callback is not None and place()[0] == 0
            points = score_path(editor, self.second_moments, data.tuning, rows, shown)
            about["rho"], about["ridge_path"] = best(points).rho, [point.row() for point in points]
        editor.choose_rho(about["rho"])

    def _keep_index(self) -> None:
        if self.folder is not None and place()[0] == 0:
            self.edits.save_index(self.folder)


def _data(trainer: L.Trainer) -> Any:
    return trainer.datamodule  # type: ignore[attr-defined]


def _differing(editor: Editor, batch: EditBatch, rank: int) -> InputError | None:
    """The error to raise unless this process's weights are bit for bit those that rank 0 has after ``batch``."""
    if hashes(editor.editable, batch.deltas) == batch.hashes:
        return None
    return InputError(
        f"trainer.devices: expected the same weights on all processes, but those of process {rank} differ after the "
        "edit; use machines of one kind"
    )
