"""What every attempt of a session's pool needs, whichever path and slot it is for."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

from fastmtcp.client.pool.creation import Creation
from fastmtcp.config.credentials import Credentials
from fastmtcp.driver.session import SessionDriver
from fastmtcp.driver.subflow import SubflowSocket
from fastmtcp.io.resolver import Resolver
from fastmtcp.security.handshake import ClientHandshake
from fastmtcp.security.tls import Tls

_STAGGER = 0.1
"""Seconds between the starts of two subflows: bbr probes the round-trip time every ten seconds
from the start of a connection, and connections that all probe at once leave the line empty."""

_ALL_STARTED = 1.0
"""Seconds in which all subflows of a large pool have been started."""


class Connector:
    """Made by the pool and given to every slot. `wanted()` is the number of subflows that the
    session should have, `connect_timeout` in seconds."""

    def __init__(
        self,
        driver: SessionDriver,
        resolver: Resolver,
        credentials: Credentials,
        connect_timeout: float,
        wanted: Callable[[], int],
    ) -> None:
        self.loop = driver.loop
        self.resolver = resolver
        self.credentials = credentials
        """Of handshakes that begin from now on."""
        self.connect_timeout = connect_timeout
        self.subflow_timeout = driver.session.limits.subflow_timeout
        self.creation = Creation(driver.loop)
        self._driver = driver
        self._wanted = wanted
        self._next_subflow = 0
        self._next_turn = 0.0

    @property
    def live(self) -> int:
        """Subflows that the session has."""
        return len(self._driver.session.subflows)

    @property
    def is_urgent(self) -> bool:
        """Streams wait, and no subflow is left."""
        return not self.live and bool(self._driver.session.streams)

    def turn(self) -> float:
        """When the next subflow should start."""
        now = self.loop.now
        spacing = min(_STAGGER, _ALL_STARTED / max(self._wanted(), 1))
        self._next_turn = max(now, self._next_turn + spacing * random.uniform(0.9, 1.1))
        return self._next_turn

    def allocate_subflow(self) -> int:
        """An id for a new subflow."""
        self._next_subflow += 1
        return self._next_subflow - 1

    def drop(self, subflow: SubflowSocket, reason: str) -> None:
        """Close a subflow; what it carried goes over the others."""
        self._driver.lost(subflow, reason)

    def attach(
        self,
        sock: socket.socket,
        tls: Tls | None,
        handshake: ClientHandshake,
        label: str,
        on_lost: Callable[[str], None],
    ) -> SubflowSocket | None:
        """Make an authenticated connection over the path `label` a subflow of the session; None
        if that cannot be."""
        return self._driver.attach(
            sock,
            handshake.subflow_id,
            label,
            on_lost,
            handshake.early,
            handshake.role,
            tls,
        )
