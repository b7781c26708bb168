"""What the loop answers to another thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Answer(Generic[T]):
    """A result or an error, set once by the loop, for any number of threads that wait for it.

    Not a concurrent.futures.Future: a thread that waits for one holds its lock for moments, and an
    exception from a signal handler (KeyboardInterrupt, an alarm) in such a moment leaves it locked,
    and the loop then waits for ever. Here the loop takes no lock, and every step of the others is
    either done or not (an append, a pop, acquiring a lock).
    """

    __slots__ = ("_callbacks", "_claims", "_done", "_error", "_value")

    def __init__(self) -> None:
        self._done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._claims = [None]
        self._callbacks: list[list[Callable[[], object]]] = []
        """Each in a list of its own: the thread that takes it out calls it."""

    def claim(self) -> bool:
        """True for the first caller. Where an answer can be given up, the loop sets it only
        after claim(), and the one that waits gives it up by claim()."""
        try:
            self._claims.pop()
        except IndexError:
            return False
        return True

    def set_result(self, value: T) -> None:
        self._value = value
        self._set()

    def set_exception(self, error: BaseException) -> None:
        self._error = error
        self._set()

    @property
    def done(self) -> bool:
        return self._done

    def result(self, timeout: float | None = None) -> T:
        """Wait for it up to `timeout` seconds, None for no limit.

        Raises:
            TimeoutError: it is not there in time; without an errno.
            BaseException: the error that was set.
        """
        if not self._done:
            waiter = threading.Lock()
            waiter.acquire()
            self.when_done(waiter.release)
            if not waiter.acquire(timeout=-1 if timeout is None else timeout):
                raise TimeoutError
        try:
            if self._error is not None:
                raise self._error
            return self._value  # type: ignore[return-value]
        finally:
            # The traceback of the error refers to this frame.
            del self

    def when_done(self, callback: Callable[[], object]) -> None:
        """Call `callback` once it is set, on the loop; or here and now if it is."""
        entry = [callback]
        self._callbacks.append(entry)
        if self._done:
            _call(entry)

    def _set(self) -> None:
        self._done = True
        for entry in self._callbacks:
            _call(entry)


async def answer_of(answer: Answer[T]) -> T:
    """As Answer.result(), for asyncio."""
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake() -> None:
        if not waiter.done():  # cancelled
            waiter.set_result(None)

    def done() -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(wake)

    answer.when_done(done)
    await waiter
    try:
        return answer.result()
    finally:
        del answer


def _call(entry: list[Callable[[], object]]) -> None:
    try:
        callback = entry.pop()
    except IndexError:
        return
    callback()
