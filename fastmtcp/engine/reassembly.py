"""Puts a stream's pieces back in offset order.

Pieces may come in any order, twice, and overlapping (after a reinjection cut at other places).
Whichever copy of a byte came first is kept: both are the same byte.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

from fastmtcp.engine.errors import RemoteError, SessionCode
from fastmtcp.engine.limits import KIB

Piece = memoryview | bytearray

_SMALL = 4 * KIB
_JOINED = 64 * KIB


def push(queue: deque[Piece] | list[Piece], piece: memoryview) -> None:
    """Queue a piece, copying it only if it is small.

    A view keeps its whole receive buffer alive, and an object costs 100 bytes: a peer that sends
    single bytes must not make us hold a buffer for each.
    """
    if len(piece) >= _SMALL:
        queue.append(piece)
        return
    if queue:
        last = queue[-1]
        if type(last) is bytearray and len(last) < _JOINED:
            try:
                last += piece
            except BufferError:  # the application's socket is just being handed this one
                pass
            else:
                return
    queue.append(bytearray(piece))


class GapPool:
    """How many more gaps the streams of one session may have."""

    __slots__ = ("free",)

    def __init__(self, size: int) -> None:
        self.free = size


class Reassembly:
    """In-order bytes in `ready`, the rest in runs behind the gaps."""

    __slots__ = ("_pool", "_runs", "_starts", "next", "ready", "ready_bytes")

    def __init__(self, pool: GapPool) -> None:
        self._pool = pool
        self.next = 0
        """All bytes below this offset have been received."""
        self.ready: deque[Piece] = deque()
        self.ready_bytes = 0
        self._starts: list[int] = []
        self._runs: list[_Run] = []

    @property
    def gaps(self) -> int:
        return len(self._runs)

    @property
    def highest(self) -> int:
        """One past the highest offset received."""
        return self._runs[-1].end if self._runs else self.next

    def insert(self, offset: int, piece: memoryview) -> bool:
        """Take a piece. True if there are new in-order bytes.

        Raises:
            RemoteError: the session has too many gaps.
        """
        size = len(piece)
        if offset < self.next:
            if offset + size <= self.next:
                return False
            piece = piece[self.next - offset :]
            size = len(piece)
            offset = self.next
        if offset > self.next:
            self._insert_behind_gap(offset, piece)
            return False
        if not size:
            return False
        push(self.ready, piece)
        self.ready_bytes += size
        self.next = offset + size
        if self._runs and self._starts[0] <= self.next:
            self._absorb()
        return True

    def take(self, count: int) -> None:
        """The application took `count` bytes from the front of `ready`."""
        self.ready_bytes -= count
        ready = self.ready
        while count:
            first = ready[0]
            size = len(first)
            if size <= count:
                ready.popleft()
                count -= size
            else:
                ready[0] = memoryview(first)[count:]
                return

    def clear(self) -> None:
        self.ready.clear()
        self.ready_bytes = 0
        self._pool.free += len(self._runs)
        self._starts.clear()
        self._runs.clear()

    def _absorb(self) -> None:
        """Move the runs that `next` has reached to `ready`."""
        done = 0
        for run in self._runs:
            if run.start > self.next:
                break
            done += 1
            skip = self.next - run.start
            for held in run.pieces:
                size = len(held)
                if skip >= size:
                    skip -= size
                    continue
                self.ready.append(memoryview(held)[skip:] if skip else held)
                self.ready_bytes += size - skip
                self.next += size - skip
                skip = 0
        del self._runs[:done]
        del self._starts[:done]
        self._pool.free += done

    def _insert_behind_gap(self, offset: int, piece: memoryview) -> None:
        """Keep what of `piece` fills holes between the runs."""
        while piece:
            index = bisect_right(self._starts, offset)
            if index:
                before = self._runs[index - 1]
                if offset < before.end:
                    skip = before.end - offset
                    piece = piece[skip:]
                    offset += skip
                    continue
            room = len(piece)
            if index < len(self._runs):
                room = min(room, self._starts[index] - offset)
            part = piece[:room]
            if index and before.end == offset:
                push(before.pieces, part)
                before.end += room
            else:
                if not self._pool.free:
                    raise RemoteError(SessionCode.LIMIT, "too many gaps in the session's streams")
                self._pool.free -= 1
                run = _Run(offset, offset + room)
                push(run.pieces, part)
                self._starts.insert(index, offset)
                self._runs.insert(index, run)
            piece = piece[room:]
            offset += room


class _Run:
    __slots__ = ("end", "pieces", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.pieces: list[Piece] = []
