"""The ledger of a run's edits, in memory: applied to a model, undone, kept."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editkit.data.facts import Fact
from editkit.edits.applied import AppliedEdits, matches_record, unchecked
from editkit.edits.batch import EditBatch
from editkit.edits.files import batch_file, read_ledger, write_batch, write_index
from editkit.edits.prompt_edit import PromptEdit
from editkit.models.editable import EditableModel
from editkit.models.fingerprint import SAMPLED, fingerprint_like
from editkit.models.loading import load_tokenizer
from editkit.models.soundness import check_model, check_tokenizer
from editkit.utils.errors import InputError, describe
from editkit.utils.files import user_path


@dataclass
class Edits:
    """A ledger.

    Attributes:
        batches: in the order in which they were made.
        sequential: whether each batch was made on top of those before it (else each on the unedited weights).
        model: fingerprint of the unedited model.
        about: editor, hyperparameters, templates, versions: whatever the run recorded (JSON values).
    """

    batches: list[EditBatch] = field(default_factory=list)
    sequential: bool = False
    model: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._applied: weakref.WeakKeyDictionary[PreTrainedModel, AppliedEdits] = weakref.WeakKeyDictionary()

    @property
    def facts(self) -> list[Fact]:
        """The facts of all batches."""
        return [fact for batch in self.batches for fact in batch.facts]

    def save(self, path: str | Path) -> None:
        """Write ``edits.json`` and one ``batch_*.safetensors`` per batch into the folder ``path``."""
        folder = user_path(path, "edits")
        for index, batch in enumerate(self.batches):
            write_batch(folder, index, batch, self.model)
        self.save_index(folder)
        index = len(self.batches)
        while (left := batch_file(folder, index)).exists():  # of a longer ledger that was here before
            left.unlink()
            index += 1

    def save_index(self, folder: Path) -> None:
        """Write ``edits.json``."""
        write_index(folder, {"sequential": self.sequential, "model": self.model, "about": self.about}, self.batches)

    def apply(
        self,
        model: PreTrainedModel,
        batch: int | None = None,
        force: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> PreTrainedModel:
        """Let the edits act on a model, in place.

        On the machine of the run, its weights are then those of the run bit for bit, which their recorded hashes show;
        elsewhere they agree to rounding, over all their entries, which is warned about.

        Args:
            model: an unedited copy of the model that they were made for.
            batch: of independent batches, the one to apply; default the only one. Of sequential ones, the last one to
                apply; default all.
            force: apply to another model than the one on record, whose weights are then not checked.
            tokenizer: the model's; wanted only by edits that act in the prompt. Default: its checkpoint's.

        Raises:
            InputError: another model (fingerprints named), edits that do not fit, weights that are not those on record,
                a tokenizer that is wanted and cannot be found, or several independent batches and none chosen. The
                model is then as it was.
        """
        check_model(model)
        if not isinstance(force, bool):
            raise InputError(f"force: expected True or False, but got {describe(force)}; choose one")
        if tokenizer is not None:
            check_tokenizer(tokenizer, model, "tokenizer")
        chosen = self.chosen(batch)
        if model in self._applied:
            raise InputError("model: expected an unedited model, but these edits act on it already; undo them first")
        known = self._is_for(model, force)
        if tokenizer is None and any(isinstance(done.edit, PromptEdit) for done in chosen):
            tokenizer = load_tokenizer(model)
        editable = EditableModel(model, tokenizer)
        for done in chosen:
            done.edit.check(editable)
        applied = AppliedEdits(editable, f"a ledger of {len(self.facts)} facts")
        try:
            for done in chosen:
                applied.apply(done.edit)
            exact = matches_record(editable, chosen[-1]) if known and chosen else True
        except BaseException:
            applied.restore()
            raise
        if not exact:
            warnings.warn(
                "edits: the weights agree with those of the run to rounding, not bit for bit, as this machine or torch "
                f"multiplies in another order{unchecked(chosen[-1])}",
                stacklevel=2,
            )
        if known and self.model.startswith(SAMPLED):
            warnings.warn(
                "edits: the ledger was written by editkit 0.2 or before, whose fingerprint is of a few entries of each "
                "parameter: that the unedited ones agree with the run's in all others could not be checked; to have a "
                "ledger that can, make the edits again",
                stacklevel=2,
            )
        self._applied[model] = applied
        return model

    def undo(self, model: PreTrainedModel) -> PreTrainedModel:
        """Take the edits off ``model``, which is then as before ``apply``, bit for bit.

        Raises:
            InputError: this ledger was not applied to that model.
        """
        check_model(model)
        applied = self._applied.pop(model, None)
        if applied is None:
            raise InputError("model: expected a model to which these edits were applied, but this one is not; load it")
        applied.restore()
        return model

    def without(self, batch: int) -> tuple[Edits, bool]:
        """The ledger less one batch, and whether applying it equals never having made that batch.

        It does for independent batches, each of which stands on the unedited weights, and for the last one of
        sequential batches. A later one of those was solved for weights that had the batch in them, and keeps what it
        owes to it; only making it again can change that (``EditedModel.undo`` with ``recompute``).

        Raises:
            InputError: there is no such batch.
        """
        self.check_batch(batch)
        exact = not self.sequential or batch == len(self.batches) - 1
        # whatever came later met other weights than those that will stand before it now
        after = [b if exact else replace(b, hashes={}, sketches={}, samples={}) for b in self.batches[batch + 1 :]]
        undone = [*self.about.get("undone", []), {"batch": batch, "as_if_never_made": exact}]
        return replace(self, batches=self.batches[:batch] + after, about={**self.about, "undone": undone}), exact

    def check_batch(self, batch: int) -> None:
        """Raise an ``InputError`` unless there is a batch of that number."""
        if type(batch) is not int or not 0 <= batch < len(self.batches):
            raise InputError(
                f"batch: expected the number of a batch, 0 to {len(self.batches) - 1}, but got {describe(batch)}; "
                "choose another"
            )

    def chosen(self, batch: int | None = None) -> Sequence[EditBatch]:
        """The batches that ``apply`` applies.

        Raises:
            InputError: there is no such batch, or several independent ones and none chosen.
        """
        if batch is not None:
            self.check_batch(batch)
        if self.sequential:
            return self.batches if batch is None else self.batches[: batch + 1]
        if batch is None and len(self.batches) > 1:
            raise InputError(
                f"batch: these are {len(self.batches)} independent batches, each for the unedited model; expected the "
                f"number of one of them, 0 to {len(self.batches) - 1}, but got none"
            )
        return self.batches if batch is None else [self.batches[batch]]

    def _is_for(self, model: PreTrainedModel, force: bool) -> bool:
        came = fingerprint_like(self.model, model)
        if came != self.model and not force:
            raise InputError(
                f"edits: expected the unedited model with fingerprint {self.model}, but got {came}; load the model "
                "that the edits were made for, unedited and in the same dtype"
            )
        return came == self.model


def load_edits(path: str | Path) -> Edits:
    """Read a ledger written by ``Edits.save`` or by a run, finished or not.

    Raises:
        InputError: no ledger there, a truncated or foreign file, or a newer schema.
    """
    header, batches = read_ledger(user_path(path, "edits"))
    return Edits(batches, **header)
