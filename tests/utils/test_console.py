"""Off a terminal nothing that is copied or read by scripts is wrapped, cut or coloured; on one rich decides."""

from __future__ import annotations

import io
import sys

import pytest
from rich.table import Table

from editkit.utils.console import console, interactive, print_line

PATH = "/".join(["", *(f"folder-{i:04d}" for i in range(25))])  # 300 characters
assert len(PATH) == 300


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(params=["", "20", "40"])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whatever the environment says of a terminal that is not there."""
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "JUPYTER_COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    if request.param:
        monkeypatch.setenv("COLUMNS", request.param)
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    return str(request.param)


@pytest.mark.parametrize("stderr", [False, True])
def test_a_line_is_one_line_off_a_terminal(columns: str, stderr: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr" if stderr else "stdout", log)
    print_line(console(stderr), f"run folder: {PATH} has 1 of 4 batches: going on")
    console(stderr).print(f"[bold]run folder[/bold]: {PATH} has 2 of 4 batches")
    assert log.getvalue().splitlines() == [
        f"run folder: {PATH} has 1 of 4 batches: going on",
        f"run folder: {PATH} has 2 of 4 batches",
    ]


def test_a_table_is_whole_off_a_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stdout", log)
    table = Table(title=f"second moments in {PATH}", title_justify="left")
    table.add_column("where", overflow="ellipsis")
    table.add_column("two\nlines", justify="right")
    table.add_row(PATH, "1,000")
    console().print(table)
    lines = log.getvalue().splitlines()
    assert lines[0] == f"second moments in {PATH}"
    assert sum(PATH in line for line in lines) == 2
    assert "\x1b" not in log.getvalue()
    assert "…" not in log.getvalue()
    assert max(map(len, lines)) < 400  # as wide as what is in it, not as what it may take


def test_what_looks_like_markup_is_printed_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stdout", log)
    print_line(console(), "run folder: runs/[bold]/[/nothing]/:smile:")
    assert log.getvalue() == "run folder: runs/[bold]/[/nothing]/:smile:\n"


def test_on_a_terminal_rich_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert interactive()
    console().print("[bold]word[/bold] " * 20)
    lines = terminal.getvalue().splitlines()
    assert len(lines) > 1
    assert "\x1b[1mword" in lines[0]
    terminal.truncate(0)
    print_line(console(), PATH)  # the terminal wraps it, so that it is copied whole
    assert PATH in terminal.getvalue()


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_a_variable_makes_no_terminal_of_a_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not interactive()
