"""Two session drivers in one process, joined by real TCP connections, with real applications."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import TracebackType

from fastmtcp.driver.relay import Relay
from fastmtcp.driver.session import SessionDriver
from fastmtcp.driver.subflow import SubflowSocket
from fastmtcp.driver.turn import Turn
from fastmtcp.engine.limits import Limits
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.wire.errors import SessionCode
from fastmtcp.io.buffers import BufferPool
from fastmtcp.io.loop import Loop
from fastmtcp.io.tcp import tune_subflow

from tests.io.net import WAIT, Background, run_until, tcp_pair


class Side:
    """One end of the session."""

    def __init__(
        self, loop: Loop, limits: Limits, *, opener: bool, turn: Turn | None = None
    ) -> None:
        self.pool = BufferPool()
        self.session = Session(
            opener=opener,
            limits=limits,
            now=loop.now,
            peer_floor=limits.floor_window if opener else 0,
            peer_streams=limits.max_streams if opener else 0,
        )
        self.opened: list[Stream] = []
        self.ended: list[tuple[SessionCode, str]] = []
        self.lost: list[str] = []
        self.driver = SessionDriver(
            loop, self.pool, self.session, self._on_opened, self._on_ended, turn
        )
        self.on_opened: Callable[[Stream], None] = self.opened.append

    def _on_opened(self, stream: Stream) -> None:
        self.on_opened(stream)

    def _on_ended(self, code: SessionCode, reason: str) -> None:
        self.ended.append((code, reason))

    def attach(self, sock: socket.socket, subflow_id: int) -> SubflowSocket:
        sock.setblocking(False)
        tune_subflow(sock, 256 * 1024, 15.0)
        attached = self.driver.attach(sock, subflow_id, "peer", self.lost.append)
        assert attached is not None
        return attached


class Joined:
    """A client's and a server's driver. Each stream ends at two sockets of the test."""

    def __init__(self, subflows: int = 1, limits: Limits | None = None) -> None:
        self.loop = Loop()
        limits = limits or Limits()
        self.client = Side(self.loop, limits, opener=True)
        self.server = Side(self.loop, limits, opener=False)
        self.server.on_opened = self._connect
        self._targets: list[socket.socket] = []
        self._sockets: list[socket.socket] = []
        self._next_subflow = 0
        self.subflows = [self.add_subflow() for _ in range(subflows)]

    def __enter__(self) -> Joined:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for side in (self.client, self.server):
            side.driver.end(SessionCode.NORMAL, "the test is over")
        watched = list(self.loop._handlers)
        for sock in self._sockets:
            sock.close()
        self.loop.close()
        if kind is None:
            assert watched == [], "descriptors are still watched after the end"

    def add_subflow(self) -> tuple[SubflowSocket, SubflowSocket]:
        near, far = tcp_pair()
        return self.join(near, far)

    def join(self, near: socket.socket, far: socket.socket) -> tuple[SubflowSocket, SubflowSocket]:
        """Make a subflow of two sockets, whatever is between them."""
        number = self._next_subflow
        self._next_subflow += 1
        return self.server.attach(far, number), self.client.attach(near, number)

    def application(self, budget: int | None = None) -> tuple[socket.socket, Relay]:
        """Connect an application to the client; its target comes with target()."""
        ours, theirs = tcp_pair()
        self._sockets.append(ours)
        stream = self.client.session.open(self.loop.now)
        relay = self.client.driver.add_relay(theirs, stream, budget)
        stream.announce()
        self.client.driver.progress()
        return ours, relay

    def target(self) -> socket.socket:
        """The target's end of the stream opened first of those not asked for yet."""
        run_until(self.loop, lambda: self._targets, "the stream is opened at the server")
        return self._targets.pop(0)

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """An application and its target."""
        application, _ = self.application()
        return application, self.target()

    def run(self, *works: Background[object]) -> None:
        """Run the loop until all `works` are done."""
        run_until(self.loop, lambda: all(work.done for work in works), "the threads end")

    def until(self, condition: Callable[[], object], what: str = "") -> None:
        run_until(self.loop, condition, what)

    def is_empty(self) -> bool:
        """No stream, no relay and no kept byte is left on either side."""
        return all(
            side.driver.is_quiet and not side.session.held for side in (self.client, self.server)
        )

    def _connect(self, stream: Stream) -> None:
        ours, theirs = tcp_pair()
        ours.settimeout(WAIT)
        self._sockets.append(ours)
        self._targets.append(ours)
        stream.confirm()
        self.server.driver.add_relay(theirs, stream)
