"""What runs the sessions of a client or a server, to those who start and stop it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from fastmtcp.driver.session import SessionDriver
from fastmtcp.status.document import Observable


class Service(Observable, Protocol):
    """A fastmtcp.client.service.ClientService or fastmtcp.server.service.ServerService."""

    @property
    def drivers(self) -> Sequence[SessionDriver]:
        """Of all sessions, those that have ended and still deliver included."""

    def drain(self, timeout: float | None, done: Callable[[], None]) -> None:
        """Take nothing new, wait up to `timeout` seconds for the open streams (None: as long as it
        takes), reset those that are left, then call `done`. When it is asked again, only the
        earlier end counts."""
