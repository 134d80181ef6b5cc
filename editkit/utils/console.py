"""The one way to make a rich Console: as rich does on a terminal; whole lines and no colours anywhere else."""

from __future__ import annotations

import sys

from rich.console import Console

WIDE = 1 << 20  # columns where nobody looks: no table and no line of a run comes near


def console(stderr: bool = False) -> Console:
    """A console on standard output, or on standard error.

    On a terminal, and in a notebook, it is rich's own. Off a terminal (a file, a pipe, a job's log) nothing is wrapped,
    cut or coloured whatever the length: what is there is read by scripts and copied by people. ``COLUMNS`` then counts
    for nothing, and neither does ``FORCE_COLOR``.

    Args:
        stderr: write to standard error.

    >>> console().print("run folder: " + 30 * "long/")  # doctests are captured, which is no terminal
    run folder: long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/
    """  # noqa: E501
    terminal = Console(stderr=stderr, emoji=False)
    stream = sys.stderr if stderr else sys.stdout
    if terminal.is_jupyter or (terminal.is_terminal and stream.isatty()):
        return terminal
    return Console(
        stderr=stderr,
        emoji=False,
        force_terminal=False,
        color_system=None,
        highlight=False,
        soft_wrap=True,
        width=WIDE,
        height=100,  # rich takes a width as given only with a height beside it
        legacy_windows=False,
    )


def interactive() -> bool:
    """Whether standard output is watched, on a terminal or in a notebook, so that bars can move there."""
    shown = console()
    return shown.is_terminal or shown.is_jupyter


def print_line(where: Console, text: str) -> None:
    """Print one line that a person may copy: the terminal wraps it, not rich, and brackets in it are not markup.

    >>> print_line(console(), "run folder: runs/[bold]")
    run folder: runs/[bold]
    """
    where.print(text, highlight=False, markup=False, soft_wrap=True)
