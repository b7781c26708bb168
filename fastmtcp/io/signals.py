"""Signals as events of a loop."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence

from fastmtcp.io.loop import Loop

_MANY = 64
"""Signals that came together are told once: each is a byte in the pipe."""

_NOT_ENDING = {
    # Nobody can catch these.
    *(signal.SIGKILL, signal.SIGSTOP),
    # They end nothing.
    *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),
    *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    # Python ignores them: the call that caused them says so.
    *(signal.SIGPIPE, signal.SIGXFSZ),
    # A fault of the program, or the end that a watchdog makes of one that hangs. There is nothing
    # left that could end in order.
    *(signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV),
    *(signal.SIGSYS, signal.SIGTRAP),
    # A terminal was closed, or "read your files again": see hold_back().
    signal.SIGHUP,
}

ENDING = tuple(sorted(signal.valid_signals() - _NOT_ENDING))
"""The signals that end a process unless it catches them, those of real time among them."""


def hold_back() -> None:
    """Let signals that end the process wait until there is a Signals: from now on there is
    something to tidy up. A closed terminal does not end it either."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def let_through() -> None:
    """Signals that end the process come again, and those that have waited now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def leave_to_parent() -> None:
    """In a forked child, with signals held back: its parent hears the same ones and tells it what
    to do. Only SIGTERM, which somebody may send to this process alone, ends it."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


class Signals:
    """Calls `on_signal` on the loop when one of `numbers` has come.

    A handler of Python's own would run between any two statements of whatever is going on. So the
    one that is set does nothing, and the interpreter tells the loop by a pipe
    (signal.set_wakeup_fd). A process has one of these at a time, made on its main thread.
    """

    def __init__(self, loop: Loop, numbers: Sequence[int], on_signal: Callable[[], None]) -> None:
        self._numbers = numbers
        self._on_signal = on_signal
        self._read, self._write = os.pipe()
        for fd in (self._read, self._write):
            os.set_blocking(fd, False)
        for number in numbers:
            signal.signal(number, _wake)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        loop.watch_level(self._read, self._on_event)

    def forget(self) -> None:
        """In a forked child, before anything else: what it is told must not wake the parent. The
        loop's epoll instance is the parent's too, so nothing is taken out of that."""
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)

    def ignore(self) -> None:
        """From now on none of them ends the process. The interpreter gives handlers back before
        it is gone, and a second signal would then end an orderly exit by its default."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)

    def _on_event(self, _mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, _MANY)
        self._on_signal()


def _wake(_number: int, _frame: object) -> None:
    """The signal is told through the pipe."""
