"""``editkit.edit``: edits of a model already in memory, with a way back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import lightning as L
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editkit.callbacks.progress import EditProgress
from editkit.callbacks.report import Report
from editkit.callbacks.weight_update import WeightUpdate
from editkit.data.facts import Fact, as_facts
from editkit.data.module import FactsDataModule
from editkit.editors.base import Editor
from editkit.editors.emmet import EMMET
from editkit.edits import Edits, WeightSnapshot
from editkit.errors import InputError
from editkit.quiet import quiet_lightning
from editkit.strategy import on_device


class EditedModel:
    """A model that was edited in place. As a context manager it undoes the edits on exit.

    Attributes:
        model: the transformers model, edited.
        edits: the ledger of what was changed.
        facts: the facts, in the order given.
    """

    def __init__(
        self, model: PreTrainedModel, facts: list[Fact], edits: Edits, way_back: WeightSnapshot, report: Report
    ):
        self.model, self.facts, self.edits = model, facts, edits
        self._way_back, self._report = way_back, report

    def undo(self) -> PreTrainedModel:
        """Put every edited weight back, bit for bit."""
        self._way_back.restore()
        return self.model

    def save(self, path: str | Path) -> None:
        """Write the ledger (safetensors and JSON) into the folder ``path``; ``editkit.load_edits`` reads it."""
        self.edits.save(path)

    def report(self) -> dict[str, Any]:
        """Scores before and after on the facts with a ``target_true``, and sample prompts with the model's words."""
        return self._report.metrics()

    def __enter__(self) -> EditedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def edit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Iterable[Fact | Mapping[str, Any]],
    editor: Editor | None = None,
    second_moment: str | Path | None = None,
    batch_size: int | None = None,
    mode: Literal["independent", "sequential"] = "sequential",
    evaluate: bool = True,
    progress: bool = True,
) -> EditedModel:
    """Edit a model already in memory, in place.

    Args:
        model: a decoder-only causal language model of transformers, whole in memory.
        tokenizer: its fast tokenizer.
        facts: ``Fact`` objects or dicts with ``subject``, ``prompt`` (one "{}" for the subject) and ``target_new``.
        editor: the method and its settings; default ``EMMET()``.
        second_moment: folder of the keys' second moments. Loaded where it has those of this model, else they are
            estimated and saved there. Default: a folder in the user's cache, named by all that they depend on.
        batch_size: facts per solve; default all at once, or what the editor can take.
        mode: "sequential": each batch on top of those before it; "independent": each on the unedited weights.
        evaluate: measure the facts before and after.
        progress: show progress bars.

    Returns:
        The edited model with ``undo()``, ``save()`` and ``report()``.

    Raises:
        InputError: facts, layers or model that do not fit. The model is then as it was, as after any exception.
    """
    given = as_facts(facts)
    if any(p.is_meta for p in model.parameters()):
        raise InputError("model: expected weights in memory, but some are offloaded (meta device); load it whole")
    editor = editor or EMMET()
    editor.attach(model, tokenizer)
    editor.configure_model()
    if second_moment is not None:
        editor.moments.path = str(second_moment)
    update, report = WeightUpdate(mode), Report()
    device, training = next(model.parameters()).device, model.training
    trained = [p for p in model.parameters() if p.requires_grad]
    way_back = WeightSnapshot(editor.family, editor.edited_layers)
    data = FactsDataModule.of(given, batch_size)
    with quiet_lightning():
        trainer = L.Trainer(
            **on_device(device),
            max_epochs=-1,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            limit_val_batches=None if evaluate else 0,
            enable_progress_bar=progress,
            callbacks=[update, report, *([EditProgress()] if progress else [])],
        )
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main_thread else None
    model.eval().requires_grad_(False)
    try:
        with quiet_lightning():
            if evaluate:
                trainer.validate(editor, data, verbose=False)
            trainer.fit(editor, data)
    except BaseException as error:
        way_back.restore()
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error  # Trainer makes Ctrl-C an exit of the whole process
        raise
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)  # which Trainer leaves ignored after Ctrl-C
        nn.Module.to(model, device).train(training)  # Trainer's teardown leaves models on the CPU
        for parameter in trained:
            parameter.requires_grad_(True)
    return EditedModel(model, given, update.edits, way_back, report)
