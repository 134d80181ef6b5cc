"""How the help of a command looks: what is editkit's comes first, then the trainer's."""

from __future__ import annotations

import argparse
import os
from typing import Any

from editkit.cli.kept_help import keep_help

WIDTH = 80  # whatever the terminal's: types and lists of classes are long, and the text is kept
#: groups of options, by what their names begin with; those of no name are between, and the trainer's are the last
FIRST, LAST = ("model", "data"), ("trainer",)
TITLES = {
    "model": "Editor: the method, its language model and its settings",
    "data": "Facts to edit, and what else is measured",
    "weight_update": "How batches of edits follow each other",
    "evaluation": "How edits are measured",
    "report": "What is shown of a run",
    "second_moment": "Text, how much of it, and where what is found is kept",
    "trainer": "Lightning's Trainer",
}
OPTIONS_GROUPS = ("options", "positional arguments")  # argparse's own


class CommandHelp(argparse.ArgumentParser):
    """A parser's help as one of editkit's commands shows it; goes before a parser's class.

    Attributes:
        command: name of the command.
        example: what stands behind "usage:"; None: all options.
    """

    command: str = ""
    example: str | None = None

    def format_help(self, *args: Any, **options: Any) -> str:
        """The text."""
        for group in self._action_groups:
            group.title = TITLES.get(_root(group), group.title)
        self._action_groups.sort(key=_place)
        self.usage = self.example or self.usage
        width, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), str(WIDTH)  # argparse's own way to be told
        try:
            text = super().format_help(*args, **options)
        finally:
            os.environ.pop("COLUMNS")
            if width is not None:
                os.environ["COLUMNS"] = width
        keep_help(self.command, text)
        return text


def _root(group: Any) -> str:
    """What the names of a group's options begin with: "model" of --model.lm; empty for a group of single options."""
    roots = {action.dest.split(".")[0] for action in group._group_actions}
    return roots.pop() if len(roots) == 1 and group.title not in OPTIONS_GROUPS else ""


def _place(group: Any) -> int:
    root = _root(group)
    if root in FIRST:
        return FIRST.index(root) - len(FIRST)
    return 2 if root in LAST else 0 if group.title in OPTIONS_GROUPS else 1
