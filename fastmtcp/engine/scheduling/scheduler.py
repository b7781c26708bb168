"""Which stream sends next.

Subflows pull: one that can take bytes asks, and gets the next chunk. Lost ranges go first (the
receiver waits for them), then the first bytes of streams, then small streams, then bulk streams,
each group in turn. While many begin at once, each has a small turn: an answer of one packet must
not wait until hundreds of others have sent a chunk.
"""

from __future__ import annotations

from collections import deque

from fastmtcp.engine.limits import BULK_TURN
from fastmtcp.engine.streams.stream import Stream


class Scheduler:
    """Streams that have something to send. Each is in at most one queue (`stream.queue`), once."""

    __slots__ = ("_bulk", "_first", "_lost", "_since_bulk", "_since_small", "_small")

    def __init__(self) -> None:
        self._lost: deque[Stream] = deque()
        self._first: deque[Stream] = deque()
        self._small: deque[Stream] = deque()
        self._bulk: deque[Stream] = deque()
        self._since_small = 0
        self._since_bulk = 0

    @property
    def has_small(self) -> bool:
        """True if a small stream may have something to send."""
        return bool(self._first or self._small)

    @property
    def first_bulk(self) -> Stream | None:
        """The stream whose bulk data, or lost range, goes next."""
        queue = self._lost or self._bulk
        return queue[0] if queue else None

    @property
    def bulk_count(self) -> int:
        """Streams that have bulk data, or lost ranges, to send."""
        return len(self._bulk) + len(self._lost)

    def __bool__(self) -> bool:
        return bool(self._first or self._small or self._bulk or self._lost)

    def add(self, stream: Stream, now: float) -> None:
        """Queue a stream that may have become sendable."""
        if stream.queue is not None or not stream.send.sendable:
            return
        if stream.send.lost:
            queue = self._lost
        elif not stream.is_small(now):
            queue = self._bulk
        elif stream.is_at_first_bytes:
            queue = self._first
        else:
            queue = self._small
        queue.append(stream)
        stream.queue = queue

    def promote(self, stream: Stream) -> None:
        """A range of this stream was lost: move it to the front group."""
        if stream.queue is self._lost:
            return
        if stream.queue is not None:
            stream.queue.remove(stream)
        self._lost.append(stream)
        stream.queue = self._lost

    def remove(self, stream: Stream) -> None:
        """This stream is not to be sent, for now."""
        if stream.queue is not None:
            stream.queue.remove(stream)
            stream.queue = None

    def next(
        self, *, small: bool = True, bulk: bool = True, carrier: int | None = None
    ) -> Stream | None:
        """Take the stream whose turn it is out of its queue; add() it again after use.

        Without `small` only a lost range or a bulk stream, without `bulk` only a small stream. If
        the subflow `carrier` asks, a lost range that keeps off it is left for another, and bulk
        streams do not overtake it.
        """
        while True:
            if bulk and self._lost:
                if self._lost[0].avoid == carrier:
                    bulk = False
                    continue
                stream = self._lost.popleft()
            elif small and self._is_turn_of_small(bulk=bulk):
                stream = self._next_small()
                self._since_bulk += bulk
            elif bulk and self._bulk:
                self._since_bulk = 0
                stream = self._bulk.popleft()
            else:
                return None
            stream.queue = None
            # Dropped, or acknowledged meanwhile through another subflow.
            if stream.send.sendable:
                return stream

    def _is_turn_of_small(self, *, bulk: bool) -> bool:
        if not self._first and not self._small:
            return False
        return not bulk or self._since_bulk < BULK_TURN or not self._bulk

    def _next_small(self) -> Stream:
        if self._first and (self._since_small < BULK_TURN or not self._small):
            self._since_small += 1
            return self._first.popleft()
        self._since_small = 0
        return self._small.popleft()
