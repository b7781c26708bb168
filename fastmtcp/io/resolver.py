"""Name look-up outside the loop: getaddrinfo() blocks, so it runs on a thread."""

from __future__ import annotations

import errno
import queue
import socket
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial

from fastmtcp.endpoint import ascii_name
from fastmtcp.io.loop import Loop

Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]
"""Family and socket address."""
Answer = Callable[[list[Address] | OSError], None]

MAX_QUESTIONS = 1024
"""Names that wait for a thread: peers may choose them, and some take half a minute each."""

MAX_THREADS = 128
"""Look-ups at once. One whose name servers are silent keeps its thread for 10 to 30 s, whether
anybody still wants the answer or not, and a client may ask for such names all the time."""

_IDLE_THREADS = 8
"""Kept for the next names."""

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

    __slots__ = ("_resolver", "answer", "asker", "cancelled", "host", "port")

    def __init__(
        self, resolver: Resolver, host: str, port: int, answer: Answer, asker: Hashable
    ) -> None:
        self._resolver = resolver
        self.host = host
        self.port = port
        self.answer = answer
        self.asker = asker
        self.cancelled = False

    def cancel(self) -> None:
        """Nobody wants the answer any more: it is not given, and it waits for no thread."""
        if not self.cancelled:
            self.cancelled = True
            self._resolver.forget(self)


class Resolver:
    """Looks names up on threads; answers are given on the loop.

    A thread that hangs holds nobody up: there is another for the next name, up to MAX_THREADS. Each
    asker has as many as are left for all others, so however many ask for names that hang, some are
    left for whoever asks for the first time. Places for names that wait are shared in the same way.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._numeric: dict[tuple[str, int], Address | None] = {}
        self._work: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._threads = 0
        # By asker; a dict of questions, as the order counts and any may leave.
        self._waiting: dict[Hashable, dict[Question, None]] = {}
        self._running: Counter[Hashable] = Counter()
        self._closed = False

    def resolve(self, host: str, port: int, answer: Answer, asker: Hashable = None) -> Question:
        """Call `answer` with the addresses, at least one, or the error: at once for a numeric
        address or if too many wait, from the loop for a name. Names are looked up anew every
        time. `asker` says whose share of the threads it takes."""
        question = Question(self, host, port, answer, asker)
        key = (host, port)
        if key not in self._numeric:
            if len(self._numeric) >= _CACHED:
                self._numeric.clear()
            self._numeric[key] = numeric(host, port)
        known = self._numeric[key]
        if known is not None:
            answer([known])
            return question
        if self._closed:
            return question
        waiting = self._waiting.setdefault(asker, {})
        waiting[question] = None
        self._begin()
        if question in waiting:
            left = MAX_QUESTIONS - sum(map(len, self._waiting.values()))
            if not self._threads:
                self.forget(question)
                answer(OSError(errno.EAGAIN, "no thread can be started to look names up"))
            elif len(waiting) > left:
                self.forget(question)
                answer(OSError(errno.EAGAIN, "too many names wait to be looked up"))
        return question

    def forget(self, question: Question) -> None:
        """It waits no more."""
        waiting = self._waiting.get(question.asker)
        if waiting is not None:
            waiting.pop(question, None)
            if not waiting:
                del self._waiting[question.asker]

    def close(self) -> None:
        """Give no answer any more, and let the threads end."""
        self._closed = True
        self._waiting.clear()
        for _ in range(self._threads):
            self._work.put(None)

    def _begin(self) -> None:
        """Look up what may be looked up now, of the asker first who has fewest names on their
        way."""
        while self._waiting:
            asker = min(self._waiting, key=self._running.__getitem__)
            busy = self._running.total()
            if self._running[asker] >= MAX_THREADS - busy:
                return
            if busy >= self._threads and not self._start_thread():
                return
            question = next(iter(self._waiting[asker]))
            self.forget(question)
            self._running[asker] += 1
            self._work.put(question)

    def _start_thread(self) -> bool:
        """One more; false if there can be none, and the others must look all names up."""
        # A daemon: a look-up that hangs must not keep the worker from exiting.
        thread = threading.Thread(target=self._serve, name="resolver", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._threads += 1
        return True

    def _serve(self) -> None:
        while (question := self._work.get()) is not None:
            result: list[Address] | OSError
            try:
                result = look_up(question.host, question.port)
            except OSError as error:
                result = error
            except Exception as error:
                # Whatever it is, whoever has asked must not wait for ever.
                result = OSError(errno.EIO, f"looking the name up failed: {error}")
            if not self._loop.call_threadsafe(partial(self._give, question, result)):
                return

    def _give(self, question: Question, result: list[Address] | OSError) -> None:
        self._running[question.asker] -= 1
        if not self._running[question.asker]:
            del self._running[question.asker]
        if self._closed:
            return
        self._begin()
        if self._threads - self._running.total() > _IDLE_THREADS:
            self._threads -= 1
            self._work.put(None)
        if not question.cancelled:
            question.answer(result)


def _address(entry: tuple[socket.AddressFamily, object, object, object, object]) -> Address:
    return entry[0], entry[4]  # type: ignore[return-value]
