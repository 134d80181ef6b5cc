"""Options of Lightning's Trainer that do not go with editing: refused, before they quietly edit or measure less."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from editkit.utils.distributed import processes
from editkit.utils.errors import InputError, shorten

_ALL = (None, 1.0)  # of a limit: 1 would be one batch
_FEWER = "give data.num_facts for a shorter run"
#: per option, the values that it may have and what to do instead
_ANY_COMMAND: dict[str, tuple[tuple[Any, ...], str]] = {
    "fast_dev_run": ((False, 0), _FEWER),
    "overfit_batches": ((0, 0.0), _FEWER),
    "barebones": ((False,), "leave it out"),
    "precision": ((None, 32, "32", "32-true"), "the weights stay as they are read: give model.dtype instead"),
    "use_distributed_sampler": ((False,), "leave it out: each process has its share already"),
    "enable_checkpointing": ((None, False), "leave it out: the run folder and the second moments are what is kept"),
}
_VALIDATE = {"limit_val_batches": (_ALL, _FEWER)}
_FIT = {
    "limit_val_batches": ((*_ALL, 0, 0.0), "0 measures nothing; anything else would measure a part of the facts"),
    "limit_train_batches": (_ALL, "every step of a batch of edits is needed: " + _FEWER),
    "max_steps": ((-1,), "a batch of edits is whole or not made: " + _FEWER),
    "max_time": ((None,), "a batch of edits is whole or not made: " + _FEWER),
    "check_val_every_n_epoch": ((None, 1), "each batch of edits is measured once; give data.probe_every for probes"),
    "val_check_interval": ((None, 1.0), "each batch of edits is measured once; give data.probe_every for probes"),
    "accumulate_grad_batches": ((None, 1), "value vectors are found without it: leave it out"),
    "gradient_clip_val": ((None,), "value vectors are found without it: give model.values.clamp"),
    "gradient_clip_algorithm": ((None,), "value vectors are found without it: give model.values.clamp"),
    "reload_dataloaders_every_n_epochs": ((1,), "each batch of edits has facts of its own: leave it out"),
    "num_sanity_val_steps": ((0,), "the unedited model is measured in any case: leave it out"),
}
_LESS_TEXT = "give second_moment.num_tokens for less text"
_COVARIANCE = {
    "fast_dev_run": (_ANY_COMMAND["fast_dev_run"][0], _LESS_TEXT),
    "overfit_batches": (_ANY_COMMAND["overfit_batches"][0], _LESS_TEXT),
    "precision": (_ANY_COMMAND["precision"][0], "the weights stay as they are read: give dtype instead"),
    "limit_predict_batches": (_ALL, _LESS_TEXT),
}
RULES = {
    "fit": {**_ANY_COMMAND, **_FIT},
    "validate": {**_ANY_COMMAND, **_VALIDATE},
    "covariance": {**_ANY_COMMAND, **_COVARIANCE},
}


def check_trainer(options: Mapping[str, Any], command: str) -> None:
    """Raise an ``InputError`` where options would edit, measure or count less than was asked for, or cannot be met.

    Args:
        options: of the Trainer, by name.
        command: "fit", "validate" or "covariance".

    >>> check_trainer({"limit_train_batches": 0}, "fit")
    Traceback (most recent call last):
    ...
    editkit.utils.errors.InputError: trainer.limit_train_batches: expected null or 1.0, but got 0; every step of a \
batch of edits is needed: give data.num_facts for a shorter run
    """
    for name, (allowed, instead) in RULES[command].items():
        if name in options and not any(type(options[name]) is type(a) and options[name] == a for a in allowed):
            expected = " or ".join(dict.fromkeys("null" if a is None else str(a).lower() for a in allowed))
            raise InputError(f"trainer.{name}: expected {expected}, but got {shorten(options[name])}; {instead}")
    epochs = options.get("max_epochs")
    if command == "fit" and epochs is not None and epochs != -1 and epochs < 1:
        raise InputError(
            f"trainer.max_epochs: expected -1 or the number of batches of edits to make, but got {epochs}; leave it out"
        )
    strategy = options.get("strategy")
    if isinstance(strategy, str) and strategy not in ("auto", "ddp"):
        raise InputError(
            f"trainer.strategy: expected auto or ddp, a whole model in each process, but got {strategy!r}; leave it out"
        )
    _check_devices(options.get("accelerator", "auto"), options.get("devices", "auto"))


def _check_devices(accelerator: Any, devices: Any) -> None:
    if not isinstance(accelerator, str):
        return
    there = [
        name
        for name in AcceleratorRegistry.available_accelerators()
        if AcceleratorRegistry[name]["accelerator"].is_available()
    ]
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and there == ["cpu"])
    known = ["auto", *there, *(["gpu"] if {"cuda", "mps"} & set(there) else [])]
    if accelerator not in known:
        raise InputError(
            f"trainer.accelerator: expected one that this machine has, {' or '.join(known)}, but got "
            f"{accelerator!r}; leave it out"
        )
    most = max(2, os.cpu_count() or 1)
    if on_cpu and processes(devices, "cpu") > most:
        raise InputError(
            f"trainer.devices: expected at most {most} processes on this machine's cores, but got {devices}; lower it"
        )


@contextmanager
def refused_by_lightning(command: str) -> Iterator[None]:
    """What Lightning refuses of a Trainer's options inside the block, as an ``InputError``."""
    try:
        yield
    except (MisconfigurationException, ModuleNotFoundError, TypeError, ValueError) as error:
        raise InputError(f"trainer: {error}; correct it, or see editkit {command} --help") from error
