"""What a Client and a Server have in common on the loop: a worker, its connections, its end."""

from __future__ import annotations

import contextlib
import logging
import socket
import weakref
from collections.abc import Callable, Collection, Sequence
from functools import partial
from types import TracebackType
from typing import ClassVar, Generic, Protocol, Self, TypeVar

from fastmtcp.api.answer import Answer
from fastmtcp.api.connection import Connection, Driven, Joined, Names, open_ends
from fastmtcp.api.errors import closed_error
from fastmtcp.api.pair import make_pair
from fastmtcp.api.thread import LoopThread, join_loop
from fastmtcp.driver.relay import Relay
from fastmtcp.driver.session import SessionDriver
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.status.document import Observable, WorkerReport
from fastmtcp.status.rates import SAMPLE_EVERY, Rates
from fastmtcp.status.report import build

log = logging.getLogger("fastmtcp.library")

_LOOK_EVERY = 0.02
_GRACE = 0.5
"""Seconds that the other side has to end the streams too, when all is delivered: mostly it does,
and then all ends in order. After that close() does not wait for it."""


class Worker(Observable, Protocol):
    """A fastmtcp.client.ClientService or fastmtcp.server.ServerService."""

    @property
    def drivers(self) -> Sequence[SessionDriver]: ...

    def drain(self, timeout: float | None, done: Callable[[], None]) -> None: ...


class Core:
    """Lives on the loop. Clients and Servers refer to it, and it does not refer to them: when
    they are dropped it can end."""

    worker: Worker
    """Set by the subclass, on the loop."""

    def __init__(self, drain_timeout: float) -> None:
        self.closed: Answer[None] = Answer()
        self.delivered: Answer[None] = Answer()
        """Done when the other side holds all that was sent, or it is given up."""
        self.closing = False
        self.rates = Rates()
        self._drain_timeout = drain_timeout
        self.connections: dict[Names, Connection] = {}
        self._mark: object = None
        self._give_up_at = 0.0
        self._complete_since = 0.0
        self.thread: LoopThread = join_loop(self)

    # --- connections ----------------------------------------------------------------------------

    def connect(
        self,
        session: Driven,
        stream: Stream,
        target: str,
        make_relay: Callable[[Connection, socket.socket], Relay],
    ) -> Joined:
        """Make a socket for the user, and join it with the stream by `make_relay`, which leads to
        gone() when the relay is closed.

        Raises:
            OSError: no descriptors are left.
        """
        outer, inner = make_pair()
        connection = Connection(
            session,
            stream,
            inner,
            self.rates,
            is_client=self.worker.is_client,
            target=target,
        )
        # Before the relay is made: that may be closed at once.
        self.connections[connection.names] = connection
        try:
            connection.relay = make_relay(connection, inner)
        except BaseException:
            self.connections.pop(connection.names, None)
            outer.close()
            inner.close()
            raise
        return outer, connection

    def gone(self, connection: Connection, _relay: Relay) -> None:
        self.connections.pop(connection.names, None)

    def report(self) -> WorkerReport:
        """All of it at once: here nobody has so many sessions that it must be done in slices."""
        steps = build(self.worker, self.rates, self.thread.loop.clock)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                report: WorkerReport = end.value
                return report

    def sample_rates(self) -> None:
        """Measure the rates of the subflows from now on."""
        if self.closed.done:
            return
        subflows = [s for d in self.worker.drivers for s in d.session.subflows.values()]
        loop = self.thread.loop
        self.rates.sample(subflows, loop.now)
        loop.call_later(SAMPLE_EVERY, self.sample_rates)

    # --- the end --------------------------------------------------------------------------------

    def orphan(self) -> None:
        """Its owner is gone: end with the last stream."""
        if not self.closing:
            self.closing = True
            self.worker.drain(None, self._ended)

    def close(self) -> None:
        """End, and wait until what the user has sent and closed is delivered. His sockets that
        are still open are reset. From any thread but the loop's."""
        self.thread.check_process()
        if not self.closed.done:
            still_open = list(open_ends(self.connections).values())
            self.thread.post(partial(self.shut, still_open))
            self.delivered.result()
        self.thread.join_if_ending()

    def forget_waiting(self) -> None:
        """Never answer those who wait in connect() or accept(); on the loop."""

    def shut(self, still_open: Collection[Names]) -> None:
        """Reset the connections `still_open`, and end with the last stream, or when nothing has
        moved for the drain timeout."""
        self.closing = True
        for names in still_open:
            connection = self.connections.get(names)
            if connection is not None and connection.relay is not None:
                connection.relay.cancel()
                connection.session.driver.progress()
        self.worker.drain(None, self._ended)
        self._complete_since = self.thread.loop.now
        self._give_up_at = self.thread.loop.now + self._drain_timeout
        self._look()

    def crashed(self) -> None:
        """A fault on the loop: reset everything, and close all that is open."""
        self.closing = True
        self.worker.drain(0, self._ended)

    def abandon(self) -> None:
        """The process exits: leave without a word. The server holds what was delivered to it, and
        passes it on; a farewell would reset streams of which the target has not read all."""
        for driver in self.worker.drivers:
            for relay in list(driver.relays):
                with contextlib.suppress(Exception):
                    relay.abort()
            for subflow in list(driver.session.subflows.values()):
                with contextlib.suppress(Exception):
                    subflow.user.close(reset=True)
        self._set_ended()

    def _look(self) -> None:
        """See whether all is delivered; give up when nothing has moved for the drain timeout."""
        if self.closed.done:
            return
        loop = self.thread.loop
        streams = [s for driver in self.worker.drivers for s in driver.session.streams.values()]
        if not all(stream.send.complete for stream in streams):
            self._complete_since = loop.now
        elif loop.now - self._complete_since >= _GRACE and not self.delivered.done:
            self.delivered.set_result(None)
        mark = [(s.stream_id, s.send.acked, s.send.limit, s.receive.window.taken) for s in streams]
        if mark != self._mark:
            self._mark = mark
            self._give_up_at = loop.now + self._drain_timeout
        elif loop.now >= self._give_up_at:
            self.worker.drain(0, self._ended)
        loop.call_later(_LOOK_EVERY, self._look)

    def _ended(self) -> None:
        # The loop must have done with it before it stops.
        self.thread.loop.call_soon(self._leave)

    def _leave(self) -> None:
        for driver in self.worker.drivers:
            for relay in list(driver.relays):
                relay.abort()
        self.thread.leave(self)
        self._set_ended()

    def _set_ended(self) -> None:
        for answer in (self.delivered, self.closed):
            if not answer.done:
                answer.set_result(None)


CoreT = TypeVar("CoreT", bound=Core)


class Handle(Generic[CoreT]):
    """What the user holds of a core. Whoever drops it without close() still gets his open sockets
    served to their end."""

    _NAME: ClassVar[str]
    _core: CoreT

    def _hold(self, core: CoreT) -> None:
        """The core has started, and ends with this object."""
        self._core = core
        self._finalizer = weakref.finalize(self, core.thread.post, core.orphan)
        self._finalizer.atexit = False

    def status(self) -> WorkerReport:
        """What it is doing: sessions, paths, subflows, streams, rates, counters; the same as
        `fastmtcp status --json` shows of a worker.

        Raises:
            OSError: after close().
        """
        if self._core.closing:
            raise closed_error(self._NAME)
        return self._core.thread.call(self._core.report).result()

    def release(self) -> None:
        """Take nothing new, and end with the last stream. Waits for nothing. The same happens to
        one that is dropped."""
        self._finalizer()

    def close(self) -> None:
        """End. Waits until what was sent on sockets that are closed by now is delivered; those that
        are still open are reset. May be called more than once."""
        self._core.close()
        self._finalizer.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
