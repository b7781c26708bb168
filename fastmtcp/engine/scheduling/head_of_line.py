"""Keeps a slow subflow from holding up the fast ones.

A receiver passes bytes on in order. A chunk on a slow subflow holds up all that the others bring
meanwhile, and when they have used up the flow-control window they stand still until it is there.
Two rules prevent that:

* The gate, before the fact: no chunk for a subflow on which it would arrive so late that the
  others could meanwhile send more than the stream has credit for, or has left to send. So that it
  is known how fast such a subflow really is, it gets copies of what the others carry, until its
  rate has settled, and again from time to time.
* The guard, after the fact (fastmtcp.engine.subflows.guard): a subflow that has cost the others
  more than it brought is set aside for a while, and tried again.
"""

from __future__ import annotations

from collections.abc import Collection

from fastmtcp.engine.limits import MIN_CHUNK, START_RATE
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.rate import Speed
from fastmtcp.engine.subflows.subflow import Subflow

WORTHWHILE = 0.02
"""A subflow below this share of the others' rate is not worth waiting for."""

_ABOUT_AS_LONG = 0.02


class Gate:
    """Decides whether a subflow may have a chunk. update() after every round of samples."""

    __slots__ = ("_all", "_lateness", "_measured", "_shortest")

    def __init__(self) -> None:
        self._all = 0.0
        self._lateness = 0.0
        self._measured = False
        self._shortest = 0.0

    def update(self, bulk: Collection[Subflow]) -> None:
        """Take the rates of the subflows that carry bulk data, and when chunks arrive on them."""
        total = lateness = 0.0
        measured = False
        for subflow in bulk:
            speed = subflow.speed
            rate = speed.rate or START_RATE
            total += rate
            lateness += rate * _usual_eta(speed)
            measured = measured or bool(speed.rate)
        self._all = total
        self._lateness = lateness
        self._measured = measured
        self._shortest = min((subflow.speed.rtt for subflow in bulk), default=0.0)

    def is_open(self, subflow: Subflow, stream: Stream, streams: int, now: float) -> bool:
        """True if `subflow` may have a chunk of `stream`, one of `streams` that send."""
        speed = subflow.speed
        if speed.rtt <= 2 * self._shortest + _ABOUT_AS_LONG:
            # As long as the others: what it seems to be slower may only be how young it is.
            return True
        rate = speed.rate
        if not rate and self._measured:
            return False
        rate = rate or START_RATE
        others = self._all - rate
        if others <= 0:
            return True
        eta = speed.eta(now) + speed.chunk / rate
        # What the others deliver between the usual arrival of their chunks and that of this one.
        overtaking = others * eta - (self._lateness - rate * _usual_eta(speed))
        if overtaking <= MIN_CHUNK:
            return True
        if rate < WORTHWHILE * others:
            return False
        return overtaking / max(streams, 1) <= _room(stream)

    def is_worthwhile(self, subflow: Subflow) -> bool:
        """True if a larger window, which lets `subflow` through, would bring something."""
        rate = subflow.speed.rate
        return rate >= WORTHWHILE * (self._all - rate)


def _usual_eta(speed: Speed) -> float:
    """Seconds from giving a chunk to a subflow that is busy until it has arrived."""
    return speed.lowat / (speed.rate or START_RATE) + speed.rtt / 2


def _room(stream: Stream) -> int:
    """Bytes that may be sent of `stream` until it stands still, or is done."""
    send = stream.send
    left = send.limit - send.next
    if send.finished:
        left = min(left, send.buffer.end - send.next)
    return left
