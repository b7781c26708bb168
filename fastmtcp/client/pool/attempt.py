"""One attempt to make an authenticated connection over a path: dial, proxy, handshake."""

from __future__ import annotations

import socket
from collections.abc import Callable

from fastmtcp.config.credentials import Credentials
from fastmtcp.config.path import PathSpec
from fastmtcp.engine.limits import START_LOWAT
from fastmtcp.engine.subflows.role import Role
from fastmtcp.errors import PeerError
from fastmtcp.io.dialer import Dial, WayOut
from fastmtcp.io.loop import ERR, HUP, RDHUP, Loop
from fastmtcp.io.resolver import Resolver
from fastmtcp.io.tcp import tune_subflow
from fastmtcp.proxy.tunnel import Tunnel
from fastmtcp.proxy.upstream import conversation
from fastmtcp.security.handshake import ClientHandshake, Membership
from fastmtcp.security.handshake_socket import ClientSocketHandshake
from fastmtcp.security.tls import Tls


class Attempt:
    """Calls `connected()` once the path leads somewhere; then authenticate() goes on, at once or
    later. Then `done(sock, tls, handshake)`. At any time instead `failed(error)`, once.

    Neither is called from within the constructor or authenticate(), nor after cancel(). `timeout`
    seconds are for the connection, and as many for the proxy; `patience` seconds for one address.
    """

    def __init__(
        self,
        loop: Loop,
        resolver: Resolver,
        spec: PathSpec,
        connected: Callable[[], None],
        done: Callable[[socket.socket, Tls | None, ClientHandshake], None],
        failed: Callable[[PeerError], None],
        *,
        timeout: float,
        subflow_timeout: float,
        patience: float | None = None,
        first: int = 0,
    ) -> None:
        self.started_at = loop.now
        self._loop = loop
        self._spec = spec
        self._connected = connected
        self._done = done
        self._failed = failed
        self._timeout = timeout
        self._subflow_timeout = subflow_timeout
        self._sock: socket.socket | None = None
        self._early = b""
        self._step: Dial | Tunnel | ClientSocketHandshake | None = Dial(
            loop,
            resolver,
            spec.first_hop,
            timeout,
            self._on_dialled,
            self._on_dial_failed,
            first=first,
            way_out=WayOut(spec.bind, spec.dev),
            patience=patience,
        )

    @property
    def is_connecting(self) -> bool:
        """True until the first hop has accepted the connection."""
        return isinstance(self._step, Dial)

    def authenticate(
        self,
        credentials: Credentials,
        subflow_id: int,
        join: Membership | None,
        role: Role,
        may_go_on: Callable[[], bool] | None = None,
    ) -> None:
        """Run the handshake, now that the path is connected."""
        sock, self._sock = self._sock, None
        assert sock is not None
        self._step = ClientSocketHandshake(
            self._loop,
            sock,
            credentials.identity,
            subflow_id,
            join,
            self._on_authenticated,
            self._fail,
            role,
            self._early,
            may_go_on,
            credentials.tls,
            self._spec.endpoint.host,
        )

    def cancel(self) -> None:
        if self._step is not None:
            self._step.cancel()
            self._step = None
        self._close()

    def _on_dialled(self, sock: socket.socket) -> None:
        self._step = None
        via = self._spec.via
        if via is None:
            self._on_connected(sock, b"")
        else:
            self._step = Tunnel(
                self._loop,
                sock,
                conversation(via, self._spec.endpoint),
                self._timeout,
                self._on_connected,
                self._on_tunnel_failed,
            )

    def _on_connected(self, sock: socket.socket, early: bytes) -> None:
        tune_subflow(sock, START_LOWAT, self._subflow_timeout)
        self._step = None
        self._sock = sock
        self._early = early
        self._loop.watch(sock.fileno(), self._on_event_while_waiting)
        self._connected()

    def _on_event_while_waiting(self, mask: int) -> None:
        if mask & (RDHUP | HUP | ERR):
            self._close()
            self._fail(PeerError("the peer closed the connection"))

    def _on_authenticated(
        self, sock: socket.socket, tls: Tls | None, handshake: ClientHandshake
    ) -> None:
        self._step = None
        self._done(sock, tls, handshake)

    def _on_dial_failed(self, error: OSError, _unresolved: bool) -> None:
        text = error.strerror or str(error)
        if isinstance(error, socket.gaierror):
            text = f"cannot look up {self._spec.first_hop.host}: {text}"
        if self._spec.via is not None:
            text = f"cannot reach the proxy: {text}"
        failure = PeerError(text)
        failure.__cause__ = error
        self._fail(failure)

    def _on_tunnel_failed(self, error: PeerError) -> None:
        self._fail(PeerError(f"proxy: {error}"))

    def _fail(self, error: PeerError) -> None:
        self._step = None
        self._failed(error)

    def _close(self) -> None:
        if self._sock is not None:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._sock = None
