"""Lines of a log: as often as they are due, while one thing takes long too, and never once it has ended."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.progress import Progress

import editkit.utils.progress
from editkit.utils.progress import Heartbeat, ProgressLog, heartbeat, progress_bar


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def log() -> tuple[io.StringIO, Console]:
    text = io.StringIO()
    return text, Console(file=text)


def beats() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "editkit heartbeat"]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def test_a_line_a_minute_whatever_is_told_more_often() -> None:
    (text, console), clock = log(), Clock()
    with Heartbeat(console, clock=clock) as beat:
        for second in range(0, 600, 7):
            clock.now = float(second)
            beat.update(f"{second} facts")
    lines = text.getvalue().splitlines()
    times = [int(m[1]) * 60 + int(m[2]) for line in lines if (m := re.match(r"\[0:(\d\d):(\d\d)\]", line))]
    assert len(times) == len(lines) == 9
    assert all(60 <= later - earlier < 67 for earlier, later in zip([0, *times], times, strict=False))
    assert lines[0] == "[0:01:03] 63 facts"


def test_a_line_comes_while_one_thing_takes_long() -> None:
    text, console = log()
    with Heartbeat(console, "factoring block 3", every=0.01):
        wait_for(lambda: text.getvalue().count("factoring block 3\n") >= 3)
    assert not beats()
    there = text.getvalue()
    time.sleep(0.05)
    assert text.getvalue() == there


def test_it_ends_with_an_error_too() -> None:
    with pytest.raises(KeyError), Heartbeat(log()[1], every=0.01):
        raise KeyError
    assert not beats()


def test_one_within_another_speaks_in_its_place() -> None:
    (text, console), clock = log(), Clock()
    with Heartbeat(console, "fit", clock=clock) as outer:
        clock.now = 50.0
        with Heartbeat(log()[1], "ridge", clock=Clock()) as inner:
            clock.now = 70.0
            outer.update("fit, which waits")
            assert not text.getvalue()
            inner.update("ridge: 1 of 2")
            clock.now = 140.0
            inner.update("ridge: 2 of 2")
        clock.now = 150.0
        outer.update("fit again")
        clock.now = 200.0
        outer.update("fit at last")
    assert text.getvalue().splitlines() == [
        "[0:01:10] ridge: 1 of 2",
        "[0:02:20] ridge: 2 of 2",
        "[0:03:20] fit at last",
    ]


def test_two_threads_do_not_mix() -> None:
    mine, theirs = log(), log()

    def other() -> None:
        with Heartbeat(theirs[1], every=0.0) as beat:
            beat.update("theirs")

    with Heartbeat(mine[1]):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "theirs" in theirs[0].getvalue()
    assert not mine[0].getvalue()


def test_a_log_that_is_closed_ends_no_run() -> None:
    text, console = log()
    with Heartbeat(console, every=0.0) as beat:
        text.close()
        beat.update("further")


def test_off_a_terminal_a_bar_is_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(editkit.utils.progress, "EVERY", 0.0)
    with progress_bar() as bar:
        task = bar.add_task("second moments of block 3", total=8000, unit="tokens")
        bar.update(task, completed=1024)
        time.sleep(0.01)
        bar.advance(task, 1024)
    told = capsys.readouterr()
    assert not told.out
    last = told.err.splitlines()[-1]
    assert re.fullmatch(
        r"\[\d:\d\d:\d\d\] second moments of block 3: 2,048 of 8,000 tokens \(26%\), \d+:\d\d:\d\d left", last
    ), last
    assert not beats()


def test_a_bar_that_is_not_wanted_is_no_lines_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(editkit.utils.progress, "EVERY", 0.0)
    with progress_bar(shown=False) as bar, heartbeat("reading", shown=False) as working_on:
        assert list(bar.track([1, 2], description="edits")) == [1, 2]
        working_on("further")
        time.sleep(0.03)
    assert capsys.readouterr() == ("", "")


def test_the_task_that_is_not_done_is_told() -> None:
    bar = ProgressLog()
    assert bar.line() == ""
    values, scores = bar.add_task("ridge: values", total=4), bar.add_task("ridge: scores", total=14)
    bar.update(scores, completed=14)
    bar.update(values, completed=3)
    assert bar.line() == "ridge: values: 3 of 4 (75%)"
    reading = bar.add_task("reading atlas", total=None)
    assert bar.line() == "reading atlas"
    bar.update(reading, description="writing out")
    assert bar.line() == "writing out"


def test_on_a_terminal_a_bar_is_a_bar_and_lines_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("TTY_COMPATIBLE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(editkit.utils.progress, "EVERY", 0.0)
    monkeypatch.setattr(sys, "stdout", Terminal())
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    assert type(progress_bar()) is Progress
    with heartbeat("reading") as working_on:
        working_on("further")
        assert not beats()
    assert not errors.getvalue()
