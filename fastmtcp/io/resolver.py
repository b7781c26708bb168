"""Name look-up outside the loop: getaddrinfo() blocks, so it runs on a thread."""

from __future__ import annotations

import contextlib
import errno
import queue
import socket
import threading
from collections.abc import Callable
from functools import partial

from fastmtcp.endpoint import ascii_name
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
            host.encode(),
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
    except (OSError, ValueError):
        return None
    return _address(found[0])


def look_up(host: str | None, port: int, flags: int = 0) -> list[Address]:
    """The addresses of a name, or for None those of any host. Blocks. Raises OSError.

    In bytes, because the system's resolver takes names that Python would not pass on (in /etc/hosts
    they may be any bytes). What it does not know so it is asked for in the form that the DNS has,
    which is what most programs do at once.
    """
    forms = [None] if host is None else dict.fromkeys((host, ascii_name(host) or host))
    failure = OSError(f"{host} is no valid name")
    for form in forms:
        try:
            found = socket.getaddrinfo(
                form if form is None else form.encode(), port, type=socket.SOCK_STREAM, flags=flags
            )
            return [_address(entry) for entry in found]
        except OSError as error:
            failure = error
        except ValueError:  # a NUL, a lone surrogate
            continue
    raise failure


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
        self._threads: list[threading.Thread] = []
        self._waiting = 0
        self._closed = False

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
        if self._waiting >= len(self._threads) < _THREADS:
            self._start_thread()
        if not self._threads:
            answer(OSError(errno.EAGAIN, "no thread can be started to look names up"))
            return question
        self._waiting += 1
        self._questions.put(question)
        return question

    def close(self) -> None:
        """Give no answer any more, and let the threads end."""
        self._closed = True
        for _ in self._threads:
            self._questions.put(None)

    def _start_thread(self) -> None:
        """One more, if there may be more: else the others look all names up."""
        # A daemon: a look-up that hangs must not keep the worker from exiting.
        thread = threading.Thread(target=self._work, name="resolver", daemon=True)
        with contextlib.suppress(RuntimeError):
            thread.start()
            self._threads.append(thread)

    def _work(self) -> None:
        while (question := self._questions.get()) is not None:
            result: list[Address] | OSError = []
            try:
                if not question.cancelled:
                    result = look_up(question.host, question.port)
            except OSError as error:
                result = error
            except Exception as error:
                # Whatever it is, whoever has asked must not wait for ever.
                result = OSError(errno.EIO, f"looking the name up failed: {error}")
            if not self._loop.call_threadsafe(partial(self._give, question, result)):
                return

    def _give(self, question: Question, result: list[Address] | OSError) -> None:
        self._waiting -= 1
        if not (self._closed or question.cancelled):
            question.answer(result)


def _address(entry: tuple[socket.AddressFamily, object, object, object, object]) -> Address:
    return entry[0], entry[4]  # type: ignore[return-value]
