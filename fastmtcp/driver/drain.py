"""The end of a service in order: what is open may end first, and what was sent is delivered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastmtcp.driver.session import SessionDriver
from fastmtcp.io.loop import Loop, Timer

_SETTLE = 0.02
"""Seconds from the moment at which a session is quiet until it is taken for that: its last words to
the other side are on several connections, and the farewell must not overtake them."""

_LOOK_EVERY = 0.02
_GRACE = 0.5
"""Seconds that the other side has to end the streams too, when all is delivered: mostly it does,
and then all ends in order. After that nobody waits for it."""

Drivers = Callable[[], Sequence[SessionDriver]]
"""Those of all sessions of a service that are there now, ended ones that still deliver included."""


class Drain:
    """Waits until all sessions of a service are quiet, or for as long as it may, and stops it then.

    No session is added once it has begun.
    """

    def __init__(self, loop: Loop, drivers: Drivers, stop: Callable[[], None]) -> None:
        """`stop` is called once: it ends the sessions that are left."""
        self.begun = False
        """True once the service takes nothing new."""
        self.over = False
        """True once the service has stopped."""
        self._loop = loop
        self._drivers = drivers
        self._stop = stop
        self._done: Callable[[], None] = _nothing
        self._settling = False

    def begin(self, done: Callable[[], None]) -> None:
        """From now on stop as soon as all sessions are quiet, and call `done` after that. The
        sessions are told by the service, which then calls check()."""
        self.begun = True
        self._done = done
        for driver in self._drivers():
            driver.on_quiet = self._on_quiet

    def limit(self, timeout: float | None) -> None:
        """Stop in `timeout` seconds at the latest; None is without limit."""
        if timeout is not None:
            self._loop.call_later(timeout, self._finish)

    def check(self) -> None:
        """Stop if all sessions are quiet: to be called when one has ended or been forgotten."""
        if self.begun and all(driver.is_quiet for driver in self._drivers()):
            self._loop.call_soon(self._finish)

    def _on_quiet(self) -> None:
        if not self._settling and not self.over:
            self._settling = True
            self._loop.call_later(_SETTLE, self._settled)

    def _settled(self) -> None:
        self._settling = False
        self.check()

    def _finish(self) -> None:
        if not self.over:
            self.over = True
            self._stop()
            self._done()


class Delivery:
    """Tells when the other side holds all that was sent, and when nothing has moved for too long.

    It looks every 20 ms. To be told of every acknowledgement would cost each of them a look at all
    streams.
    """

    def __init__(
        self,
        loop: Loop,
        drivers: Drivers,
        patience: float,
        delivered: Callable[[], None],
        stuck: Callable[[], None],
    ) -> None:
        """Until stop(), `delivered` is called once, and `stuck` whenever nothing has moved for
        `patience` seconds."""
        self._loop = loop
        self._drivers = drivers
        self._patience = patience
        self._delivered = delivered
        self._stuck = stuck
        self._mark: object = None
        self._moved_at = self._complete_since = loop.now
        self._told = False
        self._timer: Timer | None = None
        self._look()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.now
        # Before anything is told, which may be answered with stop().
        self._timer = self._loop.call_later(_LOOK_EVERY, self._look)
        tables = [driver.session.table for driver in self._drivers()]
        streams = [one for table in tables for one in table.streams.values()]
        streams += [one for table in tables for one in table.parting.values()]
        mark = [(s.stream_id, s.send.acked, s.send.limit, s.receive.window.taken) for s in streams]
        if mark != self._mark:
            self._mark = mark
            self._moved_at = now
        elif now - self._moved_at >= self._patience:
            self._stuck()
        if not all(stream.send.complete or stream.send.dropped for stream in streams):
            self._complete_since = now
        elif now - self._complete_since >= _GRACE and not self._told:
            self._told = True
            self._delivered()


def _nothing() -> None:
    """Stands for a drain that nobody has asked for."""
