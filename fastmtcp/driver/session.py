"""Runs one session on the loop: its subflow sockets, its relays, its timers."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Iterable

from fastmtcp.driver.relay import Relay
from fastmtcp.driver.subflow import SubflowSocket
from fastmtcp.driver.turn import Turn
from fastmtcp.engine.events import Events
from fastmtcp.engine.limits import TLS_COST
from fastmtcp.engine.scheduling.watch import SAMPLE_EVERY
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.errors import RemoteError, ResetCode, SessionCode
from fastmtcp.io.buffers import BufferPool
from fastmtcp.io.loop import Loop, Timer
from fastmtcp.security.tls import Tls

log = logging.getLogger("fastmtcp.session")


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
        turn: Turn | None = None,
        *,
        whose: str = "",
    ) -> None:
        """`turn` is that of all sessions of the peer; without one it has only this. `whose` is the
        client's name at a server: what it causes in the log is counted for it."""
        self.loop = loop
        self._whose = whose
        self.pool = pool
        self.session = session
        self.relays: dict[Relay, Callable[[Relay], None] | None] = {}
        """And who wants to know when each is closed."""
        self.sockets: dict[Subflow, SubflowSocket] = {}
        """Of the subflows in the session."""
        self.ended = False
        self.on_draining: Callable[[], None] | None = None
        """Called when the peer takes no new streams any more."""
        self.on_returned: Callable[[Stream], bool] | None = None
        """Called with a stream that the peer has not taken: true if another session has it now.
        Else it is reset."""
        self.on_quiet: Callable[[], None] | None = None
        """Called whenever something has moved and nothing is left to do, see is_quiet."""
        self._on_opened = on_opened
        self._on_ended = on_ended
        self._timer: Timer | None = None
        self._measuring = False
        self._busy = False
        self._turn = turn or Turn(loop)
        session.holding.give_up = self._give_up
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
            cost = TLS_COST if tls is not None else 0
            subflow = self.session.attach(subflow_id, self.loop.now, role, cost)
        except RemoteError as error:
            text = "subflow from %s refused: %s"
            self.loop.lines.warning(log, self._whose, text, peer, error)
            self.loop.unwatch(sock.fileno())
            sock.close()
            return None
        subflow_socket = SubflowSocket(
            self.loop, self.pool, self._turn, self, sock, subflow, peer, on_lost, tls
        )
        self.sockets[subflow] = subflow_socket
        if early:
            self.received(subflow_socket, memoryview(early))
            if subflow_socket.rest is not None:
                self._turn.read_later(subflow_socket)
        # Its round-trip time is known from the handshake.
        self._take_sample(subflow_socket)
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
        relay = Relay(
            self.loop,
            self.pool,
            sock,
            stream,
            self.progress,
            self._relay_closed,
            budget,
            self._whose,
        )
        self.relays[relay] = on_close
        relay.update()
        return relay

    def adopt(self, stream: Stream, origin: SessionDriver) -> None:
        """Take over a stream that `origin` has returned, and its relay if there is one.

        Raises:
            OpenError: this session cannot take it.
        """
        self.session.adopt(stream, self.loop.now)
        relay = stream.watcher
        if isinstance(relay, Relay):
            self.relays[relay] = origin.relays.pop(relay, None)
            relay.move(self.progress, self._relay_closed)
        self.loop.call_soon(self.progress)

    @property
    def is_quiet(self) -> bool:
        """True if no application is connected and nothing waits for an acknowledgement."""
        session = self.session
        # Without a subflow, what waits to be sent can wait for ever.
        if session.subflows:
            return not self.relays and session.is_quiet
        return not (self.relays or session.streams or session.table.waiting)

    def received(self, source: SubflowSocket, view: memoryview) -> None:
        """Bytes came in on a subflow. What is more than the session's share of this turn is kept
        in `source.rest`."""
        try:
            work = max(1, self._turn.work)
            taken = self.session.receive(source.subflow, view, self.loop.now, work)
        except RemoteError as error:
            self.end(error.code, str(error))
            return
        self._turn.spend(self.session.work_left)
        source.keep(view, taken)
        # Pass data on while it is still in the cache.
        self.progress()

    def lost(self, source: SubflowSocket, reason: str) -> None:
        """A subflow died; its bytes go out again on the others."""
        if source.closed:
            return
        source.close(reset=True)
        self._detach(source.subflow, by_fin=source.is_finished)
        if source.on_lost is not None:
            source.on_lost(reason)
        self.loop.call_soon(self.progress)

    def abandon(self) -> None:
        """Close everything without a word to the peer, whatever goes wrong with any of it."""
        for relay in list(self.relays):
            with contextlib.suppress(Exception):
                relay.abort()
        for source in list(self.sockets.values()):
            with contextlib.suppress(Exception):
                source.close(reset=True)

    def application_of(self, stream: Stream) -> str:
        """The address of the application behind `stream`; empty without one."""
        watcher = stream.watcher
        return watcher.address() if isinstance(watcher, Relay) else ""

    def progress(self) -> None:
        """Let everything move that can: relays whose streams were updated, subflows that have
        something to send. Not re-entrant: an inner call does nothing."""
        if self._busy:
            return
        if self.ended:
            return
        self._busy = True
        session = self.session
        sockets = self.sockets
        now = self.loop.now
        turn = self._turn
        turn.begin()
        events = session.take_events()
        while True:
            if events is not None:
                self._handle(events)
            if turn.chunks <= 0:
                turn.send_later(self.progress)
                break
            subflow = session.pick(now)
            if subflow is not None:
                buffers, size = session.pull(subflow, now)
                if size:
                    sockets[subflow].send(buffers, size)
                    turn.chunks -= 1
            events = session.take_events()
            if events is None and subflow is None:
                break
        self._busy = False
        if self.ended:
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
        events = session.take_events()
        if events is not None:
            self._update(events.updated)
            self._return(events.returned)
        goaway = session.goaway(code, reason)
        for subflow, source in list(self.sockets.items()):
            if session.peer.ended:
                source.close(reset=True)
            else:
                source.goodbye(goaway)
            self._detach(subflow)
        for relay in list(self.relays):
            # The relay of a stream of which all is here goes on by itself with what is left.
            if relay.stream.reset_code is not None and not relay.leaving:
                relay.abort()
        if self._timer is not None:
            self._timer.cancel()
        self._stay()
        self._on_ended(code, reason)

    def _stay(self) -> None:
        """Of a session that has ended, what applications still read counts as it did."""
        holding = self.session.holding
        if self.relays:
            holding.memory.holdings.add(holding)
        else:
            holding.memory.holdings.discard(holding)

    def _detach(self, subflow: Subflow, *, by_fin: bool = False) -> None:
        del self.sockets[subflow]
        self.session.detach(subflow, self.loop.now, by_fin=by_fin)

    def _take_sample(self, source: SubflowSocket) -> None:
        """Tell the engine how the path of a subflow is, and do what follows from it."""
        source.settle()
        if self.session.on_sample(source.subflow, source.measure(), self.loop.now):
            self.lost(source, "silent while others work")
        elif source.is_worn_out:
            self.lost(source, "its keys have been used enough")
        else:
            source.follow_lowat()

    def _give_up(self) -> None:
        """The worker's memory is used up, and this session is to go: what of it is left to deliver,
        if it has ended already."""
        if not self.ended:
            self.session.give_up()
            self.loop.call_soon(self.progress)
            return
        for relay in list(self.relays):
            relay.stream.drop(ResetCode.SESSION_LOST)
            relay.abort()

    def _relay_closed(self, relay: Relay) -> None:
        on_close = self.relays.pop(relay, None)
        if on_close is not None:
            on_close(relay)
        if self.ended:
            # Nothing takes what has come for it any more.
            relay.stream.receive.data.clear()
            self._stay()
        # Else progress() follows, and tells it.
        if self.ended and self.on_quiet is not None and self.is_quiet:
            self.on_quiet()

    def _return(self, streams: list[Stream]) -> None:
        for stream in streams:
            if stream.reset_code is not None:
                continue  # its application is gone
            if self.on_returned is None or not self.on_returned(stream):
                stream.drop(ResetCode.DRAINING)

    def _handle(self, events: Events) -> None:
        self._update(events.updated)
        if events.draining and self.on_draining is not None:
            self.on_draining()
        self._return(events.returned)
        for stream in events.opened:
            self._on_opened(stream)
        for subflow in events.gone:
            if subflow in self.sockets:
                self.lost(self.sockets[subflow], "lost at the other side")
        for subflow in events.parted:
            if subflow in self.sockets:
                self._part(self.sockets[subflow])
        if events.end is not None:
            self.end(*events.end)

    def _part(self, source: SubflowSocket) -> None:
        """Close a retired subflow, now that each side has had all of it."""
        source.goodbye(self.session.last_report(source.subflow))
        self._detach(source.subflow)
        if source.on_lost is not None:
            source.on_lost("retired")

    def _update(self, streams: Iterable[Stream]) -> None:
        for stream in streams:
            if stream.watcher is not None:
                stream.watcher.update()

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
            self.lost(self.sockets[subflow], "no answer")
        self.progress()

    def _measure(self) -> None:
        self._measuring = False
        if self.ended:
            return
        for source in list(self.sockets.values()):
            if not source.closed:
                self._take_sample(source)
        self.session.rescue(self.loop.now)
        self.session.watch_demand(self.loop.now)
        self.progress()
