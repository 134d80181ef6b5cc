"""Several processes, one frozen model in each: Lightning's DDP without the wrapper, and errors that all ranks share.

Nothing in editkit is trained by gradient across processes, and ``DistributedDataParallel`` refuses a module without
trainable parameters. What editkit adds up or shares, it does itself through ``torch.distributed``.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed
from typing_extensions import override

from editkit.utils.errors import InputError
from editkit.utils.signals import tell_too

T = TypeVar("T")
SHARED = "shared_by_all_ranks"  # attribute of an error that rank 0 has too, so that others need not print it


class UnwrappedDDP(DDPStrategy):
    """Starts and joins processes as DDP does, and leaves the module as it is."""

    @override
    def setup_environment(self) -> None:
        super().setup_environment()
        here = platform.node()
        tell_too(process for node, process in gather((here, os.getpid())) if node == here)

    @override
    def configure_ddp(self) -> None:
        pass


def on_device(device: torch.device) -> dict[str, Any]:
    """A Trainer's options to run on just this device, leaving no files."""
    return {
        "accelerator": "cpu" if device.type == "cpu" else "gpu",
        "devices": 1 if device.index is None else [device.index],
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }


def with_strategy(options: Mapping[str, Any]) -> dict[str, Any]:
    """A Trainer's options, with ``UnwrappedDDP`` where they ask for several processes by "auto" or "ddp".

    >>> type(with_strategy({"devices": 2, "accelerator": "cpu"})["strategy"]).__name__
    'UnwrappedDDP'
    >>> with_strategy({"devices": 1})
    {'devices': 1}
    """
    strategy = options.get("strategy") or "auto"
    several = processes(options.get("devices", 1), options.get("accelerator", "auto")) > 1
    if strategy in ("auto", "ddp") and (several or int(options.get("num_nodes") or 1) > 1):
        return {**options, "strategy": UnwrappedDDP()}
    return dict(options)


def processes(devices: Any, accelerator: str) -> int:
    """How many processes a Trainer's ``devices`` ask for; 1 where it is not said."""
    if isinstance(devices, (list, tuple)):
        return len(devices)
    text = str(devices).strip()
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    if text in ("auto", "-1"):  # on the CPU Lightning then takes one process
        return 1 if accelerator == "cpu" else torch.cuda.device_count()
    return int(text) if text.isdigit() else 1


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of processes: (0, 1) where there is only one."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def raise_on_all_ranks(error: BaseException | None) -> None:
    """Exchange errors between ranks: one rank's error is raised on all of them. Every rank must call it.

    Args:
        error: this rank's error, or None.

    Raises:
        BaseException: this rank's own ``error``.
        InputError: another rank's bad input, with its message.
        RuntimeError: another rank's other error, with its message and rank.
    """
    world = rank_and_size()[1]
    if world > 1:
        errors: list[Any] = [None] * world
        bad_input = isinstance(error, InputError)
        distributed.all_gather_object(errors, None if error is None else (bad_input, type(error).__name__, str(error)))
        if error is None:
            for other, came in enumerate(errors):
                if came is not None:
                    error = InputError(came[2]) if came[0] else RuntimeError(f"rank {other}: {came[1]}: {came[2]}")
                    break
        if error is not None:
            setattr(error, SHARED, True)
    if error is not None:
        raise error


def reported_by_rank_zero(error: BaseException) -> bool:
    """Whether an error need not be printed here, because rank 0 prints it."""
    return getattr(error, SHARED, False) and rank_and_size()[0] != 0


def gather(value: T) -> list[T]:
    """Every rank's value, by rank, on every rank; tensors are expected on the CPU."""
    world = rank_and_size()[1]
    if world == 1:
        return [value]
    found: list[Any] = [None] * world
    distributed.all_gather_object(found, value)
    return found


def broadcast_object(value: T) -> T:
    """Rank 0's value, on every rank."""
    if rank_and_size()[1] == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
