"""What a session keeps of its streams until it is acknowledged, and which of them wait for room."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastmtcp.engine.limits import MIN_SEND_ROOM, Limits
from fastmtcp.engine.quota import Holding

if TYPE_CHECKING:
    from fastmtcp.engine.streams.stream import Stream


class SendMemory:
    """One session's, within its limit and its share of the worker's memory."""

    __slots__ = ("_holding", "_limits", "_starved", "_wake", "held")

    def __init__(self, limits: Limits, holding: Holding, wake: Callable[[Stream], None]) -> None:
        """`wake` is called with a stream that waited, when there is room again."""
        self._limits = limits
        self._holding = holding
        self._wake = wake
        self._starved: dict[Stream, None] = {}
        self.held = 0
        """Bytes kept for a possible reinjection."""

    def room(self, stream: Stream, want: int) -> int:
        """Up to `want` bytes that `stream` may add now. If it gets less, it is woken later."""
        most = max(self.held + self._holding.memory.spare, MIN_SEND_ROOM)
        left = min(self._limits.send_buffer, most) - self.held
        if left < want:
            self._starved[stream] = None
            want = left
        return max(0, want)

    def add(self, count: int) -> None:
        self.held += count
        self._holding.add(count)

    def let_go(self, count: int) -> None:
        """`count` bytes need not be held any longer: streams that wait for room may have it."""
        self.held -= count
        self._holding.add(-count)
        if self._starved and 2 * self.held < self._limits.send_buffer:
            self.wake()

    def wake(self) -> None:
        """Once a second too: the room may be what another session of the worker has let go."""
        for stream in self._starved:
            self._wake(stream)
        self._starved.clear()

    def forget(self, stream: Stream) -> None:
        self._starved.pop(stream, None)
