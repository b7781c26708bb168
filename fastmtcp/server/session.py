"""A server's session: whose it is, and what a further subflow must know to join it."""

from __future__ import annotations

from fastmtcp.driver.session import SessionDriver
from fastmtcp.driver.subflow import SubflowSocket
from fastmtcp.endpoint import host_of
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.security.identity import Verifier
from fastmtcp.status.document import PathInfo


class ServerSession:
    """One client's session, until its driver has ended."""

    __slots__ = ("client", "driver", "peer", "secret", "session", "session_id", "verifier")

    def __init__(
        self,
        session_id: bytes,
        secret: bytes,
        driver: SessionDriver,
        client: str,
        verifier: Verifier,
        peer: str,
    ) -> None:
        self.session_id = session_id
        self.secret = secret
        self.driver = driver
        self.client = client
        """Its name; empty for one that has only the key of a key file."""
        self.verifier = verifier
        self.session = driver.session
        self.peer = f"{client} at {host_of(peer)}" if client else host_of(peer)

    def paths(self) -> list[PathInfo]:
        return []  # only the client knows them; here they show by its addresses

    def path_of(self, subflow: Subflow) -> str:
        return host_of(self.socket_of(subflow).peer)

    def socket_of(self, subflow: Subflow) -> SubflowSocket:
        return self.driver.sockets[subflow]

    def application_of(self, stream: Stream) -> str:
        return self.driver.application_of(stream)
