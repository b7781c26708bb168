"""One attempt to make an authenticated connection over a path: dial, proxy, handshake."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from fastmtcp.client.pool.creation import Creation
from fastmtcp.config.credentials import Credentials
from fastmtcp.config.path import PathSpec
from fastmtcp.engine.limits import START_LOWAT
from fastmtcp.engine.subflows.role import Role
from fastmtcp.errors import PeerError
from fastmtcp.io.dialer import Dial, WayOut
from fastmtcp.io.loop import ERR, HUP, RDHUP, Loop
from fastmtcp.io.resolver import Resolver
from fastmtcp.io.tcp import local_address, tune_subflow
from fastmtcp.proxy.tunnel import Tunnel
from fastmtcp.proxy.upstream import conversation
from fastmtcp.security.handshake import ClientHandshake
from fastmtcp.security.handshake_socket import ClientSocketHandshake
from fastmtcp.security.tls import Tls

URGENT_PATIENCE = 2.0
"""The kernel repeats a SYN after 1, 3 and 7 s (tcp(7), tcp_syn_retries). While streams wait, a
new attempt replaces one that is silent, so that the network's return is noticed in a second."""


class AttemptOwner(Protocol):
    """What an attempt is told by those it is for: the Connector of a pool, or a Farewell."""

    loop: Loop
    resolver: Resolver
    credentials: Credentials
    connect_timeout: float
    subflow_timeout: float
    creation: Creation

    @property
    def is_urgent(self) -> bool:
        """A connection that is silent is to be replaced soon."""

    def allocate_subflow(self) -> int:
        """A number that no subflow of the session has had."""


class Attempt:
    """Connects, waits for its time to authenticate (Creation), authenticates.

    Calls either `done(self, sock, tls, handshake)` or `failed(self, error)`; neither from within
    the constructor nor after cancel(). `first` says with which of a name's addresses to begin.
    """

    def __init__(
        self,
        owner: AttemptOwner,
        spec: PathSpec,
        role: Role,
        done: Callable[[Attempt, socket.socket, Tls | None, ClientHandshake], None],
        failed: Callable[[Attempt, PeerError], None],
        first: int = 0,
    ) -> None:
        self.spec = spec
        self.started_at = owner.loop.now
        self._owner = owner
        self._loop = owner.loop
        self._role = role
        self._done = done
        self._failed = failed
        self._sock: socket.socket | None = None
        self._early = b""
        self._local_address = ""
        self._step: Dial | Tunnel | ClientSocketHandshake | None = Dial(
            owner.loop,
            owner.resolver,
            spec.first_hop,
            owner.connect_timeout,
            self._on_dialled,
            self._on_dial_failed,
            first=first,
            way_out=WayOut(spec.bind, spec.dev),
            patience=URGENT_PATIENCE if owner.is_urgent else None,
            asker=spec.first_hop.host,
        )

    @property
    def local_address(self) -> str:
        """Where on this machine it comes from; empty before it connects."""
        return self._step.local_address if isinstance(self._step, Dial) else self._local_address

    @property
    def is_connecting(self) -> bool:
        """True until the first hop has accepted the connection."""
        return isinstance(self._step, Dial)

    def authenticate(self, *, creates: bool) -> None:
        """Run the handshake, now that the path is connected: create the session, or join it."""
        sock, self._sock = self._sock, None
        assert sock is not None
        creation = self._owner.creation
        credentials = self._owner.credentials
        self._step = ClientSocketHandshake(
            self._loop,
            sock,
            credentials.identity,
            self._owner.allocate_subflow(),
            None if creates else creation.membership,
            self._on_authenticated,
            self._fail,
            self._role,
            self._early,
            (lambda: creation.may_create(self)) if creates else None,
            credentials.tls,
            self.spec.endpoint.host,
        )

    def cancel(self) -> None:
        if self._step is not None:
            self._step.cancel()
            self._step = None
        self._close()
        self._owner.creation.leave(self)

    def _on_dialled(self, sock: socket.socket) -> None:
        self._local_address = local_address(sock)
        self._step = None
        via = self.spec.via
        if via is None:
            self._on_connected(sock, b"")
        else:
            self._step = Tunnel(
                self._loop,
                sock,
                conversation(via, self.spec.endpoint),
                self._owner.connect_timeout,
                self._on_connected,
                self._on_tunnel_failed,
            )

    def _on_connected(self, sock: socket.socket, early: bytes) -> None:
        tune_subflow(sock, START_LOWAT, self._owner.subflow_timeout)
        self._step = None
        self._sock = sock
        self._early = early
        self._loop.watch(sock.fileno(), self._on_event_while_waiting)
        self._owner.creation.enter(self)

    def _on_event_while_waiting(self, mask: int) -> None:
        if mask & (RDHUP | HUP | ERR):
            self._close()
            self._fail(PeerError("the peer closed the connection"))

    def _on_authenticated(
        self, sock: socket.socket, tls: Tls | None, handshake: ClientHandshake
    ) -> None:
        self._step = None
        self._owner.creation.passed(self, handshake.membership)
        self._done(self, sock, tls, handshake)

    def _on_dial_failed(self, error: OSError, _unresolved: bool) -> None:
        text = error.strerror or str(error)
        if isinstance(error, socket.gaierror):
            text = f"cannot look up {self.spec.first_hop.host}: {text}"
        if self.spec.via is not None:
            text = f"cannot reach the proxy: {text}"
        failure = PeerError(text)
        failure.__cause__ = error
        self._fail(failure)

    def _on_tunnel_failed(self, error: PeerError) -> None:
        self._fail(PeerError(f"proxy: {error}"))

    def _fail(self, error: PeerError) -> None:
        self._step = None
        self._owner.creation.leave(self)
        self._failed(self, error)

    def _close(self) -> None:
        if self._sock is not None:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._sock = None
