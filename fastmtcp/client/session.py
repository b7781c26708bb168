"""One session at the client: the engine's session, its driver, and the pool of subflows."""

from __future__ import annotations

from collections.abc import Callable

from fastmtcp.client.pool.pool import Pool
from fastmtcp.config.client import ClientConfig
from fastmtcp.config.credentials import Credentials
from fastmtcp.driver.session import SessionDriver
from fastmtcp.driver.subflow import SubflowSocket
from fastmtcp.engine.limits import Limits
from fastmtcp.engine.quota import Memory
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.errors import SessionCode
from fastmtcp.io.buffers import BufferPool
from fastmtcp.io.loop import Loop
from fastmtcp.io.resolver import Resolver
from fastmtcp.security.handshake import Grant
from fastmtcp.status.document import PathInfo

FEWEST_STREAMS = 7
"""What every server lets a client have open at once: more wait until it has said its limit."""


class ClientSession:
    """A session from its first connection to its end. Give paths to its `pool` to start it."""

    def __init__(
        self,
        loop: Loop,
        buffers: BufferPool,
        resolver: Resolver,
        config: ClientConfig,
        credentials: Credentials,
        limits: Limits,
        memory: Memory,
        on_change: Callable[[], None],
        on_ended: Callable[[ClientSession, str], None],
        sessions: int = 1,
    ) -> None:
        """`memory` is the worker's, `sessions` how many the client has in all its workers.
        `on_change` is called when a subflow comes or goes, `on_ended` once at the end."""
        self.session = Session(
            opener=True,
            limits=limits,
            now=loop.now,
            peer_streams=FEWEST_STREAMS,
            memory=memory,
        )
        self.driver = SessionDriver(loop, buffers, self.session, _unexpected, self._on_driver_ended)
        self._sessions = sessions
        self.closing = False
        """True once it connects no more."""
        self._on_ended = on_ended
        self.pool = Pool(
            resolver,
            config,
            credentials,
            self.driver,
            self._on_created,
            on_change,
            self._on_unknown,
        )

    @property
    def down_since(self) -> float | None:
        """Since when no subflow has been up; None while one is."""
        return self.pool.down_since

    @property
    def up(self) -> int:
        """Subflows that are connected and authenticated."""
        return self.pool.up

    @property
    def session_id(self) -> bytes:
        """The session's id at the server; empty until there is one."""
        membership = self.pool.membership
        return membership.session if membership is not None else b""

    @property
    def peer(self) -> str:
        return ", ".join(path.spec.label for path in self.pool.paths)

    def paths(self) -> list[PathInfo]:
        """The paths with their counters, for the status."""
        return [
            PathInfo(
                name=path.spec.label,
                wanted=path.target,
                reconnects=path.reconnects,
                trouble=path.trouble,
            )
            for path in self.pool.paths
        ]

    def path_of(self, subflow: Subflow) -> str:
        return self.socket_of(subflow).peer

    def socket_of(self, subflow: Subflow) -> SubflowSocket:
        return self.driver.sockets[subflow]

    def application_of(self, stream: Stream) -> str:
        return self.driver.application_of(stream)

    def retire(self) -> None:
        """Dial no more; the open streams go on over the subflows that are up."""
        self.closing = True
        self.pool.stop()

    def close(self, reason: str) -> None:
        """End the session: streams that are still open are reset."""
        self.retire()
        self.driver.end(SessionCode.NORMAL, reason)

    def _on_created(self, grant: Grant) -> None:
        # The server counts the streams that all of them open.
        opens = grant.opens_per_second / self._sessions
        self.session.set_peer_limits(grant.floor_window, grant.max_streams, opens)
        self.driver.progress()

    def _on_unknown(self) -> None:
        self.driver.end(SessionCode.TIMEOUT, "the server does not know the session any more")

    def _on_driver_ended(self, _code: SessionCode, reason: str) -> None:
        self.retire()
        self._on_ended(self, reason)


def _unexpected(_stream: object) -> None:
    raise AssertionError("a server opened a stream")
