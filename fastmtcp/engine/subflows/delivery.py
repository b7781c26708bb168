"""What reaches the peer's process, subflow by subflow: the peer says how much it has read (GOT).

The operating system knows only the way to the next kernel. Where that is a relay's or a proxy's, it
acknowledges what has got no further; and not every system tells what it knows.
"""

from __future__ import annotations

from collections import deque

START_RTT = 0.2
_MARK_EVERY = 0.01
_MAX_MARKS = 1024
_RATE_OVER = 0.1


class Delivery:
    """What was sent on one subflow, against what the peer has read. Bytes, seconds."""

    __slots__ = (
        "_end",
        "_marks",
        "_rate_at",
        "_rate_from",
        "_variation",
        "got",
        "progress_at",
        "rate",
        "rtt",
    )

    def __init__(self, now: float) -> None:
        self.got = 0
        """Bytes of this subflow that the peer has read."""
        self.rtt = START_RTT
        """Smoothed time from sending to hearing that it was read."""
        self._variation = START_RTT / 2
        self.rate = 0.0
        """Bytes a second that the peer has read, lately."""
        self.progress_at = now
        """When the peer last had read more, or there was nothing to read."""
        self._end = 0
        self._marks: deque[tuple[int, float]] = deque()
        self._rate_at = now
        self._rate_from = 0

    @property
    def waits(self) -> bool:
        """True if data is on its way that the peer has not reported."""
        return self.got < self._end

    @property
    def on_its_way(self) -> int:
        return max(0, self._end - self.got)

    @property
    def patience(self) -> float:
        """Seconds without a report that are still usual: as RFC 6298 waits for an ACK. A relay with
        a large buffer is slow and steady, and three times its rtt would be long."""
        return min(self.rtt + 4 * self._variation, 3 * self.rtt)

    def sent(self, end: int, now: float) -> None:
        """A frame with data was sent; with it, `end` bytes were."""
        if not self.waits:
            self.progress_at = now
            self._rate_at = now
            self._rate_from = self.got
        self._end = end
        marks = self._marks
        if len(marks) < _MAX_MARKS and (not marks or now - marks[-1][1] >= _MARK_EVERY):
            marks.append((end, now))

    def on_got(self, got: int, now: float) -> None:
        """The peer has read so much. Reports overtake one another: older ones are ignored."""
        if got <= self.got:
            return
        self.got = got
        self.progress_at = now
        marks = self._marks
        sent_at = None
        while marks and marks[0][0] <= got:
            sent_at = marks.popleft()[1]
        if sent_at is not None:
            took = now - sent_at
            if self.rtt == START_RTT:
                self.rtt = took
                self._variation = took / 2
            else:
                self._variation = 0.75 * self._variation + 0.25 * abs(took - self.rtt)
                self.rtt = 0.8 * self.rtt + 0.2 * took
        elapsed = now - self._rate_at
        if elapsed >= _RATE_OVER:
            self.rate = (got - self._rate_from) / elapsed
            self._rate_at = now
            self._rate_from = got
