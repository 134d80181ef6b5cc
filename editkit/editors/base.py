"""The editor: what every way of editing a model has in common.

One epoch is one batch of edits; one training step is handed some of its facts. What the editor makes of them is an
``Edit``, which the ``WeightUpdate`` callback applies after the epoch's last step and keeps in the ledger.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import is_dataclass
from importlib.metadata import version
from inspect import signature
from typing import Any, Literal, get_type_hints

import lightning as L
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from editkit.atlas.builtin import DEFAULT
from editkit.data.facts import Fact
from editkit.data.plan import RunPlan
from editkit.edits import Edit
from editkit.models.content import name_of
from editkit.models.editable import EditableModel
from editkit.models.gradients import parameter_gradients
from editkit.models.loading import load_language_model
from editkit.utils.errors import InputError
from editkit.utils.numbers import check_numbers


def setting(value: Any) -> Any:
    """A setting as JSON values, the same in every process: with its class, where that is one of several to choose."""
    if isinstance(value, (list, tuple)):
        return [setting(item) for item in value]
    if isinstance(value, Editor):
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **setting(dict(value.hparams))}
    if isinstance(value, dict):
        return {name: setting(item) for name, item in value.items()}
    if value is None or isinstance(value, (str, int, float)) or callable(value):
        return value
    own = {name: setting(item) for name, item in vars(value).items() if not name.startswith("_")}
    kind = type(value)
    chosen = not all(is_dataclass(base) for base in kind.__mro__[:-1])
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **own} if chosen else own


class Editor(L.LightningModule):
    """Base of all editors. A subclass overrides ``edit``, and what it needs of the other methods.

    State that belongs to one model is set in ``attach``, and what belongs to one run in ``prepare``: an editor may be
    used again, on another model too. The model's weights are as they were whenever one of these methods returns.

    Args:
        lm: language model to edit: "atlas" (shipped), a checkpoint folder, or a Hugging Face hub name.
        dtype: dtype of the model's weights: float32, bfloat16 or float16.

    Example:
        An editor that makes one gradient step on one parameter::

            class GradientStep(editkit.Editor):
                def __init__(self, parameter: str, lr: float = 0.1, **kwargs: Any) -> None:
                    super().__init__(**kwargs)
                    self.parameter, self.lr = parameter, lr

                def edit(self, batch: Sequence[Fact]) -> WeightEdit:
                    gradient = self.gradients(batch, [self.parameter])[self.parameter]
                    return WeightEdit(deltas={self.parameter: DenseDelta(-self.lr * gradient)})
    """

    #: facts that one edit can take, None for any number
    max_batch_size: int | None = None
    #: whether several processes each get a share of a batch's facts in ``training_step``; else each gets all of them
    shards_facts: bool = False
    #: what is done about facts that contradict earlier ones: "keep" or "drop" them, which a warning says, or "fail"
    dependent: Literal["keep", "drop", "fail"] = "keep"

    def __init__(self, lm: str = DEFAULT, dtype: str = "float32") -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "editor", "residual"], logger=False)
        self.automatic_optimization = False
        self.lm, self.dtype_name = lm, dtype
        self.language_model: PreTrainedModel | None = None

    # ---------------------------------------------------------------- the model

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Use a model already in memory instead of loading ``lm``; forget all that was of another one."""
        self.language_model, self.tokenizer = model, tokenizer
        self.editable = EditableModel(model, tokenizer)
        self.lm, self.dtype_name = name_of(model), str(model.dtype).removeprefix("torch.")

    @override
    def configure_model(self) -> None:
        """Load the language model once."""
        if self.language_model is None:
            self.attach(*load_language_model(self.lm, self.dtype_name))

    def about(self) -> dict[str, Any]:
        """What the ledger keeps of this editor (JSON values): class, hyperparameters, versions. A run is resumed only
        by an editor of which it says the same.
        """
        settings = {name: setting(value) for name, value in self.hparams.items()}
        return {
            "editor": f"{type(self).__module__}.{type(self).__qualname__}",
            "hyperparameters": settings | {"lm": self.lm, "dtype": self.dtype_name},
            "versions": {name: version(name) for name in ("editkit", "torch", "transformers")},
        }

    # ---------------------------------------------------------------- what a method overrides

    @property
    def needs_tuning(self) -> bool:
        """Whether ``prepare`` chooses settings by ``plan.tuning``, which is left out of what is reported."""
        return False

    @classmethod
    def missing(cls) -> str:
        """The method that a class leaves to its subclasses to define, without which it is no method; else empty."""
        return "edit" if cls.edit is Editor.edit else ""

    def check_settings(self) -> None:
        """Raise an ``InputError`` for settings that go with no model; called before one is read.

        Numbers are checked here by the types of the arguments; extend it for what else can be told so early.
        """
        if self.missing() == "edit":
            raise InputError(
                f"model: expected an editor, but {type(self).__name__} is the base of editors and makes no edit; "
                "choose editkit.EMMET, editkit.MEMIT, editkit.ROME or a subclass with a method edit"
            )
        hints: dict[str, Any] = {}
        left_out: set[str] = set()  # None by default, whatever their types say
        for base in reversed(type(self).__mro__):
            with contextlib.suppress(KeyError, NameError, TypeError):  # of an __init__ without, or with unknown types
                hints |= get_type_hints(base.__dict__["__init__"])
                left_out |= {n for n, p in signature(base.__dict__["__init__"]).parameters.items() if p.default is None}
        check_numbers({n: v for n, v in self.hparams.items() if v is not None or n not in left_out}, hints, "model")

    def check(self, plan: RunPlan) -> None:
        """Raise an ``InputError`` where settings do not go with the plan; called before anything is measured."""

    def prepare(self, plan: RunPlan) -> None:
        """Get ready for a run, once before its first batch: second moments, a null space, a trained network.

        Whatever ``observe`` gathers begins anew here.
        """

    def findings(self) -> dict[str, Any]:
        """What ``prepare`` found out (JSON values): kept in the ledger, and ``plan.findings`` of a resumed run."""
        return {}

    @override
    def training_step(self, batch: list[Fact], batch_idx: int) -> None:
        """Find something out about some of the batch's facts, those that share a key together; may do nothing."""

    def synchronize(self) -> None:
        """Bring together what several processes found; called on each of them before ``edit``, which rank 0 makes."""

    def edit(self, batch: Sequence[Fact]) -> Edit:
        """The change for a batch of edits, from what was found in its training steps."""
        raise TypeError(f"{type(self).__name__} must override edit(batch)")

    def observe(self, edit: Edit) -> None:
        """Take note of an edit that now acts on the model: state for the next batches.

        Called after each of several sequential batches, and for those of the ledger where a run is resumed or a batch
        is undone, after ``prepare``. An independent batch knows of no others, and is not observed.
        """

    # ---------------------------------------------------------------- at hand for subclasses

    def gradients(self, facts: Sequence[Fact], parameters: Sequence[str]) -> dict[str, torch.Tensor]:
        """Gradient of the facts' mean target NLL by parameters, (d_out, d_in) of linear maps, else as they are."""
        prompts, targets = [fact.text() for fact in facts], [fact.target_new for fact in facts]
        return parameter_gradients(self.editable, self.tokenizer, prompts, targets, parameters)

    def show_progress(self, done: int, loss: float, probability: float) -> None:
        """Tell the progress bar of the present batch: facts done, mean loss (nats) and probability of the target."""
        bar = self._trainer.progress_bar_callback if self._trainer is not None else None
        if (show := getattr(bar, "show", None)) is not None:
            show(done, loss, probability)

    # ---------------------------------------------------------------- Lightning

    @override
    def configure_optimizers(self) -> Any:
        return None

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # facts and rows are text

    @override
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Nothing of the editor's: the ``Evaluation`` callback measures the rows."""
