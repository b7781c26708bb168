"""Puts a stream's pieces back in offset order.

Pieces may come in any order, twice, and overlapping (after a reinjection cut at other places).
Whichever copy of a byte came first is kept: both are the same byte.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sized
from typing import cast

from fastmtcp.engine.limits import GAP_COST, KIB
from fastmtcp.engine.quota import Holding
from fastmtcp.engine.wire.errors import RemoteError, SessionCode

Piece = memoryview | bytearray

_SMALL = 4 * KIB
_JOINED = 64 * KIB

_PART = 8
"""A piece that stays is a view if it is at least this part of the slab that it keeps from being
used again, and all but this part of any other buffer."""

_MERGED = 64
"""Runs that touch one another become one as long as it has no more pieces than this: a peer that
sends the same range again and again must not make us walk over thousands of runs each time."""


def is_small(piece: memoryview) -> bool:
    """True if `piece` is to be copied if it stays, as it keeps alive what is much larger.

    Of slabs there are only so many (fastmtcp.io.buffers: BufferPool). Whatever else it looks into
    is kept for it alone, and must be no more than what it is counted as.
    """
    base = piece.obj
    if type(base) is bytes:
        return len(piece) * _PART < len(base) * (_PART - 1)
    if type(base) is bytearray:
        return len(piece) * 2 < len(base)
    return len(piece) * _PART < len(cast("Sized", base))


def push(queue: deque[Piece] | list[Piece], piece: Piece) -> None:
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


def keep(queue: deque[Piece] | list[Piece], piece: Piece) -> None:
    """Queue a piece that stays, and must not hold on to more than it is counted as."""
    if len(piece) >= _SMALL and type(piece) is memoryview and is_small(piece):
        queue.append(bytearray(piece))
    else:
        push(queue, piece)


class GapPool:
    """How many more gaps the streams of one session may have."""

    __slots__ = ("free",)

    def __init__(self, size: int) -> None:
        self.free = size


class Reassembly:
    """In-order bytes in `ready`, the rest in runs behind the gaps.

    What comes in order is not copied, as most of it goes straight on. What has stayed nevertheless
    is when the caller says so (settle()), and what is behind a gap at once: 4 KiB must not keep a
    slab of 512 KiB from all others.
    """

    __slots__ = (
        "_holding",
        "_pool",
        "_runs",
        "_starts",
        "fresh",
        "held",
        "next",
        "ready",
        "ready_bytes",
    )

    def __init__(self, pool: GapPool, holding: Holding | None = None) -> None:
        self._pool = pool
        self._holding = holding or Holding()
        self.held = 0
        """Bytes that are here, in order or not, and that the application has not taken."""
        self.next = 0
        """All bytes below this offset have been received."""
        self.ready: deque[Piece] = deque()
        self.ready_bytes = 0
        self.fresh = 0
        """So many pieces, taken or not, came to the end of `ready` since settle()."""
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
        if not size:
            return False
        if offset > self.next:
            self._insert_behind_gap(offset, piece)
            return False
        push(self.ready, piece)
        self.fresh += 1
        self._hold(size)
        self.ready_bytes += size
        self.next = offset + size
        if self._runs and self._starts[0] <= self.next:
            self._absorb()
        return True

    def take(self, count: int) -> None:
        """The application took `count` bytes from the front of `ready`."""
        self._hold(-count)
        self.ready_bytes -= count
        ready = self.ready
        while count:
            first = ready[0]
            size = len(first)
            if size <= count:
                ready.popleft()
                count -= size
            else:
                # The application's socket is full, so this stays.
                rest = memoryview(first)[count:]
                ready[0] = bytearray(rest) if is_small(rest) else rest
                return

    def settle(self) -> None:
        """The application has had its chance: what is left of `ready` stays."""
        ready = self.ready
        for index in range(-min(self.fresh, len(ready)), 0):
            piece = ready[index]
            if type(piece) is memoryview and is_small(piece):
                ready[index] = bytearray(piece)
        self.fresh = 0

    def clear(self) -> None:
        self._hold(-self.held)
        self.ready.clear()
        self.ready_bytes = 0
        self._count_gaps(-len(self._runs))
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
                self.fresh += 1
                self.ready_bytes += size - skip
                self.next += size - skip
                skip = 0
        del self._runs[:done]
        del self._starts[:done]
        self._count_gaps(-done)

    def _insert_behind_gap(self, offset: int, piece: memoryview) -> None:
        """Keep what of `piece` fills holes between the runs, and join the runs that it fills."""
        starts, runs = self._starts, self._runs
        end = offset + len(piece)
        low = bisect_right(starts, offset)
        if low and runs[low - 1].end >= offset:
            low -= 1
        # A run that begins where the piece ends stays by itself: a peer that sends single bytes
        # backwards would make us copy all that is behind for each.
        high = bisect_left(starts, end, low)
        if not self._pool.free and (low == high or runs[low].start > offset):
            raise RemoteError(SessionCode.LIMIT, "too many gaps in the session's streams")
        if low == high:
            run = _Run(offset)
            run.add(piece)
            self._hold(len(piece))
            made = [run]
        else:
            made = []
            position = offset
            for run in runs[low:high]:
                if run.start > position:
                    part = piece[position - offset : run.start - offset]
                    if not made:
                        made.append(_Run(position))
                    made[-1].add(part)
                    self._hold(len(part))
                if made and made[-1].end == run.start and made[-1].has_room_for(run):
                    made[-1].join(run)
                else:
                    made.append(run)
                position = run.end
            if position < end:
                made[-1].add(piece[position - offset :])
                self._hold(end - position)
        self._count_gaps(len(made) - (high - low))
        if len(made) != high - low or made[0].start != starts[low]:
            runs[low:high] = made
            starts[low:high] = [run.start for run in made]

    def _count_gaps(self, more: int) -> None:
        self._pool.free -= more
        self._holding.add(more * GAP_COST)

    def _hold(self, count: int) -> None:
        self.held += count
        self._holding.add(count)


class _Run:
    """Bytes without a gap."""

    __slots__ = ("end", "pieces", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self.pieces: list[Piece] = []

    def add(self, piece: memoryview) -> None:
        keep(self.pieces, piece)
        self.end += len(piece)

    def has_room_for(self, other: _Run) -> bool:
        return len(self.pieces) + len(other.pieces) <= _MERGED

    def join(self, other: _Run) -> None:
        """Take over the pieces of the run right behind this one."""
        for piece in other.pieces:
            push(self.pieces, piece)
        self.end = other.end
