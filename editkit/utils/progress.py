"""How far something is: a bar on a terminal, and in a log that is none a line at least once a minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TaskID
from typing_extensions import override

from editkit.utils.console import console, interactive, print_line

EVERY = 60.0  # seconds between two lines


class Heartbeat:
    """Lines that say what a run is at, one as often as ``every`` seconds, until the ``with`` block ends.

    ``update`` says what it is at now and prints it if a line is due. A thread prints what was said last where nothing
    new comes in time, such as during a long factorisation; it ends with the block. A heartbeat within another's block
    speaks in its place, in the outer one's time and console.

    Args:
        console: where lines go.
        text: what the run is at, until ``update`` says otherwise.
        every: seconds from one line to the next, and to the first; default 60.
        clock: seconds.

    >>> import io
    >>> now = iter((0.0, 59.0, 61.0, 61.0))
    >>> log = Console(file=io.StringIO())
    >>> with Heartbeat(log, every=60.0, clock=lambda: next(now)) as beat:
    ...     for done in (1, 2, 3):
    ...         beat.update(f"{done} of 3 facts")
    >>> log.file.getvalue()
    '[0:01:01] 2 of 3 facts\\n'
    """

    def __init__(
        self,
        console: Console,
        text: str = "at work",
        every: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console, self.text, self.clock = console, text, clock
        self.every = EVERY if every is None else every
        self._outermost: Heartbeat | None = None  # itself where it is in no other's block; None: not begun
        self._within: list[Heartbeat] = []  # of the outermost: those at work, the innermost last
        self._lock = threading.RLock()
        self._end = threading.Event()

    def start(self) -> None:
        """Begin; what ``with`` does."""
        if self._outermost is not None:
            return
        self._outermost = _outermost.get() or self
        with self._outermost._lock:
            self._outermost._within.append(self)
        if self._outermost is self:
            _outermost.set(self)
            self._began = self._last = self.clock()
            self._end.clear()
            self._thread = threading.Thread(target=self._watch, name="editkit heartbeat", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End, and wait until the thread has; what the end of ``with`` does."""
        if self._outermost is None:
            return
        with self._outermost._lock:
            self._outermost._within.remove(self)
        if self._outermost is self:
            self._end.set()
            self._thread.join()
            _outermost.set(None)
        self._outermost = None

    def update(self, text: str) -> None:
        """Say what the run is at."""
        self.text = text
        if self._outermost is not None and self._outermost._within[-1:] == [self]:
            self._outermost._print_if_due()

    def _watch(self) -> None:
        wait = self.every
        while not self._end.wait(wait):
            # not less, so that a clock that stands still does not keep a core busy
            wait = max(0.01, self._print_if_due())

    def _print_if_due(self) -> float:
        """Print a line if the last one is ``every`` seconds old; returns the seconds until the next is due."""
        with self._lock:
            now = self.clock()
            if now - self._last >= self.every:
                self._last = now
                text = self._within[-1].text if self._within else self.text
                with suppress(OSError, ValueError):  # a log that is full or closed ends no run
                    print_line(self.console, f"[{timedelta(seconds=int(now - self._began))}] {text}")
            return self.every - (now - self._last)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


#: of this thread, so that two runs in two threads do not mix
_outermost: ContextVar[Heartbeat | None] = ContextVar("outermost", default=None)


@contextmanager
def heartbeat(text: str, shown: bool = True) -> Iterator[Callable[[str], None]]:
    """Lines of a log while the block runs; nothing on a terminal.

    Args:
        text: what it is at.
        shown: False for nothing at all.

    Yields:
        What is to be told when it is at something else.
    """
    if not shown or interactive():
        yield lambda text: None
        return
    with Heartbeat(console(stderr=True), text) as beat:
        yield beat.update


class ProgressLog(Progress):
    """rich's ``Progress`` for a log that is no terminal: a line at least once a minute instead of a bar.

    A task's field ``unit`` says what is counted.

    Args:
        columns: unused here.
        shown: False for no lines.
    """

    def __init__(self, *columns: str | ProgressColumn, shown: bool = True) -> None:
        # long enough for a speed where one step takes minutes
        super().__init__(*columns, console=console(), disable=True, speed_estimate_period=1800.0)
        self._beat = Heartbeat(console(stderr=True)) if shown else None

    @override
    def start(self) -> None:
        if self._beat is not None:
            self._beat.start()

    @override
    def stop(self) -> None:
        if self._beat is not None:
            self._beat.stop()

    @override
    def add_task(self, description: str, *args: Any, **options: Any) -> TaskID:
        task = super().add_task(description, *args, **options)
        self._tell()
        return task

    @override
    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._tell()

    @override
    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._tell()

    def _tell(self) -> None:
        if self._beat is not None and (line := self.line()):
            self._beat.update(line)

    def line(self) -> str:
        """The task at work: what, how much of it, and the time left."""
        open_tasks = [task for task in self.tasks if not task.finished] or self.tasks
        if not open_tasks:
            return ""
        task = open_tasks[-1]
        text = task.description
        unit = f" {task.fields['unit']}" if "unit" in task.fields else ""
        if task.total:
            text += f": {task.completed:,.0f} of {task.total:,.0f}{unit} ({task.percentage:.0f}%)"
        elif task.completed:
            text += f": {task.completed:,.0f}{unit}"
        if task.time_remaining:
            text += f", {timedelta(seconds=int(task.time_remaining))} left"
        return text


def progress_bar(*columns: str | ProgressColumn, shown: bool = True, transient: bool = True) -> Progress:
    """A bar where standard output is a terminal, else lines on standard error.

    Args:
        columns: the bar's columns; default rich's.
        shown: False for neither.
        transient: the bar leaves nothing behind.
    """
    if interactive():
        return Progress(*columns, console=console(), transient=transient, disable=not shown)
    return ProgressLog(*columns, shown=shown)
