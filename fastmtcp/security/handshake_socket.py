"""Runs a handshake (fastmtcp.security.handshake) on a socket: a few KiB and a few seconds."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from functools import partial

from fastmtcp.engine.subflows.role import Role
from fastmtcp.errors import PeerError
from fastmtcp.io.dialogue import Dialogue
from fastmtcp.io.loop import Loop
from fastmtcp.security.certificates import ClientTls, ServerTls
from fastmtcp.security.handshake import (
    HANDSHAKE_TIMEOUT,
    MAX_CLIENT_BYTES,
    MAX_TLS_BYTES,
    NONCE_SIZE,
    PREAMBLE_SIZE,
    ClientHandshake,
    Membership,
    Preamble,
    RefuseCode,
    RefusedError,
    ServerHandshake,
    clear_refusal,
    is_no_tls,
)
from fastmtcp.security.identity import Clients, Identity
from fastmtcp.security.tls import Tls

log = logging.getLogger("fastmtcp.handshake")


class SupersededError(PeerError):
    """The handshake was given up because another one makes the session."""


class _SocketHandshake(Dialogue):
    """A part of the handshake, in the clear or in TLS."""

    _CLOSED = "the peer closed the connection during the handshake"
    _SILENT = "no answer to the handshake"

    def __init__(self, loop: Loop, sock: socket.socket, until: float, early: bytes = b"") -> None:
        super().__init__(loop, sock, until, early)
        self._tls: Tls | None = None
        self._room = MAX_TLS_BYTES

    def _take(self, data: bytes) -> None:
        self._room -= len(data)
        if self._room < 0:
            raise PeerError("the peer does not come to the end of its handshake")
        if self._tls is None:
            self._on_data(data)
            return
        was_up = self._tls.is_up
        try:
            clear, answer = self._tls.feed(data)
        except PeerError:
            self._send(self._tls.parting_words())
            raise
        self._send(answer)
        if self._tls.is_up and not was_up:
            self._on_secure(self._tls)
        if clear:
            self._on_data(clear)

    def _say(self, data: bytes) -> None:
        """Send a message, through TLS if there is one."""
        if data:
            self._send(sealed(self._tls, data))

    def _on_secure(self, tls: Tls) -> None:
        """TLS is up."""

    def _on_data(self, data: bytes) -> None:
        raise AssertionError("abstract")


class ClientSocketHandshake(_SocketHandshake):
    """Authenticates a fresh connection to the server `host`, with TLS if `certificates` is given.

    Calls either `done(sock, tls, handshake)` or `failed(error)`. `early` are bytes of the socket
    that were read already. `may_go_on` is asked at the server's first word, before the proof is
    sent: if it says no, the handshake fails with SupersededError.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        identity: Identity,
        subflow_id: int,
        join: Membership | None,
        done: Callable[[socket.socket, Tls | None, ClientHandshake], None],
        failed: Callable[[PeerError], None],
        role: Role = Role.BOTH,
        early: bytes = b"",
        may_go_on: Callable[[], bool] | None = None,
        certificates: ClientTls | None = None,
        host: str = "",
    ) -> None:
        super().__init__(loop, sock, loop.now + HANDSHAKE_TIMEOUT, early)
        self._new_handshake = partial(
            ClientHandshake, identity, os.urandom(NONCE_SIZE), subflow_id, join, role
        )
        self._handshake: ClientHandshake | None = None
        self._certificates = certificates
        self._done = done
        self._failed = failed
        self._may_go_on = may_go_on
        session = join.session if join is not None else b""
        preamble = Preamble.of(session, tls=certificates is not None).encode()
        try:
            if certificates is None:
                self._handshake = self._new_handshake()
                self._send(preamble + self._handshake.hello)
            else:
                self._tls = certificates.connect(host)
                self._send(preamble + self._tls.feed(b"")[1])
        except PeerError as error:
            # Not from here: the caller does not know us yet.
            loop.call_soon(partial(self._fail, error))

    def _take(self, data: bytes) -> None:
        if self._tls is not None and not self._tls.is_up and is_no_tls(data):
            raise RefusedError(RefuseCode.TLS, TLS_DIFFERS[True])
        super()._take(data)

    def _on_secure(self, tls: Tls) -> None:
        assert self._certificates is not None
        self._handshake = self._new_handshake(channel=self._certificates.check(tls) + tls.binding())
        self._say(self._handshake.hello)

    def _on_data(self, data: bytes) -> None:
        assert self._handshake is not None
        may_go_on, self._may_go_on = self._may_go_on, None
        if may_go_on is not None and not may_go_on():
            raise SupersededError("another connection creates the session")
        self._say(self._handshake.feed(data))
        if self._handshake.grant is not None and self._leave():
            self._done(self._sock, self._tls, self._handshake)

    def _fail(self, error: PeerError) -> None:
        if self._leave():
            self._close()
            self._failed(error)


class PreambleReader(_SocketHandshake):
    """Reads the preamble of an accepted connection and nothing behind it.

    Calls `done(self, sock, preamble)` or `failed(self, error)`, with the socket closed.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        done: Callable[[PreambleReader, socket.socket, Preamble], None],
        failed: Callable[[PreambleReader, PeerError], None],
    ) -> None:
        self.since = loop.now
        self.until = loop.now + HANDSHAKE_TIMEOUT
        super().__init__(loop, sock, self.until)
        self._bytes = b""
        self._done = done
        self._failed = failed

    def give_up(self) -> None:
        """Its place is needed."""
        self._on_timeout()

    def _wanted(self) -> int:
        return PREAMBLE_SIZE - len(self._bytes)

    def _on_data(self, data: bytes) -> None:
        self._bytes += data
        preamble = Preamble.decode(self._bytes)
        if preamble is not None and self._leave():
            self._done(self, self._sock, preamble)

    def _fail(self, error: PeerError) -> None:
        if self._leave():
            self._close()
            self._failed(self, error)


class ServerSocketHandshake(_SocketHandshake):
    """Authenticates a connection whose preamble was read, up to the client's proof, by `until`.

    Calls `done(self, sock, tls, handshake)` if the client holds its key, or `failed(self, error)`
    with the socket closed.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        preamble: Preamble,
        clients: Clients,
        certificates: ServerTls | None,
        until: float,
        done: Callable[
            [ServerSocketHandshake, socket.socket, Tls | None, ServerHandshake],
            None,
        ],
        failed: Callable[[ServerSocketHandshake, PeerError], None],
    ) -> None:
        super().__init__(loop, sock, until)
        self._done = done
        self._failed = failed
        self._new_handshake = partial(ServerHandshake, clients, os.urandom(NONCE_SIZE), preamble)
        self._handshake = self._new_handshake() if certificates is None else None
        self._certificates = certificates
        if preamble.tls != (certificates is not None):
            error = RefusedError(RefuseCode.TLS, TLS_DIFFERS[preamble.tls])
            loop.call_soon(partial(self._fail, error))

    def _take(self, data: bytes) -> None:
        if self._certificates is not None and self._tls is None:
            # Not before its first bytes are here: it takes some memory.
            self._tls = self._certificates.accept()
        super()._take(data)

    def _on_secure(self, tls: Tls) -> None:
        assert self._certificates is not None
        self._handshake = self._new_handshake(
            channel=self._certificates.fingerprint + tls.binding()
        )
        self._room = MAX_CLIENT_BYTES

    def _on_data(self, data: bytes) -> None:
        assert self._handshake is not None
        self._say(self._handshake.feed(data))
        if self._handshake.request is not None and self._leave():
            self._done(self, self._sock, self._tls, self._handshake)

    def _fail(self, error: PeerError) -> None:
        if not self._leave():
            return
        if isinstance(error, RefusedError):
            refuse(self._loop, self._sock, self._tls, clear_refusal(error))
        else:
            self._close()
        self._failed(self, error)


TLS_DIFFERS = {
    False: "this server speaks TLS only; use the link that it gave you",
    True: "this server does not speak TLS; use --no-tls here or --tls there",
}


def refuse(loop: Loop, sock: socket.socket, tls: Tls | None, said: bytes) -> None:
    """Say no, in the words of a REFUSE message, and close."""
    with contextlib.suppress(OSError):
        sock.send(sealed(tls if tls is not None and tls.is_up else None, said))
    loop.unwatch(sock.fileno())
    sock.close()


def sealed(tls: Tls | None, data: bytes) -> bytes:
    """`data` as it goes over the wire."""
    return data if tls is None else b"".join(tls.seal([data])[0])
