"""Keeping Lightning's chatter out of runs that editkit starts by itself, for as long as they last."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# said of loops and loaders that are meant as they are
NOT_MEANT_FOR_USERS = (
    ".*does not have many workers.*",
    ".*predict returned None.*",
    ".*You have overridden `transfer_batch_to_device`.*",
    ".*in eval mode at the start of training.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*LightningCLI's args parameter.*",
    ".*configure_optimizers` returned `None`.*",  # of editors that take no gradient steps
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide Lightning's hints and the warnings above inside the block; everything is as before after it."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in NOT_MEANT_FOR_USERS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(level)
