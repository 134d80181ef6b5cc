"""Signals that ask a command to stop: it ends at once where nothing is at work, else at a safe point, with one line.

Whatever editkit writes appears whole or not at all, and a run goes on from what is there. So a command may end almost
anywhere, and the handler raises ``Stopped`` in the main thread wherever that is. ``hold`` is for the few blocks that
are to be finished first. A thread of its own sees each signal at the same time: it passes it on to the processes of
the same run, and ends the process where the main thread does not come to it, as in a factorisation that takes minutes,
in an exchange with a process that is gone, or where something swallowed the exception.

Outside ``stopping``, which the command line alone uses, nothing here does anything.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

#: SIGUSR1 announces a pre-emption on clusters
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
AGAIN = 2.0  # seconds after which one more signal means at once; timeout and terminals send theirs twice in a row
UNANSWERED, UNWINDING, HELD = 5.0, 10.0, 25.0  # seconds; clusters kill after 30
PARENT = "EDITKIT_PARENT_PROCESS"  # by which a process that Lightning starts for a further device knows who did


class Stopped(BaseException):
    """The process was asked to stop. No ``Exception``, so that nothing that handles errors takes it for one."""


class Stop:
    """What is known of the wish to stop this process.

    Attributes:
        signal: the signal that came; None as long as there is none.
        advice: how to go on; a function where that depends on when it is asked.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.advice: str | Callable[[], str] = "nothing was at work yet; the same command begins again"
        self._at_once = True
        self._raised = False
        self._held = 0
        self._trainers: list[Any] = []
        self._others: set[int] = set()
        self._leaving, self._passing = threading.RLock(), threading.Lock()  # a second signal interrupts the handler
        self._told = False
        further = os.environ.get("LOCAL_RANK", "0") != "0" and os.environ.get(PARENT) == str(os.getppid())
        self._parent = os.getppid() if further else None

    def begin(self) -> None:
        """From now on there is something at work: end by an exception, so that it can tidy up."""
        self._at_once = False

    def done(self) -> None:
        """All is done, and the process about to end."""
        if self.signal is None:
            self._at_once, self.advice = True, "it was done"

    @property
    def code(self) -> int:
        """The exit code, 128 and the signal's number.

        0 of a process that Lightning started: what it ends with is the first one's affair, which is stopped too, and
        which Lightning would kill for any other code.
        """
        assert self.signal is not None
        return 0 if self._parent is not None else 128 + self.signal

    def line(self) -> str:
        """The line for standard error, once; nothing in a process that is not the run's first."""
        assert self.signal is not None
        rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
        if self._told or self._parent is not None or rank != "0":
            return ""
        self._told = True
        advice = self.advice if isinstance(self.advice, str) else self.advice()
        return f"editkit: stopped by {self.signal.name}; {advice}\n"

    def check(self) -> None:
        """Raise ``Stopped`` if that was asked for and has not happened."""
        if self.signal is not None and not self._held and not self._raised:
            self._raised = True
            raise Stopped

    def leave(self, number: int) -> None:
        """End the process here and now."""
        if not self._leaving.acquire(blocking=False):
            threading.Event().wait()  # the other thread is at it
        self._pass_on(number)
        self.signal = signal.Signals(number)
        with suppress(OSError):
            if os.isatty(1):
                os.write(1, b"\x1b[?25h\n")  # a bar on a terminal has hidden the cursor
            os.write(2, self.line().encode(errors="replace"))
        os._exit(self.code)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler, in the main thread."""
        if self._at_once:
            self.leave(number)
        self._pass_on(number)
        if self.signal is None:
            self.signal = signal.Signals(number)
            self.check()

    def watch(self, ear: socket.socket) -> None:
        """See signals while the main thread may be where no handler is run."""
        first, since = 0, 0.0
        while True:
            ear.settimeout(0.2 if first else None)
            try:
                heard = ear.recv(64)
            except TimeoutError:
                heard = b"\0"
            except OSError:
                return
            if not heard:
                return
            now = time.monotonic()
            for number in filter(SIGNALS.__contains__, heard):
                if self._at_once or (first and now - since > AGAIN):
                    self.leave(number)
                if not first:
                    first, since = number, now
                    self._pass_on(number)
            limit = HELD if self._held else UNWINDING if self.signal is not None else UNANSWERED
            if first and now - since > limit:
                self.leave(first)

    def _pass_on(self, number: int) -> None:
        """Tell the run's other processes on this machine, once: whoever comes first, either thread, before it ends."""
        if not self._passing.acquire(blocking=False):
            return
        for process in {*self._others, *filter(None, [self._parent])}:
            with suppress(OSError):
                os.kill(process, number)
        for trainer in self._trainers:
            with suppress(OSError):
                if (launcher := trainer.strategy.launcher) is not None:
                    launcher.kill(number)


_stop: Stop | None = None
_watches_forks = False


@contextmanager
def stopping(until_exit: bool = False) -> Iterator[Stop]:
    """Let signals stop this process while the block runs; any exception that ends it after one is the end of it.

    SIGTERM, SIGINT and SIGUSR1 are taken even where they were ignored: shells start what is in the background so.
    In a thread that is not the main one, nothing is installed.

    Args:
        until_exit: leave the handlers where they are after the block, which is the last thing that the process does.

    Yields:
        What is known; its ``signal`` tells after the block whether one came.
    """
    global _stop, _watches_forks
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    thread = threading.Thread(target=stop.watch, args=(ear,), name="editkit signals", daemon=True)
    thread.start()
    outer, before = _stop, {number: signal.getsignal(number) for number in SIGNALS}
    parent = os.environ.get(PARENT)
    wakeup = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    _stop = stop
    if not _watches_forks:
        os.register_at_fork(before=_block, after_in_child=_forget, after_in_parent=_unblock)
        _watches_forks = True
    if until_exit:
        atexit.register(_ignore)  # the first to be registered is the last to be called
    try:
        for number in SIGNALS:
            signal.signal(number, stop.handle)
        os.environ[PARENT] = str(os.getpid())
        yield stop
    except BaseException:
        if stop.signal is None:
            raise
    finally:
        if until_exit:
            stop.done()
        else:
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            mouth.close()  # which ends the thread
            thread.join()
            ear.close()
            _stop = outer
            os.environ.pop(PARENT)
            if parent is not None:
                os.environ[PARENT] = parent


def _ignore() -> None:
    """Let the interpreter, all but gone, give the exit code that is due: it would put the system's handlers back."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


_blocked = threading.local()


def _block() -> None:
    """Before a copy of this process is made, which hears of no signal until it has left this one's socket alone."""
    _blocked.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if _stop is not None else None


def _unblock() -> None:
    if getattr(_blocked, "before", None) is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _blocked.before)


def _forget() -> None:
    """In the copy: end as any process does."""
    global _stop
    if _stop is not None:
        _stop = None
        with suppress(ValueError):  # made by another thread, in which that cannot be set
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
    _unblock()


@contextmanager
def hold() -> Iterator[None]:
    """Finish the block before a signal stops the process, if that takes no longer than ``HELD`` seconds."""
    stop = _stop
    if stop is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    stop._held += 1
    try:
        yield
    finally:
        stop._held -= 1
    stop.check()


def stop_requested() -> int | None:
    """The signal by which this process was asked to stop, for blocks that ``hold``."""
    return None if _stop is None or _stop.signal is None else int(_stop.signal)


def stop_by(number: int) -> None:
    """End as if the signal had come here: of several processes, one was asked to stop."""
    if _stop is not None:
        _stop.signal = signal.Signals(number)
        _stop._raised = True
    raise Stopped


def advise(how: str | Callable[[], str]) -> None:
    """Set what the line says of how to go on, from here on."""
    if _stop is not None:
        _stop.advice = how


def leave_signals(trainer: Any) -> None:
    """Keep a Trainer from installing handlers of its own, for which Lightning (2.6) has no option.

    They note a SIGTERM for loops that may never look (``predict``, an evaluation of one batch), exchange messages with
    other processes from within the handler, and on SLURM write a checkpoint of all weights where the ledger is the
    checkpoint. The processes that the Trainer starts are told of signals by ``Stop``.
    """
    if (connector := getattr(trainer, "_signal_connector", None)) is not None:
        connector.register_signal_handlers = _nothing
    if _stop is not None:
        _stop._trainers.append(trainer)


def tell_too(processes: Iterable[int]) -> None:
    """Pass signals on to these processes of the same run."""
    if _stop is not None:
        _stop._others |= {process for process in processes if process != os.getpid()}


def _nothing() -> None:
    pass


def end(stop: Stop) -> int:
    """Print the line, and return the exit code; of several processes, leave without waiting for the others."""
    sys.stdout.flush()
    sys.stderr.write(stop.line())
    sys.stderr.flush()
    several = any(name in os.environ for name in ("RANK", "WORLD_SIZE")) or stop._parent is not None
    if several or any(getattr(trainer, "world_size", 1) > 1 for trainer in stop._trainers):
        os._exit(stop.code)
    return stop.code
