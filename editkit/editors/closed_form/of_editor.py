"""What another editor would change, as a residual: SimIE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from typing_extensions import override

from editkit.data.plan import RunPlan
from editkit.editors.base import Editor
from editkit.editors.closed_form.editor import ClosedFormEditor
from editkit.editors.closed_form.layers import GivenResiduals
from editkit.editors.closed_form.parts import ResidualRule
from editkit.editors.closed_form.search import Group
from editkit.models.gradients import all_keys
from editkit.utils.errors import InputError


@dataclass(frozen=True)
class EditedFacts:
    """The facts that another editor was shown in a training step; what it found out it keeps itself.

    Attributes:
        groups: of facts that share a key.
    """

    groups: tuple[Group, ...]

    def to(self, device: torch.device | str) -> EditedFacts:
        """The same."""
        return self

    @classmethod
    def cat(cls, parts: Sequence[EditedFacts]) -> EditedFacts:
        """Groups of one after those of the other."""
        return cls(tuple(group for part in parts for group in part.groups))

    @classmethod
    def deal_in(cls, parts: Sequence[EditedFacts | None]) -> EditedFacts:
        """What all processes were shown, in the groups' order."""
        present = [part.groups if part is not None else () for part in parts]
        total = sum(map(len, present))
        return cls(tuple(present[i % len(parts)][i // len(parts)] for i in range(total)))


@dataclass
class OfEditor(ResidualRule):
    """R = (W_editor − W)K: what another editor would change, at the keys of all tokens of prompts and targets (SimIE).

    ICML 2025, openreview.net/forum?id=VdEG08ZJCH. With "unedited" and H = (λI + M)⁻¹, all batches together are one
    ridge regression on what the editor would have made of each.

    Args:
        editor: any whose edits change the projections of the edited blocks alone; its ``lm`` has no effect, and second
            moments for which it names no folder are in that of the editor whose part this is.
        start: whether it starts from the "unedited" weights each time, or from the "present" ones.
    """

    editor: Editor
    start: Literal["unedited", "present"] = "unedited"
    searches = False

    @property
    @override
    def needs_original(self) -> bool:  # type: ignore[override]
        return self.start == "unedited"

    @override
    def configure_optimizers(self, editor: ClosedFormEditor) -> Any:
        return self.editor.configure_optimizers()

    @override
    def check(self, editor: ClosedFormEditor, plan: RunPlan) -> None:
        assert editor.language_model is not None
        if self.editor.language_model is not editor.language_model:
            self.editor.attach(editor.language_model, editor.tokenizer)
        kind, field = type(self.editor).__name__, "model.residual.editor"
        if isinstance(getattr(self.editor, "residual", None), OfEditor):
            raise InputError(
                f"{field}: expected an editor that finds its changes itself, but {kind} puts together what another one "
                "changes; give that one"
            )
        if self.editor.needs_tuning:
            raise InputError(
                f"{field}.ridge: 'auto' is chosen for a run's own editor alone; expected a number: give one"
            )
        if isinstance(self.editor, ClosedFormEditor) and self.editor.second_moment.path is None and editor.source.path:
            self.editor.keep_second_moments_in(editor.source.path)
        self.editor.configure_model()
        self.editor.check_settings()
        self.editor.check(plan)
        blocks = getattr(self.editor, "edited_layers", [])
        if not set(blocks) <= set(editor.edited_layers):
            raise self._elsewhere(editor, f"edits blocks {blocks}")
        if self.editor.max_batch_size is not None and plan.batch_size > self.editor.max_batch_size:
            raise InputError(
                f"data.batch_size: {type(self.editor).__name__} takes {self.editor.max_batch_size} at a time, but got "
                f"{plan.batch_size}; set it to {self.editor.max_batch_size}"
            )

    @override
    def prepare(self, editor: ClosedFormEditor, plan: RunPlan) -> None:
        self.editor.prepare(plan)

    @override
    def step(self, editor: ClosedFormEditor, groups: Sequence[Group], batch_idx: int) -> EditedFacts:
        with self._at_work(editor):
            if not batch_idx:
                self.editor.on_train_epoch_start()
            self.editor.training_step([fact for group in groups for fact in group], batch_idx)
        return EditedFacts(tuple(groups))

    @override
    def synchronize(self, editor: ClosedFormEditor) -> None:
        with self._at_work(editor):
            self.editor.synchronize()

    @override
    def goal(self, editor: ClosedFormEditor, found: Sequence[EditedFacts]) -> GivenResiduals:
        facts = [fact for group in EditedFacts.cat(found).groups for fact in group]
        with self._at_work(editor):
            changes = self.editor.edit(facts).rounded().weight_changes()
        model, layers = editor.editable, editor.edited_layers
        names = {layer: model.parameter_of(layer) for layer in layers}
        if others := sorted(set(changes) - set(names.values())):
            raise self._elsewhere(editor, f"changes {others[0]}")
        prompts, targets = [fact.text() for fact in facts], [fact.target_new for fact in facts]
        keys, owners = all_keys(model, editor.tokenizer, prompts, targets, layers)
        residuals = {}
        for layer, name in names.items():
            change = torch.zeros(model.oriented(name, model.parameter(name)).shape, dtype=torch.float64)
            if name in changes:
                change = changes[name].dense(torch.float64)
            change = change.to(keys[layer].device)
            if layer in editor.originals:
                original = editor.originals[layer].to(change)
                change = change + original - model.oriented(name, model.parameter(name)).detach().to(change)
            residuals[layer] = change @ keys[layer].to(change)
        return GivenResiduals(keys, residuals, [facts[owner].subject for owner in owners.tolist()])

    def _elsewhere(self, editor: ClosedFormEditor, what: str) -> InputError:
        return InputError(
            f"model.residual.editor: expected an editor that changes the projections of blocks {editor.edited_layers} "
            f"alone, but {type(self.editor).__name__} {what}; give both the same layers"
        )

    @contextmanager
    def _at_work(self, editor: ClosedFormEditor) -> Iterator[None]:
        """The other editor takes part in the training of this one, on the weights that it starts from."""
        self.editor._trainer, self.editor._current_fx_name = editor._trainer, editor._current_fx_name
        with editor.unedited() if self.start == "unedited" else nullcontext():
            yield
