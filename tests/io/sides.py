"""Both sides of a handshake on real sockets, as programs run them."""

from __future__ import annotations

import socket

from fastmtcp.errors import PeerError
from fastmtcp.io.loop import Loop
from fastmtcp.security.certificates import ClientTls, ServerTls
from fastmtcp.security.handshake import (
    NEW_SESSION,
    SESSION_ID_SIZE,
    ClientHandshake,
    Grant,
    Preamble,
    ServerHandshake,
)
from fastmtcp.security.handshake_socket import (
    ClientSocketHandshake,
    PreambleReader,
    ServerSocketHandshake,
    sealed,
)
from fastmtcp.security.identity import UNNAMED, Identity, unnamed
from fastmtcp.security.tls import Tls

from tests.io.net import tcp_pair, turn

KEY = Identity.from_key(UNNAMED, bytes(range(32)))
OTHER_KEY = Identity.from_key(UNNAMED, bytes(32))
CLIENTS = unnamed(bytes(range(32)))
NEW = Preamble(False, NEW_SESSION)
GRANT = Grant(b"s" * SESSION_ID_SIZE, 65536, 100, 0.0)


class ServerSide:
    """A handshake as the server runs it: the preamble, then the rest."""

    def __init__(
        self, loop: Loop, sock: socket.socket, certificates: ServerTls | None = None
    ) -> None:
        self.loop = loop
        self.sock = sock
        self.certificates = certificates
        self.proved: ServerHandshake | None = None
        self.tls: Tls | None = None
        self.errors: list[PeerError] = []
        turn(loop, 1)  # so that loop.now is now
        self.handshake: PreambleReader | ServerSocketHandshake = PreambleReader(
            loop, sock, self._on_arrived, self._on_failed
        )

    def _on_arrived(self, arrival: PreambleReader, sock: socket.socket, preamble: Preamble) -> None:
        assert arrival is self.handshake
        self.handshake = ServerSocketHandshake(
            self.loop,
            sock,
            preamble,
            CLIENTS,
            self.certificates,
            arrival.until,
            self._on_proved,
            self._on_failed,
        )

    def _on_proved(
        self,
        waiting: ServerSocketHandshake,
        sock: socket.socket,
        tls: Tls | None,
        handshake: ServerHandshake,
    ) -> None:
        assert waiting is self.handshake
        self.proved = handshake
        self.tls = tls
        sock.send(sealed(tls, handshake.welcome(GRANT)))

    def _on_failed(self, waiting: PreambleReader | ServerSocketHandshake, error: PeerError) -> None:
        assert waiting is self.handshake
        assert self.sock.fileno() == -1
        self.errors.append(error)

    @property
    def over(self) -> bool:
        return bool(self.proved or self.errors)

    @property
    def is_secure(self) -> bool:
        """TLS is up."""
        tls = self.handshake._tls
        return tls is not None and tls.is_up


class ClientSide:
    """A handshake as the client runs it."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        key: Identity = KEY,
        certificates: ClientTls | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.sock = sock
        self.tls: Tls | None = None
        self.granted: ClientHandshake | None = None
        self.errors: list[PeerError] = []
        turn(loop, 1)
        self.handshake = ClientSocketHandshake(
            loop,
            sock,
            key,
            3,
            None,
            self._on_done,
            self.errors.append,
            certificates=certificates,
            host=host,
        )

    def _on_done(self, sock: socket.socket, tls: Tls | None, handshake: ClientHandshake) -> None:
        assert sock is self.sock
        self.tls = tls
        self.granted = handshake

    @property
    def known(self) -> bool:
        return bool(self.granted or self.errors)


def both(
    loop: Loop,
    client_key: Identity = KEY,
    client_tls: ClientTls | None = None,
    server_tls: ServerTls | None = None,
    host: str = "127.0.0.1",
) -> tuple[ClientSide, ServerSide]:
    near, far = tcp_pair()
    near.setblocking(False)
    client = ClientSide(loop, near, client_key, client_tls, host)
    return client, ServerSide(loop, far, server_tls)
