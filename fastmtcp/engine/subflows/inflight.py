"""The ranges that a subflow carries."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from fastmtcp.engine.streams.stream import Stream

_SWEEP = 256

Range = tuple[Stream, int, int]
"""A stream, where the range begins, and where it has ended."""


class InFlight:
    """Ranges in the order in which they were given to one subflow, until the peer has acknowledged
    them, by whatever way: if the subflow dies, they go out again on another."""

    __slots__ = ("_ranges", "_sweep_at", "delivered")

    def __init__(self) -> None:
        self.delivered = False
        """True if anything was acknowledged since this was last cleared."""
        self._ranges: deque[Range] = deque()
        self._sweep_at = _SWEEP

    def __len__(self) -> int:
        return len(self._ranges)

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    @property
    def first(self) -> Range:
        """The oldest one. Ask has_unacked() before."""
        return self._ranges[0]

    def add(self, stream: Stream, start: int, stop: int) -> None:
        """The subflow carries one more. What is acknowledged is forgotten."""
        self.has_unacked()
        self._ranges.append((stream, start, stop))
        if len(self._ranges) >= self._sweep_at:
            self._sweep()

    def has_unacked(self) -> bool:
        """True if any is not acknowledged. Those in front that are, are forgotten."""
        ranges = self._ranges
        while ranges:
            stream, _, stop = ranges[0]
            if stream.send.acked < stop:
                return True
            ranges.popleft()
            self.delivered = True
        return False

    def forget(self, stream: Stream) -> None:
        """`stream` begins anew: what was sent of it means nothing any more."""
        self._ranges = deque(one for one in self._ranges if one[0] is not stream)

    def clear(self) -> None:
        self._ranges.clear()

    def _sweep(self) -> None:
        """A range in front whose stream waits for another subflow must not keep all that was
        acknowledged behind it."""
        self._ranges = deque(
            (stream, start, stop)
            for stream, start, stop in self._ranges
            if stream.send.acked < stop
        )
        self._sweep_at = max(_SWEEP, 2 * len(self._ranges))
