"""What other libraries say: warnings as one line where a command runs, as ever elsewhere."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest
from transformers.utils import logging as bars

from editkit.cli.main import main
from editkit.utils.quiet import no_loading_bars

PROGRAM = """
import warnings
from editkit.utils.quiet import plain_warnings

with plain_warnings():
    warnings.warn("two\\n  lines")
    warnings.warn("for programmers", FutureWarning)
    ours = warnings.formatwarning
    warnings.formatwarning = lambda *args, **options: "other: " + ours(*args, **options)  # as Lightning's import does
    with plain_warnings():
        warnings.warn("inner")
    warnings.warn("between")
warnings.warn("after")
"""


def test_warnings_are_one_line_inside_the_block_alone() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [
        "editkit: warning: two lines",
        "editkit: warning: inner",
        "other: editkit: warning: between",
        "other: <string>:13: UserWarning: after",
    ]


@pytest.mark.parametrize("place", ["editkit.cli.fit.EditkitCLI", "editkit.cli.export.export_parser"])
def test_commands_show_warnings_so(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def command(*args: Any, **options: Any) -> None:
        said.append(warnings.formatwarning(UserWarning("one\ntwo"), UserWarning, "file.py", 7))
        raise SystemExit(0)

    monkeypatch.setattr(place, command)
    with pytest.raises(SystemExit):
        main([place.split(".")[2]])
    assert said == ["editkit: warning: one two\n"]
    assert "file.py" in warnings.formatwarning(UserWarning("one"), UserWarning, "file.py", 7)


def test_loading_bars_are_hidden_off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with no_loading_bars():
        assert not bars.is_progress_bar_enabled()
    assert bars.is_progress_bar_enabled()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with no_loading_bars():
        assert bars.is_progress_bar_enabled()
