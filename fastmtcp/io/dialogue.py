"""A few messages on a socket, before its bytes belong to a subflow or a stream."""

from __future__ import annotations

import socket
from functools import partial

from fastmtcp.errors import PeerError
from fastmtcp.io.loop import READ, Loop

_READ_SIZE = 4096
_READS = 4
"""Reads in a row before other sockets get their turn."""


class GoneError(PeerError):
    """The peer, or the network, has ended the connection."""


class Dialogue:
    """What all have in common: the socket, the deadline, and one way out.

    What is said in it the subclass knows. `until` is when it must be over. `early` are bytes of the
    socket that were read already.
    """

    _CLOSED = "it closed the connection"
    _SILENT = "it does not answer"

    def __init__(self, loop: Loop, sock: socket.socket, until: float, early: bytes = b"") -> None:
        self._loop = loop
        self._sock = sock
        self._early = early
        self._over = False
        self._reads_on = False
        loop.watch(sock.fileno(), self._on_event)
        # Behind watch(): that may fail, and then there is nothing to time out.
        self._timer = loop.call_at(until, self._on_timeout)
        if early:
            # Not from here: the caller does not know us yet.
            loop.call_soon(partial(self._on_event, 0))

    def cancel(self) -> None:
        """Give up without telling anybody here."""
        if self._leave():
            self._close()

    def _leave(self) -> bool:
        """End it; true if it was not over. The socket stays watched."""
        if self._over:
            return False
        self._over = True
        self._timer.cancel()
        return True

    def _on_event(self, mask: int) -> None:
        early, self._early = self._early, b""
        if early and not self._over:
            self._hear(early)
        if not mask & READ or self._reads_on:
            return
        for _ in range(_READS):
            if self._over:
                return
            try:
                data = self._sock.recv(self._wanted())
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(GoneError(error.strerror or str(error)))
                return
            if not data:
                self._fail(GoneError(self._CLOSED))
                return
            self._hear(data)
        self._reads_on = True
        self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        self._reads_on = False
        # Or the descriptor may be another's by now.
        if not self._over:
            self._on_event(READ)

    def _hear(self, data: bytes) -> None:
        try:
            self._take(data)
        except PeerError as error:
            self._fail(error)

    def _wanted(self) -> int:
        """The most bytes to read."""
        return _READ_SIZE

    def _send(self, data: bytes) -> None:
        """All that is ever said here is far smaller than a fresh socket's buffer."""
        if data:
            try:
                self._sock.send(data)
            except OSError as error:
                raise GoneError(error.strerror or str(error)) from None

    def _on_timeout(self) -> None:
        self._fail(PeerError(self._SILENT))

    def _close(self) -> None:
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()

    def _take(self, data: bytes) -> None:
        """Bytes of the socket. Raises PeerError if this is the end."""
        raise AssertionError("abstract")

    def _fail(self, error: PeerError) -> None:
        raise AssertionError("abstract")
