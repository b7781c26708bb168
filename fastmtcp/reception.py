"""Takes in a worker's connections until their clients have proved who they are."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Protocol

from fastmtcp.auth import NEW_SESSION, Preamble, RefusedError, ServerHandshake
from fastmtcp.engine.limits import START_LOWAT
from fastmtcp.errors import PeerError
from fastmtcp.identity import Clients
from fastmtcp.io.handshakes import Arrival, ServerSocketHandshake
from fastmtcp.io.listener import Listener
from fastmtcp.io.loop import Loop
from fastmtcp.io.tcp import tune_subflow
from fastmtcp.io.tls import ServerTls, Tls

log = logging.getLogger("fastmtcp.server")

MAX_HANDSHAKES = 1024
"""Connections of one worker that have not proved anything yet: more are closed at once."""

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
    still watched then. Whom to let in is in `clients`, and `security` is None without TLS; both
    may be replaced at any time.
    """

    def __init__(
        self,
        loop: Loop,
        index: int,
        sockets: list[socket.socket],
        handoff: Handoff,
        clients: Clients,
        security: ServerTls | None,
        subflow_timeout: float,
        proved: Proved,
    ) -> None:
        """`sockets` are bound; `index` is this worker's, from 0."""
        self.clients = clients
        self.security = security
        self._loop = loop
        self._index = index
        self._handoff = handoff
        self._subflow_timeout = subflow_timeout
        self._proved = proved
        self._waiting: dict[Arrival | ServerSocketHandshake, str] = {}
        self._listeners = [Listener(loop, sock, self._on_accept) for sock in sockets]

    def close(self) -> None:
        """Accept nothing more, and forget all that have not proved anything. Connections that
        other workers pass on are still taken."""
        for listener in self._listeners:
            listener.close()
        waiting, self._waiting = self._waiting, {}
        for handshake in waiting:
            handshake.cancel()

    def on_handoff(self, sock: socket.socket, peer: str, tls: bool, until: float) -> None:
        """A connection that another worker accepted, for a session of this one."""
        if not self._has_room(sock, peer):
            return
        try:
            self._shake(sock, peer, Preamble(tls, self._index), until)
        except OSError as error:  # epoll_ctl(2): out of memory or of watches
            log.warning("connection from %s dropped: %s", peer, error.strerror)
            sock.close()

    def _on_accept(self, sock: socket.socket, peer: str) -> None:
        if self._has_room(sock, peer):
            self._waiting[Arrival(self._loop, sock, self._on_arrived, self._on_failed)] = peer

    def _has_room(self, sock: socket.socket, peer: str) -> bool:
        if len(self._waiting) < MAX_HANDSHAKES:
            return True
        log.warning("connection from %s dropped: %d handshakes wait", peer, MAX_HANDSHAKES)
        sock.close()
        return False

    def _on_arrived(self, arrival: Arrival, sock: socket.socket, preamble: Preamble) -> None:
        """The preamble says whose session it is about: go on here or at its owner."""
        peer = self._waiting.pop(arrival)
        owner = preamble.worker
        # One from before a restart with fewer workers is answered here, with UNKNOWN_SESSION.
        if owner in (NEW_SESSION, self._index) or not self._handoff.knows(owner):
            self._shake(sock, peer, preamble, arrival.until)
            return
        if not self._handoff.send(owner, sock, peer, preamble.tls, arrival.until):
            log.warning("connection from %s dropped: worker %d has too many", peer, owner)
        self._loop.unwatch(sock.fileno())
        sock.close()

    def _shake(self, sock: socket.socket, peer: str, preamble: Preamble, until: float) -> None:
        tune_subflow(sock, START_LOWAT, self._subflow_timeout)
        handshake = ServerSocketHandshake(
            self._loop,
            sock,
            preamble,
            self.clients,
            self.security,
            until,
            self._on_proved,
            self._on_failed,
        )
        self._waiting[handshake] = peer

    def _on_proved(
        self,
        waiting: ServerSocketHandshake,
        sock: socket.socket,
        tls: Tls | None,
        handshake: ServerHandshake,
    ) -> None:
        self._proved(sock, tls, handshake, self._waiting.pop(waiting))

    def _on_failed(self, waiting: Arrival | ServerSocketHandshake, error: PeerError) -> None:
        peer = self._waiting.pop(waiting)
        if isinstance(error, RefusedError):
            log.warning("connection from %s refused: %s", peer, error)
        else:
            log.info("connection from %s dropped: %s", peer, error)
