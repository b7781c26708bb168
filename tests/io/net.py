"""Real sockets for tests: pairs, listeners, and a loop that runs until something is so."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import pytest
from fastmtcp.io.loop import Loop

T_co = TypeVar("T_co", covariant=True)

WAIT = 30.0
"""Seconds within which a thing that must happen happens, on a machine that has other work too."""


def run_until(loop: Loop, condition: Callable[[], object], what: str = "") -> None:
    """Run `loop` until `condition()` holds; the test fails if it does not within WAIT seconds."""
    deadline = time.monotonic() + WAIT
    so = False

    def look() -> None:
        nonlocal so
        so = bool(condition())
        if so or time.monotonic() > deadline:
            loop.stop()
        else:
            loop.call_later(0.002, look)

    loop.call_soon(look)
    loop.run()
    if not so:
        pytest.fail(f"still not so after {WAIT:g} s: {what or condition}")


def turn(loop: Loop, times: int = 3) -> None:
    """Let everything happen that can happen now."""
    for _ in range(times):
        loop.call_soon(loop.stop)
        loop.run()


def tcp_pair(family: socket.AddressFamily = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection on loopback: a blocking one with a time-out for the test,
    and a non-blocking one for the code."""
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.create_server((host, 0), family=family) as listener:
        ours = socket.create_connection(listener.getsockname()[:2], WAIT)
        theirs, _ = listener.accept()
    theirs.setblocking(False)
    return ours, theirs


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """A port on which nobody listens and that nobody else gets meanwhile."""
    with socket.socket() as bound_only:
        bound_only.bind(("127.0.0.1", 0))
        yield bound_only.getsockname()[1]


def free_port() -> int:
    """A port on which nobody listens now, for a program that must be told one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that never answers: its queue of connections is full, so SYNs are dropped."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(10):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            if not select.select([], [filler], [], 0.2)[1]:
                break
        else:
            pytest.fail("the queue of connections does not fill up")
        yield port


def abort(sock: socket.socket) -> None:
    """Close with an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def data(size: int, seed: int = 1) -> bytes:
    """Bytes in which anything lost, repeated or swapped shows."""
    return random.Random(seed).randbytes(size)


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the FIN; a reset raises ConnectionResetError."""
    parts = []
    while part := sock.recv(1 << 18):
        parts.append(part)
    return b"".join(parts)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(min(1 << 18, size - len(parts)))
        if not part:
            raise EOFError(f"FIN after {len(parts)} of {size} bytes")
        parts += part
    return bytes(parts)


def fill(sock: socket.socket) -> int:
    """Send until the socket takes no more; returns how many bytes it took."""
    sock.setblocking(False)
    sent = 0
    block = bytes(1 << 16)
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(block)
    return sent


_known_resets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def is_reset(sock: socket.socket) -> bool:
    """Whether the connection was reset. Consumes what came before."""
    if sock in _known_resets:
        return True
    sock.setblocking(False)
    try:
        while sock.recv(1 << 16):
            pass
        # After a FIN recv() says no more than that. The kernel tells an error only once.
        reset = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
    except BlockingIOError:
        return False
    except (ConnectionResetError, BrokenPipeError):
        reset = True
    if reset:
        _known_resets.add(sock)
    return reset


class Background(Generic[T_co]):
    """A function on a thread; result() gives what it returned or raises what it raised."""

    def __init__(self, function: Callable[..., T_co], *arguments: object) -> None:
        self._outcome: list[T_co] = []
        self._error: BaseException | None = None

        def run() -> None:
            try:
                self._outcome.append(function(*arguments))
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> T_co:
        self._thread.join(2 * WAIT)
        if not self.done:
            pytest.fail("a thread of the test does not end")
        if self._error is not None:
            raise self._error
        return self._outcome[0]
