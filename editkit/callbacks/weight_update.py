"""The weight update: once an epoch's value vectors are found, solve in closed form and write the weights."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
import torch
from typing_extensions import override

from editkit.covariance import factored_moments
from editkit.data.module import FactsDataModule
from editkit.editors.base import Editor, Found
from editkit.edits import EditBatch, Edits, WeightSnapshot, apply_delta, stored
from editkit.errors import InputError
from editkit.functional import FactoredMoment, LowRankDelta
from editkit.models.fingerprint import fingerprint, tensor_hash
from editkit.strategy import from_rank_zero, gather, place, raise_together


class WeightUpdate(L.Callback):
    """Applies ``Editor.solve`` at the end of each batch of edits, layer by layer, and keeps the ledger.

    Args:
        mode: "independent": each batch is made on the unedited weights, restored bit-exactly before it;
            "sequential": each on top of those before it. The last batch's weights stay in both.

    Attributes:
        edits: the ledger so far.
        moments: block to factored second moment of the unedited model.

    To act on each update, subclass and override ``after_update``::

        class Norms(WeightUpdate):
            def after_update(self, editor, batch):
                editor.log("norm", sum(d.norm() for d in batch.deltas.values()))
    """

    def __init__(self, mode: Literal["independent", "sequential"] = "independent") -> None:
        self.mode = mode
        self.edits = Edits(sequential=mode == "sequential")
        self.moments: dict[int, FactoredMoment] = {}
        self.snapshot: WeightSnapshot | None = None

    def after_update(self, editor: Editor, batch: EditBatch) -> None:
        """Called with each finished batch, after the weights were written; does nothing here."""

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Settle the number of epochs: one per batch of edits."""
        if stage != "fit":
            return
        if not isinstance(pl_module, Editor):
            raise InputError(f"model: expected an editkit.Editor, but got {type(pl_module).__name__}")
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, FactsDataModule):
            data.resolve_batch_size(pl_module.max_batch_size)
            asked = trainer.max_epochs
            batches = data.num_batches
            trainer.fit_loop.max_epochs = batches if asked is None or asked < 0 else min(asked, batches)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Editor)
        editor = pl_module
        editor.family.model.eval()
        self.edits.model = fingerprint(editor.family.model)
        self.edits.about = editor.about()
        self.snapshot = WeightSnapshot(editor.family, editor.edited_layers)
        if not self.moments:
            progress = trainer.progress_bar_callback is not None
            self.moments = factored_moments(
                editor.family, editor.tokenizer, editor.edited_layers, editor.moments, progress
            )

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Editor)
        if self.mode == "independent" and self.snapshot is not None:
            self.snapshot.restore()
        pl_module.found = Found()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # validation runs before on_train_epoch_end, so the weights must be written here
        if trainer.is_last_batch:
            assert isinstance(pl_module, Editor)
            self._update_everywhere(pl_module)

    def _update_everywhere(self, editor: Editor) -> None:
        """``update`` on what all processes found: made by rank 0, and written by the others as it was made there."""
        rank, world = place()
        if world == 1:
            self.update(editor)
            return
        raise_together(editor.found.error)
        editor.found = Found.together(gather(editor.found.on_cpu()), editor.family.device)
        batch: EditBatch | None = None
        error: Exception | None = None
        try:
            batch = self.update(editor) if rank == 0 else None
        except Exception as caught:
            error = caught
        raise_together(error)
        batch = from_rank_zero(batch)
        assert batch is not None
        if rank:
            for layer, delta in batch.deltas.items():
                apply_delta(editor.family, layer, delta)
            self.edits.batches.append(batch)
            self.after_update(editor, batch)
        raise_together(_differing(editor, batch, rank))

    @torch.no_grad()
    def update(self, editor: Editor) -> EditBatch:
        """Solve and write each layer in turn, keys and residuals measured anew on the partly edited model.

        Everything is undone if a later layer cannot be solved.
        """
        groups, layers = editor.found.groups, editor.edited_layers
        values = torch.cat(editor.found.values, 1)
        names = [group[0].subject for group in groups]
        before = WeightSnapshot(editor.family, layers)
        deltas: dict[int, LowRankDelta] = {}
        try:
            for i, layer in enumerate(layers):
                # the first layer's keys came with the value search; later ones are felt through the edits before them
                keys = editor.keys(groups, layer) if i else torch.cat(editor.found.keys, 1)
                residuals = (values - editor.states(groups)) * editor.spread.share(len(layers) - i)
                solved = editor.solve(keys, residuals, self.moments[layer], names)
                deltas[layer] = stored(solved)
                apply_delta(editor.family, layer, deltas[layer])
        except BaseException:
            before.restore()
            raise
        batch = EditBatch([fact for group in groups for fact in group], deltas, before.hashes())
        self.edits.batches.append(batch)
        self.after_update(editor, batch)
        return batch


def _differing(editor: Editor, batch: EditBatch, rank: int) -> InputError | None:
    """The error to raise unless this process's weights are bit for bit those that rank 0 has after ``batch``."""
    if {layer: tensor_hash(editor.family.weight(layer)) for layer in batch.deltas} == batch.hashes:
        return None
    return InputError(
        f"trainer.devices: expected the same weights on all processes, but those of process {rank} differ after the "
        "edit; use machines of one kind"
    )
