"""Bytes taken from an application, kept until the peer has data-ACKed them."""

from __future__ import annotations

from bisect import bisect_right

from fastmtcp.engine.limits import KIB

Buffer = memoryview | bytes
"""What is written, and what is sent."""

BUFFER_COST = 256
"""Bytes that a buffer takes beside those in it: two objects and their places in the lists."""

_SMALL = 4 * KIB
_JOINED = 64 * KIB


class SendBuffer:
    """References to buffers, addressed by stream offset.

    Nothing is copied but what would cost more than it is: small buffers that wait are joined, and
    what is left of one that is acknowledged for the most part does not keep the whole.

    Invariant: holds exactly the bytes [base, end).
    """

    __slots__ = ("_head", "_starts", "_views", "base", "end", "weight")

    def __init__(self) -> None:
        self.base = 0
        self.end = 0
        self.weight = 0
        """Bytes of memory that it takes, which is what counts against a limit."""
        self._starts: list[int] = []
        self._views: list[Buffer | bytearray | None] = []
        self._head = 0

    def append(self, view: Buffer) -> None:
        size = len(view)
        if size < _SMALL and self._head < len(self._views) and self._join(view):
            self.weight += size
        else:
            self._starts.append(self.end)
            self._views.append(view)
            self.weight += size + BUFFER_COST
        self.end += size

    def slice(self, start: int, end: int, out: list[Buffer]) -> None:
        """Append to `out` the views that make up [start, end)."""
        if start == end:
            return
        starts = self._starts
        views = self._views
        index = bisect_right(starts, start, self._head) - 1
        while start < end:
            view = views[index]
            assert view is not None
            first = starts[index]
            low = start - first
            high = min(len(view), end - first)
            # One that may still grow is never passed on itself.
            if low == 0 and high == len(view) and not isinstance(view, bytearray):
                out.append(view)
            else:
                out.append(memoryview(view)[low:high])
            start = first + high
            index += 1

    def release(self, offset: int) -> None:
        """Let go of all bytes below `offset`."""
        self.base = offset
        starts = self._starts
        views = self._views
        head = self._head
        count = len(starts)
        while head < count:
            view = views[head]
            assert view is not None
            size = len(view)
            left = starts[head] + size - offset
            if left > 0:
                if left * 2 < size:
                    views[head] = bytes(view[-left:])
                    starts[head] = offset
                    self.weight -= size - left
                break
            views[head] = None
            self.weight -= size + BUFFER_COST
            head += 1
        # Deleting from the front of a list costs its length: do it when half of it is dead.
        if head > 64 and head * 2 > count:
            del starts[:head]
            del views[:head]
            head = 0
        self._head = head

    def clear(self) -> None:
        self.base = self.end
        self.weight = 0
        self._starts.clear()
        self._views.clear()
        self._head = 0

    def _join(self, view: Buffer) -> bool:
        """Add to the last buffer, if that is small too: an application that writes single bytes
        must not make us keep an object for each."""
        last = self._views[-1]
        assert last is not None
        if type(last) is bytearray:
            if len(last) >= _JOINED:
                return False
            try:
                last += view
            except BufferError:  # a socket has not taken all of it yet
                return False
            return True
        if len(last) >= _SMALL:
            return False
        joined = bytearray(last)
        joined += view
        self._views[-1] = joined
        return True
