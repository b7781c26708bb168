"""Runs one session on the loop: its subflow sockets, its relays, its timers."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from fastmtcp.driver.relay import Relay
from fastmtcp.driver.subflow import SubflowSocket
from fastmtcp.engine.limits import READ_WORK, TURN_WORK
from fastmtcp.engine.scheduling.watch import SAMPLE_EVERY
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.wire.errors import RemoteError, SessionCode
from fastmtcp.io.buffers import BufferPool
from fastmtcp.io.loop import Loop, Timer
from fastmtcp.security.tls import Tls

log = logging.getLogger("fastmtcp.session")

_ROUNDS = 64
"""Chunks sent in one go before other sessions and sockets of the worker get their turn."""


class SessionDriver:
    """The io side of a session.

    `on_opened(stream)` is called for each stream that the peer opens, `on_ended(code, reason)`
    once, when the session is over and all its subflows are closed.
    """

    def __init__(
        self,
        loop: Loop,
        pool: BufferPool,
        session: Session,
        on_opened: Callable[[Stream], None],
        on_ended: Callable[[SessionCode, str], None],
    ) -> None:
        self.loop = loop
        self.pool = pool
        self.session = session
        self.relays: set[Relay] = set()
        self.ended = False
        self.on_quiet: Callable[[], None] | None = None
        """Called whenever something has moved and nothing is left to do, see is_quiet."""
        self._on_opened = on_opened
        self._on_ended = on_ended
        self._timer: Timer | None = None
        self._measuring = False
        self._busy = False
        self._again = False
        self._turn = 0.0
        self._work = TURN_WORK
        self._waiting: dict[SubflowSocket, None] = {}
        self._set_timer()

    def attach(
        self,
        sock: socket.socket,
        subflow_id: int,
        peer: str,
        on_lost: Callable[[str], None] | None = None,
        early: bytes = b"",
        role: Role = Role.BOTH,
        tls: Tls | None = None,
    ) -> SubflowSocket | None:
        """Add an authenticated socket as a subflow. `early` are bytes of it already read, and
        deciphered if it has `tls`.

        Returns None if it cannot be added; the socket is closed then.
        """
        try:
            subflow = self.session.attach(subflow_id, self.loop.now, role)
        except RemoteError as error:
            log.warning("subflow from %s refused: %s", peer, error)
            self.loop.unwatch(sock.fileno())
            sock.close()
            return None
        subflow_socket = SubflowSocket(self, sock, subflow, peer, on_lost, tls)
        if early:
            self.received(subflow_socket, memoryview(early))
            if subflow_socket.rest is not None:
                self.read_later(subflow_socket)
        # Its round-trip time is known from the handshake.
        subflow_socket.measure(self.loop.now)
        self.progress()
        return subflow_socket

    def add_relay(
        self,
        sock: socket.socket,
        stream: Stream,
        budget: int | None = None,
        on_close: Callable[[Relay], None] | None = None,
    ) -> Relay:
        """Connect an application's socket with a stream; `budget` is as in Relay. `on_close` is
        called once, when the socket has been closed."""

        def closed(relay: Relay) -> None:
            self.relays.discard(relay)
            if on_close is not None:
                on_close(relay)
            # Else progress() follows, and tells it.
            if self.ended and self.on_quiet is not None and self.is_quiet:
                self.on_quiet()

        relay = Relay(self.loop, self.pool, sock, stream, self.progress, closed, budget)
        self.relays.add(relay)
        relay.update()
        return relay

    @property
    def is_quiet(self) -> bool:
        """True if no application is connected and nothing waits for an acknowledgement."""
        session = self.session
        # Without a subflow, what waits to be sent can wait for ever.
        return not self.relays and (session.is_quiet if session.subflows else not session.streams)

    @property
    def may_read(self) -> bool:
        """False if the session has had its share of this turn of the loop: others are next."""
        if self._turn != self.loop.now:
            self._turn = self.loop.now
            self._work = TURN_WORK
        return self._work > 0

    def read_later(self, source: SubflowSocket) -> None:
        """Let `source` read on in the next turn of the loop, in its turn."""
        if source not in self._waiting:
            if not self._waiting:
                self.loop.call_soon(self._read_on)
            self._waiting[source] = None

    def received(self, source: SubflowSocket, view: memoryview) -> None:
        """Bytes came in on a subflow. What is more than the session's share of this turn is kept
        in `source.rest`."""
        try:
            taken = self.session.receive(source.subflow, view, self.loop.now, max(1, self._work))
        except RemoteError as error:
            self.end(error.code, str(error))
            return
        self._work = self.session.work_left - READ_WORK
        source.rest = view[taken:] if taken < len(view) else None
        # Pass data on while it is still in the cache.
        self.progress()

    def lost(self, source: SubflowSocket, reason: str) -> None:
        """A subflow died; its bytes go out again on the others."""
        if source.closed:
            return
        source.close(reset=True)
        self.session.detach(source.subflow, self.loop.now)
        if source.on_lost is not None:
            source.on_lost(reason)
        self.loop.call_soon(self.progress)

    def close_retired(self, source: SubflowSocket) -> bool:
        """Close a retiring subflow if nothing is lost by it; false if it still carries data."""
        if source.closed:
            return True
        if source.subflow.is_carrying() or not source.subflow.ready:
            return False
        source.close(reset=False)
        self.session.detach(source.subflow, self.loop.now)
        self.loop.call_soon(self.progress)
        return True

    def progress(self) -> None:
        """Let everything move that can: relays whose streams were touched, subflows that have
        something to send. Not re-entrant: an inner call only asks for another round."""
        if self._busy:
            return
        if self.ended:
            return
        self._busy = True
        session = self.session
        now = self.loop.now
        rounds = 0
        while True:
            if session.touched:
                self._update_touched()
            if session.opened:
                self._announce_opened()
            subflow = session.pick(now)
            if subflow is None:
                if session.touched or session.opened:
                    continue
                break
            buffers, size = session.pull(subflow, now)
            if size:
                subflow.user.send(buffers, size)
                rounds += 1
                if rounds >= _ROUNDS:
                    self.loop.call_soon(self.progress)
                    break
        self._busy = False
        if session.gone:
            gone, session.gone = session.gone, []
            for subflow in gone:
                self.lost(subflow.user, "lost at the other side")
        if session.ended is not None:
            self.end(*session.ended)
            return
        self._set_timer()
        if self.on_quiet is not None and self.is_quiet:
            self.on_quiet()

    def end(self, code: SessionCode, reason: str) -> None:
        """End the session: reset every stream, say goodbye, close all."""
        if self.ended:
            return
        self.ended = True
        session = self.session
        session.end(code, reason)
        self._update_touched()
        farewell = session.goaway(code, reason)
        for subflow in list(session.subflows.values()):
            if session.ended_by_peer:
                subflow.user.close(reset=True)
            else:
                subflow.user.last_words(farewell)
            session.detach(subflow, self.loop.now)
        for relay in list(self.relays):
            # A complete stream's relay goes on by itself with what is left to deliver.
            if relay.stream.reset_code is not None or not relay.stream.receive.is_all_here:
                relay.abort()
        if self._timer is not None:
            self._timer.cancel()
        self._on_ended(code, reason)

    def _update_touched(self) -> None:
        touched = self.session.touched
        self.session.touched = []
        for stream in touched:
            stream.touched = False
            if stream.user is not None:
                stream.user.update()

    def _announce_opened(self) -> None:
        opened = self.session.opened
        self.session.opened = []
        for stream in opened:
            self._on_opened(stream)

    def _read_on(self) -> None:
        waiting = self._waiting
        for _ in range(len(waiting)):
            if not self.may_read:
                break
            source = next(iter(waiting))
            del waiting[source]
            source.read_on()
        if waiting:
            self.loop.call_soon(self._read_on)
        self.progress()

    def _set_timer(self) -> None:
        when = self.session.deadline()
        timer = self._timer
        if timer is None or timer.callback is None or when < timer.when:
            if timer is not None:
                timer.cancel()
            self._timer = self.loop.call_at(when, self._on_timer)
        if not self._measuring and not self.session.idle:
            self._measuring = True
            self.loop.call_at(self.loop.now + SAMPLE_EVERY, self._measure)

    def _on_timer(self) -> None:
        self._timer = None
        if self.ended:
            return
        for subflow in self.session.on_time(self.loop.now):
            self.lost(subflow.user, "no answer")
        self.progress()

    def _measure(self) -> None:
        self._measuring = False
        if self.ended:
            return
        for subflow in list(self.session.subflows.values()):
            subflow.user.measure(self.loop.now)
        self.session.rescue(self.loop.now)
        self.session.watch_demand(self.loop.now)
        self.progress()
