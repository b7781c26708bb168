"""The control socket of the supervisor: `fastmtcp status` asks here.

An asker connects, sends one line and gets one JSON document. Whatever it sends, and whatever it
does not read, it costs a few descriptors for a few seconds and never blocks the supervisor.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable

import msgspec

from fastmtcp.errors import StartError
from fastmtcp.io.loop import OUT, READ, Loop, Timer
from fastmtcp.status.control_name import REQUEST, ControlName, peer_uid

log = logging.getLogger("fastmtcp.control")

MAX_ASKERS = 8
"""Connections at a time. The others wait in the listener's queue until one of them has gone."""

REQUEST_TIMEOUT = 1.0
"""Seconds in which the request must have come: a silent connection keeps its place no longer."""

TIMEOUT = 5.0
"""Seconds in which the answer must have been read, once the request was there."""

_BACKLOG = 16
_READ = 256
_PAUSE = 0.2

Ask = Callable[[Callable[[bytes], None]], None]
"""Calls its argument once, with the answer, now or later."""


def listen(names: list[ControlName]) -> tuple[socket.socket, ControlName]:
    """A socket that listens at the first of `names` that is free.

    Raises:
        StartError: all are in use.
    """
    for name in names:
        sock = None
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.bind(name.address)
        except OSError as error:
            if sock is not None:
                sock.close()
            if error.errno != errno.EADDRINUSE:
                raise StartError(f"cannot make control socket {name}: {error.strerror}") from None
        else:
            sock.listen(_BACKLOG)
            sock.setblocking(False)
            return sock, name
    raise StartError(
        f"cannot make control socket {names[0]}: the name is in use; choose another --control"
    )


class ControlSocket:
    """Serves a listening socket on the loop."""

    def __init__(self, loop: Loop, sock: socket.socket, ask: Ask) -> None:
        self._loop = loop
        self._sock = sock
        """Closed if nobody can ask any more."""
        self._ask = ask
        self._askers: set[_Asker] = set()
        self._watched = False
        self._closed = False
        self._watch()

    def close(self) -> None:
        """Close everything. In a forked child, too: a copy of a socket keeps its name in use and
        its peer waiting."""
        if not self._closed:
            self._closed = True
            self._unwatch()
            self._sock.close()
            for asker in list(self._askers):
                asker.close()

    def listen_on(self, sock: socket.socket | None) -> None:
        """Free the name, and listen on another socket from now on, or no more. Those that have
        asked are answered."""
        self._unwatch()
        self._sock.close()
        if sock is not None:
            self._sock = sock
            self._watch()

    def _watch(self) -> None:
        is_open = not self._closed and self._sock.fileno() >= 0
        if is_open and not self._watched and len(self._askers) < MAX_ASKERS:
            self._watched = True
            self._loop.watch_level(self._sock.fileno(), self._on_event)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.unwatch(self._sock.fileno())

    def _on_event(self, _mask: int) -> None:
        try:
            sock, _ = self._sock.accept()
        except BlockingIOError:
            return
        except OSError:
            # Out of descriptors: a level-triggered listener that cannot accept would spin.
            self._unwatch()
            self._loop.call_later(_PAUSE, self._watch)
            return
        try:
            self._accepted(sock)
        except OSError as error:  # epoll_ctl(2): out of memory or of watches
            self._loop.lines.warning(log, "", "question dropped: %s", error.strerror)
            sock.close()

    def _accepted(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if peer_uid(sock) not in (os.geteuid(), 0):
            # Answered and closed at once: other users must not fill the places.
            log.debug("user %d asked for the status and was refused", peer_uid(sock))
            with contextlib.suppress(OSError):
                sock.send(_error("another user may not ask"))
            sock.close()
            return
        self._askers.add(_Asker(self._loop, sock, self._ask, self._on_gone))
        if len(self._askers) >= MAX_ASKERS:
            self._unwatch()

    def _on_gone(self, asker: _Asker) -> None:
        self._askers.discard(asker)
        self._watch()


class _Asker:
    """A connection that asks: a line in, a document out."""

    def __init__(
        self, loop: Loop, sock: socket.socket, ask: Ask, gone: Callable[[_Asker], None]
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._ask = ask
        self._gone = gone
        self._request = b""
        self._asked = False
        self._out = memoryview(b"")
        self._closed = False
        loop.watch(sock.fileno(), self._on_event)
        self._timer: Timer = loop.call_later(REQUEST_TIMEOUT, self.close)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._timer.cancel()
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._gone(self)

    def _on_event(self, mask: int) -> None:
        if mask & READ:
            self._read()
        if mask & OUT and self._out:
            self._write()

    def _read(self) -> None:
        """To the end of what is here: no other event tells of a FIN that came with a piece."""
        while not self._asked and not self._closed:
            try:
                data = self._sock.recv(_READ)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._request += data
            if self._request == REQUEST:
                self._asked = True
                self._timer.cancel()
                self._timer = self._loop.call_later(TIMEOUT, self.close)
                self._ask(self._answer)
            elif not data:
                self.close()
            elif not REQUEST.startswith(self._request):
                self._answer(_error("unknown request; send the line `status`"))

    def _answer(self, document: bytes) -> None:
        if not self._closed:
            self._asked = True
            self._out = memoryview(document)
            self._write()

    def _write(self) -> None:
        try:
            while self._out:
                self._out = self._out[self._sock.send(self._out) :]
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()


def _error(text: str) -> bytes:
    return msgspec.json.encode({"error": text}) + b"\n"
