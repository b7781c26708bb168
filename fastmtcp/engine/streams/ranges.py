"""A set of half-open integer ranges, kept sorted and disjoint."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class RangeSet:
    """Ranges of offsets that wait to be sent again."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    @property
    def first(self) -> tuple[int, int]:
        """The lowest range. Ask whether there is one before."""
        return self._starts[0], self._ends[0]

    def add(self, start: int, end: int) -> None:
        """Add [start, end), joining what it touches."""
        if start >= end:
            return
        low = bisect_left(self._ends, start)
        high = bisect_right(self._starts, end)
        if low < high:
            start = min(start, self._starts[low])
            end = max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def drop_below(self, offset: int) -> None:
        """Forget everything below `offset`."""
        keep = bisect_right(self._ends, offset)
        if keep:
            del self._starts[:keep]
            del self._ends[:keep]
        if self._starts and self._starts[0] < offset:
            self._starts[0] = offset

    def take(self, most: int) -> tuple[int, int]:
        """Remove and return up to `most` values from the lowest range."""
        start, end = self._starts[0], self._ends[0]
        if end - start > most:
            self._starts[0] = start + most
            return start, start + most
        del self._starts[0]
        del self._ends[0]
        return start, end
