"""What a Client and a Server have in common on the loop: a service, its connections, its end."""

from __future__ import annotations

import logging
import socket
import weakref
from collections.abc import Callable, Collection
from functools import partial
from types import TracebackType
from typing import ClassVar, Generic, Self, TypeVar

from fastmtcp.api.answer import Answer
from fastmtcp.api.connection import Connection, Driven, Joined, Names, open_ends
from fastmtcp.api.errors import closed_error
from fastmtcp.api.pair import make_pair
from fastmtcp.api.thread import LoopThread, join_loop
from fastmtcp.driver.drain import Delivery
from fastmtcp.driver.relay import Relay
from fastmtcp.driver.service import Service
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.status.document import WorkerReport
from fastmtcp.status.rates import SAMPLE_EVERY, Rates
from fastmtcp.status.report import build

log = logging.getLogger("fastmtcp.library")


class Core:
    """The part of a Client or Server that lives on the loop. They refer to it and it does not refer
    to them, so it learns when the user has dropped them."""

    service: Service
    """Set by the subclass, on the loop."""

    def __init__(self, drain_timeout: float) -> None:
        self.closed: Answer[None] = Answer()
        self.delivered: Answer[None] = Answer()
        """Done when the other side holds all that was sent, or will never hold it."""
        self.closing = False
        self.rates = Rates()
        self._drain_timeout = drain_timeout
        self.connections: dict[Names, Connection] = {}
        self._delivery: Delivery | None = None
        self.thread: LoopThread = join_loop(self)

    # --- connections ----------------------------------------------------------------------------

    def connect(
        self,
        session: Driven,
        stream: Stream,
        target: str,
        make_relay: Callable[[Connection, socket.socket], Relay],
    ) -> Joined:
        """Make a socket for the user and join it with the stream: `make_relay` is given the other
        end of the socket, and makes a relay that calls gone() when it is closed.

        Raises:
            OSError: no descriptors are left.
        """
        outer, inner = make_pair()
        connection = Connection(
            session,
            stream,
            inner,
            self.rates,
            is_client=self.service.is_client,
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
        """The status, made in one go: one process has so few sessions that the loop can wait."""
        steps = build(self.service, self.rates, self.thread.loop.clock)
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
        subflows = [s for d in self.service.drivers for s in d.session.subflows.values()]
        loop = self.thread.loop
        self.rates.sample(subflows, loop.now)
        loop.call_later(SAMPLE_EVERY, self.sample_rates)

    # --- the end --------------------------------------------------------------------------------

    def orphan(self) -> None:
        """The Client or Server was dropped or released: end with the last stream."""
        if not self.closing:
            self.closing = True
            self.service.drain(None, self._ended)

    def close(self) -> None:
        """End, and wait until what was sent on sockets that are closed by now is delivered; those
        that are still open are reset. From any thread but the loop's."""
        self.thread.check_process()
        if not self.closed.done:
            still_open = list(open_ends(self.connections).values())
            self.thread.post(partial(self.shut, still_open))
            self.delivered.result()
        self.thread.join_if_ending()

    def forget_waiting(self) -> None:
        """Leave the threads that wait in connect() or accept() without an answer; on the loop."""

    def shut(self, still_open: Collection[Names]) -> None:
        """Reset the connections `still_open`, and end with the last stream, or when nothing has
        moved for the drain timeout."""
        self.closing = True
        for names in still_open:
            connection = self.connections.get(names)
            if connection is not None and connection.relay is not None:
                connection.relay.cancel()
                connection.session.driver.progress()
        self.service.drain(None, self._ended)
        if self._delivery is not None:
            self._delivery.stop()
        if not self.closed.done:
            self._delivery = Delivery(
                self.thread.loop,
                lambda: self.service.drivers,
                self._drain_timeout,
                self._on_delivered,
                self._give_up,
            )

    def crashed(self) -> None:
        """Something on the loop is broken: reset all streams, and close all that is open."""
        self.closing = True
        self.service.drain(0, self._ended)

    def abandon(self) -> None:
        """The process exits: close all without a farewell. The server passes on what was delivered
        to it; a farewell would make it reset the streams of which the target has not read all."""
        for driver in self.service.drivers:
            driver.abandon()
        self._set_ended()

    def _on_delivered(self) -> None:
        if not self.delivered.done:
            self.delivered.set_result(None)

    def _give_up(self) -> None:
        self.service.drain(0, self._ended)

    def _ended(self) -> None:
        # Not now: the service is still at work, and the loop may stop with its last core.
        self.thread.loop.call_soon(self._leave)

    def _leave(self) -> None:
        for driver in self.service.drivers:
            for relay in list(driver.relays):
                relay.abort()
        self.thread.leave(self)
        self._set_ended()

    def _set_ended(self) -> None:
        if self._delivery is not None:
            self._delivery.stop()
        for answer in (self.delivered, self.closed):
            if not answer.done:
                answer.set_result(None)


CoreT = TypeVar("CoreT", bound=Core)


class Handle(Generic[CoreT]):
    """What the user holds of a core. When it is dropped without close(), the sockets that are open
    are still served to their end."""

    _NAME: ClassVar[str]
    _core: CoreT

    def _hold(self, core: CoreT) -> None:
        """Keep a core that has started; it ends with this object."""
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
        """Take nothing new, and end with the last stream. Does not wait for that. The same happens
        when it is dropped."""
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
