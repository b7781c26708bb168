"""A worker's answer when the supervisor asks what it is doing.

The loop must not notice: it looks at sessions for a millisecond or two, lets the sockets have
their turn, and goes on. The supervisor fetches the answer piece by piece, so the channel between
the two never fills up, and nothing is cut off.
"""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from fastmtcp.io.loop import Loop
from fastmtcp.status import report
from fastmtcp.status.document import Observable, WorkerReport
from fastmtcp.status.rates import SAMPLE_EVERY, Rates
from fastmtcp.workers.channel import Channel, StatusPart, StatusRequest

PIECE = 32 * 1024

_SLICE = 0.002

_encode = msgspec.msgpack.Encoder().encode


class Reporter:
    """Makes the answer to the last question, and keeps it until it is fetched."""

    def __init__(self, loop: Loop, channel: Channel, service: Observable) -> None:
        self._loop = loop
        self._channel = channel
        self._service = service
        self._rates = Rates()
        self._token = -1
        self._answer = b""
        self._work: Generator[None, None, WorkerReport] | None = None
        self._sample()

    def on_request(self, request: StatusRequest) -> None:
        """The supervisor asks for a piece; with offset 0 it asks for a new answer."""
        if request.offset:
            if request.token == self._token:
                self._send(request.offset)
            return
        self._token = request.token
        self._answer = b""
        idle = self._work is None
        self._work = report.build(self._service, self._rates, self._loop.clock)
        if idle:
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Work for one slice of time."""
        work = self._work
        assert work is not None
        stop = self._loop.clock() + _SLICE
        try:
            next(work)
            while self._loop.clock() < stop:
                next(work)
        except StopIteration as end:
            self._work = None
            self._answer = _encode(end.value)
            self._send(0)
            return
        self._loop.call_soon(self._turn)

    def _send(self, offset: int) -> None:
        total = len(self._answer)
        piece = self._answer[offset : offset + PIECE]
        self._channel.send(StatusPart(self._token, offset, total, piece))
        if offset + len(piece) >= total:
            self._answer = b""

    def _sample(self) -> None:
        sessions = (observed.session for observed in self._service.sessions)
        self._rates.sample((s for one in sessions for s in one.subflows.values()), self._loop.now)
        self._loop.call_later(SAMPLE_EVERY, self._sample)
