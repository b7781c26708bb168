"""Takes in a worker's connections until their clients have proved who they are."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import NamedTuple, Protocol

from fastmtcp.config.limits import ServerLimits
from fastmtcp.endpoint import host_of
from fastmtcp.engine.limits import START_LOWAT
from fastmtcp.errors import PeerError
from fastmtcp.io.dialogue import GoneError
from fastmtcp.io.listener import Listener
from fastmtcp.io.loop import Loop, Timer
from fastmtcp.io.tcp import tune_subflow
from fastmtcp.security.certificates import ServerTls
from fastmtcp.security.handshake import NEW_SESSION, Preamble, RefusedError, ServerHandshake
from fastmtcp.security.handshake_socket import PreambleReader, ServerSocketHandshake
from fastmtcp.security.identity import Clients
from fastmtcp.security.tls import Tls
from fastmtcp.server.admission import Admission

log = logging.getLogger("fastmtcp.server")

_PATIENCE = 1.0
"""Seconds that a connection may say nothing at all while others wait for its place. A client's
preamble comes with its first packet."""

_LOOK = 0.25
"""Seconds between two looks for such connections while all places are taken."""

_BREATH = 0.02
"""Seconds of pause beyond what is needed, so that a flood is not accepted one by one."""

Proved = Callable[[socket.socket, Tls | None, ServerHandshake, str], None]


class Handoff(Protocol):
    """Passes a connection whose preamble was read to the worker that owns its session."""

    def knows(self, owner: int) -> bool:
        """True if there is a worker of this index."""

    def send(self, owner: int, sock: socket.socket, peer: str, tls: bool, until: float) -> bool:
        """False if that worker's queue is full. `tls` is from the preamble; the handshake must be
        over by `until`."""


class Reception:
    """Accepts connections for all workers, passes those on that belong to another, and
    authenticates the rest.

    Calls `proved(sock, tls, handshake, peer)` for each client that holds its key; the socket is
    still watched then. `clients` are those to let in, and `certificates` is None without TLS; both
    may be replaced at any time.
    """

    def __init__(
        self,
        loop: Loop,
        index: int,
        sockets: list[socket.socket],
        handoff: Handoff,
        clients: Clients,
        certificates: ServerTls | None,
        limits: ServerLimits,
        proved: Proved,
    ) -> None:
        """`sockets` are bound; `index` is this worker's, from 0."""
        self.clients = clients
        self.certificates = certificates
        self._loop = loop
        self._index = index
        self._handoff = handoff
        self._subflow_timeout = limits.subflow_timeout
        self._proved = proved
        self._admission = Admission(loop.now, limits.max_handshakes)
        self._arrivals: dict[PreambleReader, str] = {}
        self._handshakes: dict[ServerSocketHandshake, _Unauthenticated] = {}
        self._timer: Timer | None = None
        self._closed = False
        self._listeners = [Listener(loop, sock, self._on_accept) for sock in sockets]

    def close(self) -> None:
        """Accept nothing more, and close all that are not authenticated yet. Connections that
        other workers pass on are still taken."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for listener in self._listeners:
            listener.close()
        for arrival, peer in self._arrivals.items():
            arrival.cancel()
            self._admission.leave(host_of(peer), accepted=True)
        for handshake, connection in self._handshakes.items():
            handshake.cancel()
            self._admission.leave(host_of(connection.peer), accepted=connection.accepted)
        self._arrivals.clear()
        self._handshakes.clear()

    def on_handoff(self, sock: socket.socket, peer: str, tls: bool, until: float) -> None:
        """A connection that another worker accepted, for a session of this one."""
        if not self._admission.take_over(host_of(peer)):
            self._loop.lines.warning(
                log, "", "connection from %s dropped: too many handshakes wait", peer
            )
            sock.close()
            return
        try:
            self._shake(
                sock, _Unauthenticated(peer, accepted=False), Preamble(tls, self._index), until
            )
        except OSError as error:  # epoll_ctl(2): out of memory or of watches
            self._loop.lines.warning(
                log, "", "connection from %s dropped: %s", peer, error.strerror
            )
            self._admission.leave(host_of(peer), accepted=False)
            sock.close()

    # --- unauthenticated connections ----------------------------------------------------------

    def _on_accept(self, sock: socket.socket, peer: str) -> None:
        host = host_of(peer)
        if not self._admission.accept(host, self._loop.clock()):
            self._loop.lines.warning(
                log, "", "connection from %s dropped: too many or too often", peer
            )
            sock.close()
        else:
            try:
                arrival = PreambleReader(
                    self._loop, sock, self._on_arrived, self._on_arrival_failed
                )
            except OSError:
                self._admission.leave(host, accepted=True)
                raise
            self._arrivals[arrival] = peer
        self._check_places()

    def _check_places(self) -> None:
        """Accept only as many as there is time and place for."""
        if self._closed:
            return
        delay = self._admission.delay(self._loop.clock())
        for listener in self._listeners:
            listener.hold(delay != 0)
        if delay != 0 and (self._timer is None or self._timer.callback is None):
            self._timer = self._loop.call_later(
                _LOOK if delay is None else delay + _BREATH, self._on_timer
            )

    def _on_timer(self) -> None:
        self._timer = None
        if self._admission.delay(self._loop.clock()) is None:
            for arrival in list(self._arrivals):
                if self._loop.now - arrival.since < _PATIENCE:
                    break  # they are in the order of their arrival
                arrival.give_up()
        self._check_places()

    def _on_arrived(self, arrival: PreambleReader, sock: socket.socket, preamble: Preamble) -> None:
        """The preamble says whose session it is about: go on here or at its owner."""
        peer = self._arrivals.pop(arrival)
        owner = preamble.worker
        # One from before a restart with fewer workers is answered here, with UNKNOWN_SESSION.
        if owner in (NEW_SESSION, self._index) or not self._handoff.knows(owner):
            self._shake(sock, _Unauthenticated(peer, accepted=True), preamble, arrival.until)
            return
        self._leave(peer, accepted=True)
        if not self._handoff.send(owner, sock, peer, preamble.tls, arrival.until):
            self._loop.lines.warning(
                log, "", "connection from %s dropped: its worker has too many", peer
            )
        self._loop.unwatch(sock.fileno())
        sock.close()

    def _shake(
        self, sock: socket.socket, connection: _Unauthenticated, preamble: Preamble, until: float
    ) -> None:
        tune_subflow(sock, START_LOWAT, self._subflow_timeout)
        handshake = ServerSocketHandshake(
            self._loop,
            sock,
            preamble,
            self.clients,
            self.certificates,
            until,
            self._on_proved,
            self._on_failed,
        )
        self._handshakes[handshake] = connection

    def _leave(self, peer: str, *, accepted: bool) -> None:
        self._admission.leave(host_of(peer), accepted=accepted)
        self._check_places()

    def _on_proved(
        self,
        waiting: ServerSocketHandshake,
        sock: socket.socket,
        tls: Tls | None,
        handshake: ServerHandshake,
    ) -> None:
        connection = self._handshakes.pop(waiting)
        self._leave(connection.peer, accepted=connection.accepted)
        self._proved(sock, tls, handshake, connection.peer)

    def _on_arrival_failed(self, arrival: PreambleReader, error: PeerError) -> None:
        self._fail(self._arrivals.pop(arrival), error, accepted=True)

    def _on_failed(self, waiting: ServerSocketHandshake, error: PeerError) -> None:
        connection = self._handshakes.pop(waiting)
        self._fail(connection.peer, error, accepted=connection.accepted)

    def _fail(self, peer: str, error: PeerError, *, accepted: bool) -> None:
        # One that only looks whether the port is open has done nothing wrong.
        if not isinstance(error, GoneError):
            self._admission.failed(host_of(peer), self._loop.now)
        self._leave(peer, accepted=accepted)
        lines = self._loop.lines
        if isinstance(error, RefusedError):
            lines.warning(log, "", "connection from %s refused: %s", peer, error)
        else:
            lines.info(log, "", "connection from %s dropped: %s", peer, error)


class _Unauthenticated(NamedTuple):
    """A connection in its handshake; `accepted` by this worker, or else passed on to it."""

    peer: str
    accepted: bool
