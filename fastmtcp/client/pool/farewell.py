"""Ends at the server the session of a client worker that has died, so that nobody waits for it."""

from __future__ import annotations

import logging
import random
import socket
from collections.abc import Callable, Sequence
from functools import partial

from fastmtcp.client.pool.attempt import Attempt
from fastmtcp.client.pool.creation import Creation
from fastmtcp.config.credentials import Credentials
from fastmtcp.config.path import PathSpec
from fastmtcp.engine.limits import Limits
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.wire.codec import encode
from fastmtcp.engine.wire.errors import SessionCode
from fastmtcp.engine.wire.frames import Goaway
from fastmtcp.errors import PeerError
from fastmtcp.io.backoff import Backoff
from fastmtcp.io.dialogue import Dialogue, GoneError
from fastmtcp.io.loop import Loop, Timer
from fastmtcp.io.resolver import Resolver
from fastmtcp.security.handshake import (
    HANDSHAKE_TIMEOUT,
    ClientHandshake,
    Membership,
    RefuseCode,
    RefusedError,
)
from fastmtcp.security.handshake_socket import sealed
from fastmtcp.security.tls import Tls

log = logging.getLogger("fastmtcp.paths")

_FIRST_DELAY = 0.2
_MAX_DELAY = 5.0

_OWN_SUBFLOWS = 1 << 32
"""Our subflows have numbers from here on: which ones the dead worker has used nobody knows."""

_FINAL = (RefuseCode.UNKNOWN_SESSION, RefuseCode.KEY)
"""Over a path that leads to such an answer it leads to no other."""


class Farewell:
    """Joins the session once more, as only who has its secret can, and says GOAWAY on it.

    It tries all paths at once, again until one of them has said it, all of them lead to a server
    that does not know the session, or the time for which a server may keep it is over.
    """

    is_urgent = True

    def __init__(
        self,
        loop: Loop,
        resolver: Resolver,
        credentials: Credentials,
        membership: Membership,
        paths: Callable[[], Sequence[PathSpec]],
        connect_timeout: float,
        limits: Limits,
        done: Callable[[Farewell], None],
    ) -> None:
        """`paths()` are the client's at any time; `done(self)` is called once, unless it was
        cancelled."""
        self.loop = loop
        self.resolver = resolver
        self.credentials = credentials
        self.membership = membership
        self.connect_timeout = connect_timeout
        self.subflow_timeout = limits.subflow_timeout
        self.creation = Creation(loop)
        self.creation.membership = membership
        self._paths = paths
        self._done = done
        self._until = loop.now + limits.session_timeout
        self._backoff = Backoff(_FIRST_DELAY, _MAX_DELAY)
        self._attempts: list[Attempt] = []
        self._last_words: list[_LastWords] = []
        self._useless: set[PathSpec] = set()
        self._timer: Timer | None = loop.call_later(0, self._try)

    def allocate_subflow(self) -> int:
        return _OWN_SUBFLOWS + random.getrandbits(31)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for attempt in self._attempts:
            attempt.cancel()
        for words in self._last_words:
            words.cancel()
        self._attempts.clear()
        self._last_words.clear()

    def _try(self) -> None:
        self._timer = None
        paths = self._paths()
        useful = [spec for spec in paths if spec not in self._useless]
        if self.loop.now >= self._until or (paths and not useful):
            self._end()
            return
        for spec in useful:
            attempt = Attempt(self, spec, Role.BOTH, self._on_joined, self._on_failed)
            self._attempts.append(attempt)
        self._go_on()

    def _on_joined(
        self, attempt: Attempt, sock: socket.socket, tls: Tls | None, _: ClientHandshake
    ) -> None:
        self._attempts.remove(attempt)
        try:
            self._last_words.append(_LastWords(self.loop, sock, tls, self._on_heard))
        except OSError:  # epoll_ctl(2)
            self.loop.unwatch(sock.fileno())
            sock.close()
            self._go_on()

    def _on_failed(self, attempt: Attempt, error: PeerError) -> None:
        self._attempts.remove(attempt)
        if isinstance(error, RefusedError) and error.code in _FINAL:
            self._useless.add(attempt.spec)
        self._go_on()

    def _on_heard(self, words: _LastWords, heard: bool) -> None:
        self._last_words.remove(words)
        if heard:
            log.info("told the server that the session of a dead worker is over")
            self._end()
        else:
            self._go_on()

    def _go_on(self) -> None:
        if not (self._attempts or self._last_words):
            self._timer = self.loop.call_later(self._backoff.next(), self._try)

    def _end(self) -> None:
        self.cancel()
        self._done(self)


class _LastWords(Dialogue):
    """Says GOAWAY and waits until the server has closed the connection: to close it sooner, with
    bytes of the server unread, would be a reset that may overtake what was said."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        tls: Tls | None,
        done: Callable[[_LastWords, bool], None],
    ) -> None:
        super().__init__(loop, sock, loop.now + HANDSHAKE_TIMEOUT)
        self._done = done
        goaway = encode(Goaway(int(SessionCode.SHUTDOWN), "its process has died"))
        try:
            self._send(sealed(tls, goaway))
        except GoneError as error:
            loop.call_soon(partial(self._fail, PeerError(str(error))))

    def _take(self, data: bytes) -> None:
        """The server may have much to say that nobody wants any more."""

    def _fail(self, error: PeerError) -> None:
        if self._leave():
            self._close()
            self._done(self, isinstance(error, GoneError))
