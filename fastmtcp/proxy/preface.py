"""What an application says, and is told, before its bytes become a stream's."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Protocol

from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.wire.errors import ResetCode
from fastmtcp.errors import PeerError
from fastmtcp.io.dialogue import Dialogue
from fastmtcp.io.loop import ERR, HUP, Loop, Timer
from fastmtcp.io.tcp import abort

log = logging.getLogger("fastmtcp.preface")

PREFACE_TIMEOUT = 10.0
"""Seconds that an application has for what comes before its bytes: one that says nothing costs a
descriptor and a few KiB for no longer."""

_READ_SIZE = 4096
_FAREWELL = 2.0
"""Seconds that an application has to read why it was refused, and to close."""
_FAREWELL_READS = 64
"""Reads of what it sends meanwhile: one that sends without end does not read the answer."""


class PrefaceParser(Protocol):
    """What is said, without sockets: fastmtcp.proxy.requests, fastmtcp.proxy.header."""

    @property
    def done(self) -> bool:
        """All of it was said."""

    @property
    def rest(self) -> bytes:
        """Bytes that came behind it."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the application; return bytes to send. Raises PeerError, which may have
        an `answer`."""


class Preface(Dialogue):
    """Reads an application's opening words.

    Calls either `done(self)`, with the socket still watched, or `failed(error)`, with the socket
    closed or about to be; neither after cancel(). `early` are bytes of the socket already read.
    """

    _SILENT = "it says nothing, or not enough"

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        parser: PrefaceParser,
        done: Callable[[], None],
        failed: Callable[[PeerError], None],
        early: bytes = b"",
    ) -> None:
        super().__init__(loop, sock, loop.now + PREFACE_TIMEOUT, early)
        self._parser = parser
        self.has_begun = False
        """It has said something."""
        self._done = done
        self._failed = failed

    def _take(self, data: bytes) -> None:
        self.has_begun = True
        self._send(self._parser.feed(data))
        if self._parser.done and self._leave():
            self._done()

    def _fail(self, error: PeerError) -> None:
        if self._leave():
            answer: bytes = getattr(error, "answer", b"")
            if answer:
                say_farewell(self._loop, self._sock, answer)
            else:
                self._close()
            self._failed(error)

    def _close(self) -> None:
        _drop(self._loop, self._sock)


class Waiting:
    """An application that waits for its target: it watches its stream until there is a relay.

    Calls `connected()`, when it has sent `answer`, or `refused(code)`, once; neither if the
    application goes away before.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        stream: Stream,
        answer: bytes,
        connected: Callable[[], None],
        refused: Callable[[ResetCode], None],
        progress: Callable[[], None],
    ) -> None:
        """`progress` lets the session send: nobody else may have a reason to, for a long time."""
        self._loop = loop
        self._sock = sock
        self._stream = stream
        self._answer = answer
        self._connected = connected
        self._refused = refused
        self._progress = progress
        self._over = False
        stream.watcher = self
        loop.watch(sock.fileno(), self._on_event)

    def update(self) -> None:
        """The stream was updated."""
        if self._over:
            return
        if self._stream.reset_code is not None:
            self._over = True
            self._stream.watcher = None
            self._refused(self._stream.reset_code)
        elif self._stream.connected:
            self._over = True
            try:
                self._sock.send(self._answer)
            except OSError:
                # Told once: the relay would take the reset for a FIN.
                self._give_up()
            else:
                self._connected()

    def _on_event(self, mask: int) -> None:
        # Its bytes wait for the relay; so does a FIN, as it may still want the answer.
        if mask & (ERR | HUP) and not self._over:
            self._over = True
            self._give_up()

    def _give_up(self) -> None:
        log.debug("stream %d: the application is gone", self._stream.stream_id)
        _drop(self._loop, self._sock)
        self._stream.watcher = None
        self._stream.reset(ResetCode.CANCELLED)
        self._progress()


def say_farewell(loop: Loop, sock: socket.socket, answer: bytes) -> None:
    """Send `answer` and a FIN, and close when the application has closed or its time is up.

    A close() while bytes of it are unread would be an RST, which destroys the answer.
    """
    fd = sock.fileno()
    timer: list[Timer] = []

    def close() -> None:
        loop.unwatch(fd)
        timer[0].cancel()
        sock.close()

    def on_event(_mask: int) -> None:
        try:
            for _ in range(_FAREWELL_READS):
                if not sock.recv(_READ_SIZE):
                    break
        except BlockingIOError:
            return
        except OSError:
            pass
        close()

    timer.append(loop.call_later(_FAREWELL, close))
    loop.watch(fd, on_event)
    with contextlib.suppress(OSError):
        sock.send(answer)
        sock.shutdown(socket.SHUT_WR)


def _drop(loop: Loop, sock: socket.socket) -> None:
    loop.unwatch(sock.fileno())
    abort(sock)
