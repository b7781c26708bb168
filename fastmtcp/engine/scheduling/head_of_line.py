"""Keeps a slow subflow from holding up the fast ones.

A receiver passes bytes on in order. A chunk on a slow subflow holds up all that the others bring
meanwhile, and when they have used up the flow-control window they stand still until it is there.
Two rules prevent that:

* The gate, before the fact: no chunk for a subflow on which it would arrive so late that the
  others could meanwhile send more than the stream has credit for, or has left to send. So that it
  is known how fast such a subflow really is, it gets copies of what the others carry, until its
  rate has settled, and again from time to time.
* The guard, after the fact (what the rates do not tell: loss, jitter, a line that changes): a
  subflow that has cost the others more than it brought is set aside for a while, and tried again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from fastmtcp.engine.limits import KIB, MIN_CHUNK, START_RATE

if TYPE_CHECKING:
    from fastmtcp.engine.streams.stream import Stream
    from fastmtcp.engine.subflows.subflow import Subflow

WORTHWHILE = 0.02
"""A subflow below this share of the others' rate is not worth waiting for."""

_ABOUT_AS_LONG = 0.02

PERIOD = 2.0
"""Seconds over which the guard compares."""

_BLOCKED = 0.2
_ASIDE = 4.0
_ASIDE_MOST = 64.0


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
            rate = subflow.rate or START_RATE
            total += rate
            lateness += rate * _usual_arrival(subflow)
            measured = measured or bool(subflow.rate)
        self._all = total
        self._lateness = lateness
        self._measured = measured
        self._shortest = min((subflow.rtt for subflow in bulk), default=0.0)

    def is_open(self, subflow: Subflow, stream: Stream, streams: int, now: float) -> bool:
        """True if `subflow` may have a chunk of `stream`, one of `streams` that send."""
        if subflow.rtt <= 2 * self._shortest + _ABOUT_AS_LONG:
            # As long as the others: what it seems to be slower may only be how young it is.
            return True
        rate = subflow.rate
        if not rate and self._measured:
            return False
        rate = rate or START_RATE
        others = self._all - rate
        if others <= 0:
            return True
        arrival = subflow.arrival(now) + subflow.chunk / rate
        # What the others deliver between the usual arrival of their chunks and that of this one.
        overtaking = others * arrival - (self._lateness - rate * _usual_arrival(subflow))
        if overtaking <= MIN_CHUNK:
            return True
        if rate < WORTHWHILE * others:
            return False
        return overtaking / max(streams, 1) <= _room(stream)

    def is_worthwhile(self, subflow: Subflow) -> bool:
        """True if a larger window, which lets `subflow` through, would bring something."""
        return subflow.rate >= WORTHWHILE * (self._all - subflow.rate)


def _usual_arrival(subflow: Subflow) -> float:
    """Seconds from giving a chunk to a subflow that is busy until it has arrived."""
    return subflow.lowat / (subflow.rate or START_RATE) + subflow.rtt / 2


def _room(stream: Stream) -> int:
    """Bytes that may be sent of `stream` until it stands still, or is done."""
    send = stream.send
    left = send.limit - send.next
    if send.finished:
        left = min(left, send.buffer.end - send.next)
    return left


class Guard:
    """Compares what one subflow brings with what it costs the others."""

    __slots__ = ("_aside_for", "_blocked", "_delivered", "_since", "aside", "until")

    def __init__(self, now: float) -> None:
        self.aside = False
        """True while the subflow carries no bulk data."""
        self.until = 0.0
        self._aside_for = _ASIDE
        self._since = now
        self._blocked = 0.0
        self._delivered = 0

    def blame(self, seconds: float) -> None:
        """A stream stood still for so long because a range on this subflow was missing, while
        others could have carried more."""
        self._blocked += seconds

    def judge(self, delivered: int, others: float, now: float) -> bool:
        """Look at what it has `delivered` so far, bytes, while the `others` together carry so many
        bytes a second. True if the subflow is set aside now, or no longer."""
        if self.aside:
            if now < self.until:
                return False
            self.aside = False
            self._start(delivered, now)
            return True
        if now - self._since < PERIOD:
            return False
        blocked = self._blocked
        cost = blocked * others
        brought = delivered - self._delivered
        share = blocked / (now - self._since)
        self._start(delivered, now)
        if share < _BLOCKED or cost < 2 * brought or not others:
            if not blocked and brought > 64 * KIB:
                self._aside_for = max(_ASIDE, self._aside_for / 2)
            return False
        self.aside = True
        self.until = now + self._aside_for
        self._aside_for = min(2 * self._aside_for, _ASIDE_MOST)
        return True

    def _start(self, delivered: int, now: float) -> None:
        self._since = now
        self._blocked = 0.0
        self._delivered = delivered
