"""Name look-up outside the loop: getaddrinfo() blocks, so it runs on a thread."""

from __future__ import annotations

import errno
import os
import queue
import socket
import threading
from collections.abc import Callable

from fastmtcp.io.loop import Loop

Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]
"""Family and socket address."""
Answer = Callable[[list[Address] | OSError], None]

MAX_QUESTIONS = 1024
"""Names that wait for a thread: peers may choose them, and some take half a minute each."""

_THREADS = 4
_CACHED = 1024
"""Hosts of which it is remembered whether they are addresses: peers may choose them, too."""


def numeric(host: str, port: int) -> Address | None:
    """The address that `host` is, if it is one and not a name."""
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
    except (OSError, UnicodeError):
        return None
    return _address(found[0])


class Question:
    """A look-up that waits, or is on its way."""

    __slots__ = ("answer", "cancelled", "host", "port")

    def __init__(self, host: str, port: int, answer: Answer) -> None:
        self.host = host
        self.port = port
        self.answer = answer
        self.cancelled = False

    def cancel(self) -> None:
        """Nobody wants the answer any more: it is not given, and no thread's time is spent on it
        if none has begun."""
        self.cancelled = True


class Resolver:
    """Looks names up on a few threads; answers are given on the loop."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._numeric: dict[tuple[str, int], Address | None] = {}
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Question, list[Address] | OSError]] = (
            queue.SimpleQueue()
        )
        self._threads: list[threading.Thread] = []
        self._waiting = 0
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        loop.watch_level(self._wake_read, self._on_wake)

    def resolve(self, host: str, port: int, answer: Answer) -> Question:
        """Call `answer` with the addresses, at least one, or the error: at once for a numeric
        address or if too many wait, from the loop for a name. Names are looked up anew every
        time."""
        question = Question(host, port, answer)
        key = (host, port)
        if key not in self._numeric:
            if len(self._numeric) >= _CACHED:
                self._numeric.clear()
            self._numeric[key] = numeric(host, port)
        known = self._numeric[key]
        if known is not None:
            answer([known])
            return question
        if self._waiting >= MAX_QUESTIONS:
            answer(OSError(errno.EAGAIN, "too many names wait to be looked up"))
            return question
        self._waiting += 1
        if self._waiting > len(self._threads) and len(self._threads) < _THREADS:
            # A daemon: a look-up that hangs must not keep the worker from exiting.
            thread = threading.Thread(target=self._work, name="resolver", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._questions.put(question)
        return question

    def close(self) -> None:
        for _ in self._threads:
            self._questions.put(None)
        self._loop.unwatch(self._wake_read)
        os.close(self._wake_read)
        # The write end stays open: a thread may be just about to use it.

    def _work(self) -> None:
        while (question := self._questions.get()) is not None:
            result: list[Address] | OSError = []
            try:
                if not question.cancelled:
                    found = socket.getaddrinfo(
                        question.host, question.port, type=socket.SOCK_STREAM
                    )
                    result = [_address(entry) for entry in found]
            except OSError as error:
                result = error
            except UnicodeError:
                result = OSError(f"{question.host} is no valid name")
            self._answers.put((question, result))
            try:
                os.write(self._wake_write, b"x")
            except BlockingIOError:
                pass  # the pipe is full of wake-ups already
            except OSError:
                return

    def _on_wake(self, _mask: int) -> None:
        os.read(self._wake_read, 4096)
        while not self._answers.empty():
            question, result = self._answers.get()
            self._waiting -= 1
            if not question.cancelled:
                question.answer(result)


def _address(entry: tuple[socket.AddressFamily, object, object, object, object]) -> Address:
    return entry[0], entry[4]  # type: ignore[return-value]
