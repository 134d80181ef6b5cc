"""What other libraries say beside what a user is to read: hidden, or as one line, for as long as a block lasts."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


@contextmanager
def no_loading_bars() -> Iterator[None]:
    """Hide transformers' bars inside the block where nobody watches: off a terminal they leave half-drawn lines."""
    from transformers.utils import logging as bars  # as slow to import as all of transformers

    hidden = bars.is_progress_bar_enabled() and not sys.stderr.isatty()
    if hidden:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            bars.enable_progress_bar()


#: what is said to programmers, of whom the user of a command is none
FOR_PROGRAMMERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings inside the block as one line of what is said, as commands do, without files and lines of source.

    What is recorded or made an error elsewhere stays so. Lightning sets a format of its own when it is imported, which
    hands on to the one that it found: so the format knows when it is out of use, and is set anew after that import.
    """
    before, at_work = warnings.formatwarning, True

    def one_line(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> str:
        if not at_work:
            return before(message, category, *where, **options)
        return "" if issubclass(category, FOR_PROGRAMMERS) else f"editkit: warning: {' '.join(str(message).split())}\n"

    warnings.formatwarning = one_line
    try:
        yield
    finally:
        at_work = False
        if warnings.formatwarning is one_line:
            warnings.formatwarning = before
