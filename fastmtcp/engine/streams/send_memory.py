"""What a session keeps of its streams until it is acknowledged, and which of them wait for room."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastmtcp.engine.limits import MIN_CHUNK, MIN_SEND_ROOM, OWN_SEND_ROOM, Limits
from fastmtcp.engine.quota import Holding

if TYPE_CHECKING:
    from fastmtcp.engine.streams.stream import Stream


class SendMemory:
    """One session's, within its limit and its share of the worker's memory.

    Every stream may always hold OWN_SEND_ROOM of its own, so that one that has filled the rest
    cannot stop another. Those that want more than there is wait, and are woken in turn.
    """

    __slots__ = ("_freed", "_holding", "_limits", "_starved", "_wake", "held")

    def __init__(self, limits: Limits, holding: Holding, wake: Callable[[Stream], None]) -> None:
        """`wake` is called with a stream that waited, when there is room again."""
        self._limits = limits
        self._holding = holding
        self._wake = wake
        self._starved: dict[Stream, None] = {}
        """Streams that wait for room, the one that has waited longest first."""
        self._freed = 0
        """Room for which no stream has been woken yet."""
        self.held = 0
        """Bytes of memory that is kept for a possible reinjection."""

    def room(self, stream: Stream, want: int) -> int:
        """Up to `want` bytes that `stream` may add now. If it gets less, it is woken later."""
        left = self._limits.send_buffer - self.held
        worker = max(self._holding.spare, MIN_SEND_ROOM - self.held)
        if min(left, worker) < want:
            self._starved[stream] = None
            want = min(want, worker, max(left, OWN_SEND_ROOM - stream.send.held))
        return max(0, want)

    def add(self, count: int) -> None:
        self.held += count
        self._holding.add(count)

    def let_go(self, count: int) -> None:
        """`count` bytes need not be held any longer: streams that wait for room may have it."""
        self.held -= count
        self._holding.add(-count)
        if self._starved:
            left = self._limits.send_buffer - self.held
            # Where half is free, those that were woken may have had nothing to add.
            roomy = 2 * self.held < self._limits.send_buffer
            self._wake_for(left if roomy else min(self._freed + count, left))

    def wake(self) -> None:
        """Once a second too: the room may be what another session of the worker has let go."""
        self._wake_for(max(self._limits.send_buffer - self.held, OWN_SEND_ROOM))

    def forget(self, stream: Stream) -> None:
        self._starved.pop(stream, None)

    def _wake_for(self, freed: int) -> None:
        """Wake no more streams than `freed` bytes are enough for: all of them would find that the
        first has taken it."""
        starved = self._starved
        while starved and freed >= MIN_CHUNK:
            stream = next(iter(starved))
            del starved[stream]
            freed = max(freed - OWN_SEND_ROOM, 0)
            self._wake(stream)
        self._freed = freed
