"""A network on virtual time: no sockets, no sleeping, every run the same for the same seed."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fastmtcp.engine.limits import KIB
from fastmtcp.engine.subflows.rate import Sample
from fastmtcp.engine.subflows.role import Role

SEGMENT = 8 * KIB


class Clock:
    """Virtual time and what is going to happen in it. Seconds."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def at(self, when: float, action: Callable[[], None]) -> None:
        # The count keeps events of one moment in their order.
        heapq.heappush(self._events, (max(when, self.now), next(self._count), action))

    def after(self, delay: float, action: Callable[[], None]) -> None:
        self.at(self.now + delay, action)

    def step(self) -> None:
        """Go to the next event and let it happen. IndexError if there is none."""
        self.now, _, action = heapq.heappop(self._events)
        action()


@dataclass(frozen=True)
class Path:
    """One direction and the other of a connection: the same latency, rate and buffer for both."""

    latency: float = 0.01
    """Seconds, one way."""

    rate: float = 2_000_000.0
    """Bytes a second."""

    buffer: int = 64 * KIB
    """Bytes that the sender's socket takes beyond those on their way."""

    blind: bool = False
    """The system tells nothing of the connection."""

    role: Role = Role.BOTH
    """What the subflow is for."""


class Pipe:
    """One direction of a TCP connection: bytes in order, or none at all.

    `on_bytes` gets what arrives, `on_room` is called after want_room() when there is room again.
    """

    def __init__(self, clock: Clock, rng: random.Random, path: Path) -> None:
        self.clock = clock
        self.path = path
        self.on_bytes: Callable[[bytes], None] = _nobody
        self.on_room: Callable[[], None] = _nothing
        self.bytes_arrived = 0
        self._rng = rng
        self._queue = bytearray()
        self._busy = False
        self._wanting = False
        self._paused = False
        self._cut = False
        self._drop = False
        self._flying = 0
        self._lost = 0
        self._limited_until = 0.0

    def write(self, data: bytes) -> int:
        """A non-blocking send: takes a part of `data`, perhaps nothing, and says how much."""
        most = min(self.path.buffer - len(self._queue), len(data))
        if most > 1 and self._rng.random() < 0.2:
            most = self._rng.randint(1, most)
        self._queue += data[:most]
        self._start()
        return most

    def want_room(self) -> None:
        """Call `on_room` as soon as half of the buffer is free (like EPOLLOUT)."""
        self._wanting = True
        self._tell_room()

    @property
    def works(self) -> bool:
        """True if what is written now arrives."""
        return not self._paused and not self._cut

    @property
    def is_empty(self) -> bool:
        """True if all that was written has arrived, or is lost."""
        return not self._queue and not self._flying

    def pause(self) -> None:
        """A black hole: nothing more leaves until resume()."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._start()

    def cut(self, *, drop: bool) -> None:
        """The connection dies: what is queued is lost, and with `drop` also what is on its way.

        The sender may not know: its writes go on to fill the buffer.
        """
        self._cut = True
        self._drop = drop
        self._lost += len(self._queue)
        self._queue.clear()

    def sample(self) -> Sample:
        """What TCP_INFO would say."""
        return Sample(
            rtt=2 * self.path.latency + len(self._queue) / self.path.rate,
            delivery_rate=self.path.rate,
            app_limited=not self._queue and self.clock.now > self._limited_until,
            not_sent=len(self._queue),
            unacked=self._flying or self._unanswered(),
            bytes_acked=self.bytes_arrived,
        )

    def _unanswered(self) -> int:
        """What is sent into a black hole waits for an answer, and so does what is sent on a
        connection that died before."""
        return self._lost + (len(self._queue) if self._paused or self._cut else 0)

    def _start(self) -> None:
        if self._busy or self._paused or self._cut or not self._queue:
            return
        self._busy = True
        segment = bytes(self._queue[:SEGMENT])
        self.clock.after(len(segment) / self.path.rate, partial(self._sent, segment))

    def _sent(self, segment: bytes) -> None:
        self._busy = False
        if self._cut:
            return
        if self._paused:
            return
        del self._queue[: len(segment)]
        self._flying += len(segment)
        self._limited_until = self.clock.now + 2 * self.path.latency
        self.clock.after(self.path.latency, partial(self._arrive, segment))
        self._tell_room()
        self._start()

    def _arrive(self, segment: bytes) -> None:
        self._flying -= len(segment)
        if self._drop:
            self._lost += len(segment)
            return
        self.bytes_arrived += len(segment)
        self.on_bytes(segment)

    def _tell_room(self) -> None:
        if self._wanting and not self._cut and 2 * len(self._queue) <= self.path.buffer:
            self._wanting = False
            self.clock.after(0.0, self._on_room)

    def _on_room(self) -> None:
        self.on_room()


def _nobody(_data: bytes) -> None:
    raise AssertionError("bytes arrived before anybody listened")


def _nothing() -> None:
    raise AssertionError("room before anybody asked")
