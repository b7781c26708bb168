"""Runs a handshake (fastmtcp.auth) on a socket, within a few KiB and a few seconds."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from functools import partial

from fastmtcp.auth import (
    NONCE_SIZE,
    ClientHandshake,
    Membership,
    RefusedError,
    ServerHandshake,
    refusal,
)
from fastmtcp.engine.role import Role
from fastmtcp.errors import PeerError
from fastmtcp.io.loop import READ, Loop

log = logging.getLogger("fastmtcp.handshake")

HANDSHAKE_TIMEOUT = 5.0
"""Seconds from the connection to the last word of the handshake: a peer that says nothing costs
no more than this long."""

_READ_SIZE = 2048


class SupersededError(PeerError):
    """The handshake was given up because another one makes the session."""


class _SocketHandshake:
    """What both sides share: the socket, the deadline, and one way out."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock
        self._over = False
        loop.watch(sock.fileno(), self._on_event)
        # Behind watch(): that may fail, and then there is nothing to time out.
        self._timer = loop.call_at(loop.now + HANDSHAKE_TIMEOUT, self._on_timeout)

    def cancel(self) -> None:
        """Give up without telling anybody."""
        if self._leave():
            self._close()

    def _leave(self) -> bool:
        """End the handshake; true if it was not over. The socket stays watched."""
        if self._over:
            return False
        self._over = True
        self._timer.cancel()
        return True

    def _on_event(self, mask: int) -> None:
        if not mask & READ:
            return
        while not self._over:
            try:
                data = self._sock.recv(_READ_SIZE)
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(PeerError(error.strerror or str(error)))
                return
            if not data:
                self._fail(PeerError("the peer closed the connection during the handshake"))
                return
            try:
                self._on_data(data)
            except PeerError as error:
                self._fail(error)

    def _send(self, data: bytes) -> None:
        """Handshake messages are far smaller than a fresh socket's buffer."""
        if data:
            try:
                self._sock.send(data)
            except OSError as error:
                raise PeerError(error.strerror or str(error)) from None

    def _on_timeout(self) -> None:
        self._fail(PeerError("no answer to the handshake"))

    def _close(self) -> None:
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()

    def _on_data(self, data: bytes) -> None:
        raise AssertionError("abstract")

    def _fail(self, error: PeerError) -> None:
        raise AssertionError("abstract")


class ClientSocketHandshake(_SocketHandshake):
    """Authenticates a fresh connection to the server.

    Calls either `done(sock, handshake)` or `failed(error)`. `early` are bytes of the socket that
    were read already. `may_go_on` is asked at the server's first word, before the proof is sent:
    if it says no, the handshake fails with SupersededError.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        key: bytes,
        subflow_id: int,
        join: Membership | None,
        done: Callable[[socket.socket, ClientHandshake], None],
        failed: Callable[[PeerError], None],
        role: Role = Role.BOTH,
        early: bytes = b"",
        may_go_on: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__(loop, sock)
        self._handshake = ClientHandshake(key, os.urandom(NONCE_SIZE), subflow_id, join, role)
        self._done = done
        self._failed = failed
        self._early = early
        self._may_go_on = may_go_on
        try:
            self._send(self._handshake.hello)
        except PeerError as error:
            # Not from here: the caller does not know us yet.
            loop.call_soon(partial(self._fail, error))
            return
        # Edges that were told to the socket's former owner do not come again.
        loop.call_soon(self._begin)

    def _begin(self) -> None:
        if self._early and not self._over:
            try:
                self._on_data(self._early)
            except PeerError as error:
                self._fail(error)
        self._on_event(READ)

    def _on_data(self, data: bytes) -> None:
        may_go_on, self._may_go_on = self._may_go_on, None
        if may_go_on is not None and not may_go_on():
            raise SupersededError("another connection creates the session")
        self._send(self._handshake.feed(data))
        if self._handshake.grant is not None and self._leave():
            self._done(self._sock, self._handshake)

    def _fail(self, error: PeerError) -> None:
        if self._leave():
            self._close()
            self._failed(error)


class ServerSocketHandshake(_SocketHandshake):
    """Authenticates an accepted connection up to the client's proof.

    Calls `done(sock, handshake, peer)` if the client holds the key, and always `over(self)`.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        peer: str,
        key: bytes,
        done: Callable[[socket.socket, ServerHandshake, str], None],
        over: Callable[[ServerSocketHandshake], None],
    ) -> None:
        super().__init__(loop, sock)
        self._handshake = ServerHandshake(key, os.urandom(NONCE_SIZE))
        self._peer = peer
        self._done = done
        self._over_callback = over

    def _on_data(self, data: bytes) -> None:
        self._send(self._handshake.feed(data))
        if self._handshake.request is not None and self._leave():
            self._over_callback(self)
            self._done(self._sock, self._handshake, self._peer)

    def _fail(self, error: PeerError) -> None:
        if not self._leave():
            return
        self._over_callback(self)
        if isinstance(error, RefusedError):
            log.warning("connection from %s refused: %s", self._peer, error)
            refuse(self._loop, self._sock, error)
        else:
            log.info("connection from %s dropped: %s", self._peer, error)
            self._close()


def refuse(loop: Loop, sock: socket.socket, error: RefusedError) -> None:
    """Say no and close."""
    with contextlib.suppress(OSError):
        sock.send(refusal(error))
    loop.unwatch(sock.fileno())
    sock.close()
