"""Bytes taken from an application, kept until the peer has data-ACKed them."""

from __future__ import annotations

from bisect import bisect_right

Buffer = memoryview | bytes


class SendBuffer:
    """References to buffers, addressed by stream offset. Nothing is ever copied or joined.

    Invariant: holds exactly the bytes [base, end).
    """

    __slots__ = ("_head", "_starts", "_views", "base", "end")

    def __init__(self) -> None:
        self.base = 0
        self.end = 0
        self._starts: list[int] = []
        self._views: list[Buffer | None] = []
        self._head = 0

    def append(self, view: Buffer) -> None:
        self._starts.append(self.end)
        self._views.append(view)
        self.end += len(view)

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
            if low == 0 and high == len(view):
                out.append(view)
            else:
                out.append(memoryview(view)[low:high])
            start = first + high
            index += 1

    def release(self, offset: int) -> None:
        """Let go of all bytes below `offset`; whole buffers only, as soon as they are covered."""
        self.base = offset
        starts = self._starts
        views = self._views
        head = self._head
        count = len(starts)
        while head < count:
            view = views[head]
            assert view is not None
            if starts[head] + len(view) > offset:
                break
            views[head] = None
            head += 1
        # Deleting from the front of a list costs its length: do it when half of it is dead.
        if head > 64 and head * 2 > count:
            del starts[:head]
            del views[:head]
            head = 0
        self._head = head

    def clear(self) -> None:
        self.base = self.end
        self._starts.clear()
        self._views.clear()
        self._head = 0
