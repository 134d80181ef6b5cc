"""``editkit.edit``: edits of a model already in memory, with a way back."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import lightning as L
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editkit.callbacks.evaluation import Evaluation
from editkit.callbacks.progress import edit_progress
from editkit.callbacks.report import Report
from editkit.callbacks.weight_update import WeightUpdate
from editkit.data.facts import Fact, as_facts
from editkit.data.module import FactsDataModule
from editkit.editors.base import Editor
from editkit.editors.closed_form.editor import ClosedFormEditor
from editkit.editors.closed_form.emmet import EMMET
from editkit.edits import AppliedEdits, Edits
from editkit.evaluation.ridge_path import write_path
from editkit.models.soundness import check_model, check_tokenizer
from editkit.utils.distributed import on_device
from editkit.utils.errors import InputError, describe
from editkit.utils.quiet import quiet_lightning
from editkit.utils.signals import leave_signals
from editkit.utils.words import counted

Mode = Literal["independent", "sequential"]


class EditedModel:
    """A model that was edited in place. As a context manager it undoes the edits on exit.

    Attributes:
        model: the transformers model, edited.
        edits: the ledger of what was changed.
        facts: the facts, in the order given; less those of batches that were undone.
    """

    def __init__(self, run: _Run, facts: list[Fact]) -> None:
        self.model, self.facts = run.model, facts
        self._run = run
        self._take(run.fit(facts))

    def _take(self, done: _Done) -> None:
        self.edits, self._applied, self._metrics = done.edits, done.applied, done.metrics
        self._undone = False

    def undo(self, batch: int | None = None, recompute: bool = False) -> PreTrainedModel:
        """Put every edited weight back, bit for bit, or take back one batch of edits.

        Edits of the same model by other calls stay: those before these, and those on top of these, which act again as
        they were made. A warning names the latter, as they were solved for weights that had these edits in them. Once
        everything is undone, in whatever order, the model has its first bits.

        One of several sequential batches cannot simply be taken out: those after it were solved for weights that had
        it in them. Without ``recompute`` its weight change is subtracted, the others stay, and a warning says that this
        is not as if it had never been made; with it, the later batches are searched and solved again. Of independent
        batches, and for the last of sequential ones, the result always equals never having made it.

        Args:
            batch: the number of a batch; default all of them.
            recompute: make the later batches again.

        Raises:
            InputError: there is no such batch, or it is to be recomputed below edits that other calls made.
        """
        if batch is None:
            self._applied.restore()
            self._undone = True
            return self.model
        if recompute:
            self._applied.check_last("recompute")
        left, exact = self.edits.without(batch)
        edited = [len(b.facts) + len(b.edit.notes.get("dropped", [])) for b in self.edits.batches]
        first = sum(edited[:batch])
        facts = self.facts[:first] + self.facts[first + edited[batch] :]
        if recompute and not exact:
            self._applied.restore()
            begun = replace(left, batches=left.batches[:batch])
            begun.about["undone"][-1]["as_if_never_made"] = True
            self._take(self._run.fit(facts, begun))
            left = self.edits
        else:
            last = batch == len(self.edits.batches) - 1  # of independent ones it alone acts
            acting = left.batches if self.edits.sequential else [] if last else left.batches[-1:]
            self._applied.replace([done.edit for done in acting])
            if not exact:
                warnings.warn(
                    f"edits: batch {batch} is taken out, but the result is not as if it had never been made: the "
                    f"{len(left.batches) - batch} later ones were solved on top of it; undo(batch, recompute=True) "
                    "makes them again",
                    stacklevel=2,
                )
        self.edits, self.facts = left, facts
        return self.model

    def save(self, path: str | Path) -> None:
        """Write the ledger (safetensors and JSON) into the folder ``path``; ``editkit.load_edits`` reads it."""
        self.edits.save(path)
        if path_of_ridges := self.edits.about.get("ridge_path"):
            write_path(Path(path), path_of_ridges, self.edits.about["rho"])

    def report(self) -> dict[str, Any]:
        """Scores before and after on the facts with a ``target_true``, and sample prompts with the model's words."""
        return self._metrics

    def __repr__(self) -> str:
        facts, batches = sum(len(done.facts) for done in self.edits.batches), len(self.edits.batches)
        done = f"{counted(facts, 'fact')} in {counted(batches, 'batch', 'batches')}"
        layers = f", layers {self.edits.about['layers']}" if "layers" in self.edits.about else ""
        made = f"{type(self.model).__name__} by {type(self._run.editor).__name__}"
        return f"<EditedModel: {made}, {done}{layers}{', undone' if self._undone else ''}>"

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
    editor: Editor | type[Editor] | None = None,
    second_moment: str | Path | None = None,
    batch_size: int | None = None,
    mode: Mode = "sequential",
    evaluate: bool = True,
    progress: bool = True,
) -> EditedModel:
    """Edit a model already in memory, in place.

    Args:
        model: a decoder-only causal language model of transformers, whole in memory.
        tokenizer: its fast tokenizer.
        facts: ``Fact`` objects or dicts with ``subject``, ``prompt`` (one "{}" for the subject) and ``target_new``.
        editor: the method and its settings, or its class for the defaults; default ``EMMET()``.
        second_moment: folder of the keys' second moments. Loaded where it has those of this model, else they are
            estimated and saved there. Default: a folder in the user's cache, named by all that they depend on.
        batch_size: facts per solve; default all at once, or what the editor can take.
        mode: "sequential": each batch on top of those before it; "independent": each on the unedited weights.
        evaluate: measure the facts before and after.
        progress: show progress bars.

    Returns:
        The edited model with ``undo()``, ``save()`` and ``report()``.

    Raises:
        InputError: an argument of another kind, or facts, layers or model that do not fit. The model is then as it
            was, as after any exception.
    """
    check_model(model)
    if any(p.is_inference() for p in model.parameters()):
        raise InputError("model: expected weights that gradients go through, but got some of inference mode; load anew")
    check_tokenizer(tokenizer, model, "tokenizer")
    given = as_facts(facts)
    editor = _as_editor(editor)
    _check_options(second_moment, batch_size, mode, evaluate, progress)
    editor.attach(model, tokenizer)
    editor.editable.check_causal()
    editor.configure_model()
    if second_moment is not None:
        if not isinstance(editor, ClosedFormEditor):
            raise InputError(
                f"second_moment: {type(editor).__name__} preserves no keys and takes none, but got {second_moment}; "
                "leave it out"
            )
        editor.keep_second_moments_in(second_moment)
    modes = [(module, module.training) for module in model.modules()]
    try:
        return EditedModel(_Run(model, editor, batch_size, mode, evaluate, progress), given)
    finally:
        for module, training in modes:
            module.training = training


def _as_editor(editor: Editor | type[Editor] | None) -> Editor:
    if editor is None:
        return EMMET()
    kind = editor if isinstance(editor, type) else type(editor)
    if not issubclass(kind, Editor):
        raise InputError(
            f"editor: expected an editor such as editkit.EMMET(layers=[5]), but got {describe(editor)}; give one, or "
            "leave it out for editkit.EMMET()"
        )
    if missing := kind.missing():
        left = {"edit": "edit(batch)", "solve": "solve(problem)"}.get(missing, missing)
        raise InputError(
            f"editor: expected a method such as editkit.EMMET, but {kind.__name__} is a base of editors and leaves "
            f"{left} to them; choose one, or override it"
        )
    if isinstance(editor, Editor):
        return editor
    try:
        signature(kind).bind()
    except TypeError as error:
        raise InputError(
            f"editor: expected an editor, but {kind.__name__} cannot be made without arguments ({error}); write "
            f"{kind.__name__}(...)"
        ) from error
    return kind()


def _check_options(
    second_moment: str | Path | None, batch_size: int | None, mode: str, evaluate: bool, progress: bool
) -> None:
    def check(name: str, value: object, expected: str, good: bool, remedy: str) -> None:
        if not good:
            raise InputError(f"{name}: expected {expected}, but got {describe(value)}; {remedy}")

    is_folder = isinstance(second_moment, (str, Path)) and bool(str(second_moment).strip())
    check(
        "second_moment",
        second_moment,
        "a folder",
        second_moment is None or is_folder,
        "give its path; other settings are the editor's: EMMET(second_moment=SecondMomentSource(...))",
    )
    is_size = isinstance(batch_size, Integral) and not isinstance(batch_size, bool) and batch_size > 0
    check(
        "batch_size",
        batch_size,
        "a number of facts, 1 or more",
        batch_size is None or is_size,
        "leave it out for all facts at once",
    )
    modes = get_args(Mode)
    check("mode", mode, f"one of {', '.join(map(repr, modes))}", mode in modes, "choose one")
    check("evaluate", evaluate, "True or False", isinstance(evaluate, bool), "choose one")
    check("progress", progress, "True or False", isinstance(progress, bool), "choose one")


@dataclass(frozen=True)
class _Done:
    """What a fit left: the ledger, the edits as they act on the model, and the figures."""

    edits: Edits
    applied: AppliedEdits
    metrics: dict[str, Any]


@dataclass(frozen=True)
class _Run:
    """What ``edit`` was asked for, so that a part of it can be done again."""

    model: PreTrainedModel
    editor: Editor
    batch_size: int | None
    mode: Mode
    evaluate: bool
    progress: bool

    def fit(self, facts: list[Fact], begun: Edits | None = None) -> _Done:
        """Edit the model, or go on after the batches of ``begun``; any exception leaves it as it was."""
        model, editor = self.model, self.editor
        update, evaluation = WeightUpdate(self.mode), Evaluation()
        if not self.progress:
            update.keep_silent()
        if begun is not None:
            update.resume_from(begun)
        device, training = next(model.parameters()).device, model.training
        trained = [p for p in model.parameters() if p.requires_grad]
        data = FactsDataModule.of(facts, self.batch_size)
        with quiet_lightning():
            trainer = L.Trainer(
                **on_device(device),
                max_epochs=-1,
                reload_dataloaders_every_n_epochs=1,
                num_sanity_val_steps=0,
                limit_val_batches=None if self.evaluate else 0,
                enable_progress_bar=self.progress,
                callbacks=[update, evaluation, Report(), *([edit_progress()] if self.progress else [])],
            )
        leave_signals(trainer)
        in_main_thread = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGINT) if in_main_thread else None
        model.eval().requires_grad_(False)
        try:
            with quiet_lightning():
                plan = update.make_plan(trainer, editor, data)
                if self.evaluate:
                    trainer.validate(editor, data, verbose=False)
                trainer.fit(editor, data)
        except BaseException as error:
            if update.applied is not None:
                update.applied.restore()
            if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error  # Trainer makes Ctrl-C an exit of the whole process
            raise
        finally:
            if handler is not None:
                signal.signal(signal.SIGINT, handler)  # which Trainer leaves ignored after Ctrl-C
            nn.Module.to(model, device).train(training)  # Trainer's teardown leaves models on the CPU
            for parameter in trained:
                parameter.requires_grad_(True)
        results = evaluation.results or evaluation.begin(data, plan.sequential)
        assert update.applied is not None
        return _Done(update.edits, update.applied, results.metrics(evaluation.protocol))
