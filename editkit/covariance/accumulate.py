"""Sums of k kᵀ at the MLP output projections, over text, on any number of processes; a subclass sums what it likes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Literal

import lightning as L
import torch
from torch import Tensor, distributed
from typing_extensions import override

from editkit.covariance.folder import Partial
from editkit.covariance.summand import KEYS
from editkit.data.windows import Round, TextDataModule
from editkit.functional.second_moment import SecondMomentSum, relative_change
from editkit.models.editable import EditableModel, StopForward, watching
from editkit.models.fused import fused_activations
from editkit.utils.distributed import broadcast_object, gather, raise_on_all_ranks, rank_and_size
from editkit.utils.errors import InputError
from editkit.utils.memory import free_bytes
from editkit.utils.signals import hold, stop_by, stop_requested

ROWS = 4096  # keys per product, where it runs at its peak


class SecondMoments(L.LightningModule):
    """Accumulates Σ k kᵀ at the MLP output projections of several blocks; ends each forward before the last of them.

    Run it by ``Trainer.predict(module, TextDataModule(...), return_predictions=False)`` on any number of processes:
    each adds up its own batches, and afterwards every process has the sums of all.

    Args:
        editable: the unedited model.
        layers: blocks whose projection's input is wanted.
        accumulate_on: "device" (the model's) or "cpu".
        tolerance: relative change of C over a doubling of the tokens under which to stop.
        partial: where unfinished sums are kept.
        save_minutes: how often.

    Attributes:
        sums: block to its ``SecondMomentSum``; ``sums[layer].mean()`` is C = E[k kᵀ] in float64.
        tokens: tokens seen, by all processes.
        documents: documents seen, by all processes.
        batches: batches seen, from the start of the text.
        change: largest relative change of C at the last doubling; None before the second one.
        resumed: tokens that came from a partial file.
        until_safe: for a ``with`` block around the run: a signal stops it between two batches, when the sums are kept.
        of: what is summed.
    """

    of = KEYS

    def __init__(
        self,
        editable: EditableModel,
        layers: Sequence[int],
        accumulate_on: Literal["device", "cpu"] = "device",
        tolerance: float | None = None,
        partial: Partial | None = None,
        save_minutes: float = 5.0,
    ) -> None:
        super().__init__()
        self.language_model = editable.model
        self.editable, self.layers = editable, sorted(set(layers))
        self.accumulate_on, self.tolerance = accumulate_on, tolerance
        self.partial, self.save_minutes = partial or Partial(None), save_minutes
        self.sums: dict[int, SecondMomentSum] = {}
        self.before: dict[int, SecondMomentSum] = {}
        self.batches = self.tokens = self.documents = self.resumed = 0
        self.change: float | None = None
        self.converged = False
        self._rows: dict[int, list[Tensor]] = {}
        self.until_safe = ExitStack()
        self._kept = 0  # batches in the partial file
        self._saved = time.monotonic()

    # ---------------------------------------------------------------- the run

    @override
    def setup(self, stage: str) -> None:
        """Make room for the sums, and take up those of a run that was cut short; rank 0 says for which layers."""
        self.layers = broadcast_object(self.layers)
        error: Exception | None = None
        kept = None
        try:
            device = self.trainer.strategy.root_device  # where the model will be
            where = torch.device("cpu") if self.accumulate_on == "cpu" or device.type == "mps" else device
            self._check_memory(where)
            self.sums = {
                layer: SecondMomentSum.zeros(self.of.width(self.editable, layer), where) for layer in self.layers
            }
            self._rows = {layer: [] for layer in self.layers}
            kept = self.partial.load() if rank_and_size()[0] == 0 else None
            if kept is not None and not all(f"sum.{layer}" in kept[0] for layer in self.layers):
                kept = None
            if kept is not None:
                tensors, state = kept
                for layer, total in self.sums.items():
                    total.total.copy_(tensors[f"sum.{layer}"])
                    if (rows := tensors.get(f"rows.{layer}")) is not None:
                        self._rows[layer].append(rows.to(device))
                    total.count = state["tokens"] - sum(map(len, self._rows[layer]))
                    if f"before.{layer}" in tensors:
                        self.before[layer] = SecondMomentSum(tensors[f"before.{layer}"], state["before"])
        except Exception as caught:
            error = caught
        raise_on_all_ranks(error)
        state = broadcast_object(kept[1] if kept is not None else {})
        for name, value in state.items():
            if name != "before":
                setattr(self, name, value)
        self.resumed, self._kept = self.tokens, self.batches
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, TextDataModule):
            data.begin_after(self.batches)
            if self.converged or not self.layers:
                data.stop()
        self._saved = time.monotonic()

    @override
    def on_predict_start(self) -> None:
        """From here on all processes have sums that would be lost; what they wait for before may never come."""
        self.until_safe.enter_context(hold())

    @override
    def predict_step(self, batch: Round, batch_idx: int) -> None:
        """Add this process's batch of the round; padded positions are not counted."""
        if self.converged or not self.layers:  # a round may have been fetched ahead
            return
        error: Exception | None = None
        try:
            if len(batch.ids):
                self._forward(batch)
        except Exception as caught:
            error = caught
        raise_on_all_ranks(error)
        self.batches, self.tokens, self.documents = batch.batches, batch.tokens, batch.documents
        if batch.check and self.tolerance is not None:
            self._check_convergence()
        self._save_or_stop(time.monotonic() - self._saved >= 60 * self.save_minutes)

    @override
    def on_predict_end(self) -> None:
        """Give every process the sums of all, in place, one layer after the other.

        They are kept before anything else is done with them: to factor them may take longer than the text, and the
        memory that it needs may not be there.
        """
        self._gather(everywhere=True)
        self._save_or_stop(self.batches > self._kept, gathered=True)
        self.until_safe.close()

    def _forward(self, batch: Round) -> None:
        """Run the model on a batch and ``_take`` its rows."""
        ids, kept = batch.ids.to(self.editable.device), batch.mask.flatten().bool().to(self.editable.device)
        whole = bool(batch.mask.all())
        last = self.layers[-1]

        def keep(layer: int) -> Callable[..., None]:
            def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
                keys = inputs[0].reshape(-1, inputs[0].shape[-1])
                self._take(layer, keys if whole else keys[kept])
                if layer == last:
                    raise StopForward

            return hook

        hooks = [self.editable.projection(layer).register_forward_pre_hook(keep(layer)) for layer in self.layers]
        with torch.no_grad(), fused_activations(self.editable.model), watching(*hooks):
            # no mask: what is padded stands to the right of all tokens, which attend to their left only
            self.editable.model(input_ids=ids, use_cache=False)

    def _take(self, layer: int, rows: Tensor) -> None:
        self._rows[layer].append(rows)
        if sum(map(len, self._rows[layer])) >= ROWS:
            self._flush(layer)

    def _flush(self, layer: int) -> None:
        rows, self._rows[layer] = self._rows[layer], []
        if rows:
            self.sums[layer].add(rows[0] if len(rows) == 1 else torch.cat(rows))

    def _gather(self, everywhere: bool = False) -> None:
        """Add up the processes' sums, in place: on rank 0, the others going on from zero, or on all at the end."""
        rank, world = rank_and_size()
        for layer, total in self.sums.items():
            self._flush(layer)
            if world == 1:
                continue
            for rows in total.total.split(max(1, (1 << 25) // len(total.total))):
                sent = rows.to(self.editable.device)  # NCCL adds up what is on its devices, gloo what is in memory
                if everywhere:
                    distributed.all_reduce(sent)
                else:
                    distributed.reduce(sent, 0)
                if sent is not rows:
                    rows.copy_(sent)
            if rank and not everywhere:
                total.total.zero_()
            total.count = self.tokens if everywhere or rank == 0 else 0

    # ---------------------------------------------------------------- stopping and going on

    def _check_convergence(self) -> None:
        """At a doubling of the tokens: how much did C change since the last one?"""
        self._gather()
        changes = []
        if rank_and_size()[0] == 0:
            for layer, total in self.sums.items():
                if layer in self.before:
                    before = self.before[layer]
                    scaled = before.total.mul_(total.count / before.count)
                    changes.append(relative_change(total.total, scaled))
                self.before[layer] = SecondMomentSum(total.total.clone(), total.count)
        self.change = broadcast_object(max(changes) if changes else None)
        self.converged = self.change is not None and self.change < (self.tolerance or 0.0)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.converged and isinstance(data, TextDataModule):
            data.stop()

    def _save_or_stop(self, due: bool, gathered: bool = False) -> None:
        """Save the sums if rank 0 says that it is due, or if any process is to stop, which then all do."""
        found = gather((stop_requested(), due))
        number = next((number for number, _ in found if number is not None), None)
        if number is not None or found[0][1]:
            if not gathered and rank_and_size()[1] > 1:
                self._gather()
            self._keep()
        if number is not None:
            stop_by(number)

    def _keep(self) -> None:
        """Write the sums of all processes, which rank 0 has; of a single one with the rows that it has yet to add.

        To add them now would change the sums' last bits, which then depended on when they are saved.
        """
        error: Exception | None = None
        if rank_and_size()[0] == 0:
            tensors = {f"sum.{layer}": total.total for layer, total in self.sums.items()}
            tensors |= {f"before.{layer}": total.total for layer, total in self.before.items()}
            tensors |= {f"rows.{layer}": torch.cat(rows) for layer, rows in self._rows.items() if rows}
            state = {name: getattr(self, name) for name in ("batches", "tokens", "documents", "change", "converged")}
            state["before"] = next((total.count for total in self.before.values()), 0)
            try:
                self.partial.save({k: v.cpu().contiguous() for k, v in tensors.items()}, state)
            except Exception as caught:
                error = caught
        raise_on_all_ranks(error)
        self._saved, self._kept = time.monotonic(), self.batches

    def _check_memory(self, where: torch.device) -> None:
        sharing = 1 if where.type == "cuda" else int(getattr(self.trainer, "num_devices", 1) or 1)
        widths = [self.of.width(self.editable, layer) for layer in self.layers]
        needs = needed_bytes(widths, self.tolerance is not None)
        free = free_bytes(where) // sharing
        if needs > free:
            widest = max(widths)
            at_once = free // needed_bytes([widest], self.tolerance is not None)
            remedies = []
            if 1 <= at_once < len(self.layers):
                remedies.append(f"set second_moment.layers_at_once={at_once} (more passes)")
            if where.type == "cuda":
                remedies.append("set second_moment.accumulate_on=cpu")
            raise InputError(
                f"second_moment: needs {needs / 1e9:.1f} GB for {len(self.layers)} layers of {widest:,}, but "
                f"{free / 1e9:.1f} GB are free on {where} for each process; "
                + (" or ".join(remedies) or "expected more memory: use fewer devices, or a larger machine")
            )


def needed_bytes(widths: Sequence[int], checks: bool = False) -> int:
    """Memory of the sums: 8·d² bytes a layer, and twice that where convergence is checked.

    >>> f"{needed_bytes([16_384] * 6) / 1e9:.1f} GB"
    '12.9 GB'
    """
    return sum(8 * width**2 for width in widths) * (2 if checks else 1)
