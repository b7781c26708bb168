"""How much credit a stream gets: a floor of its own, and a share of the session's pool.

The window follows the need: the sender says when it is about to run out of credit (BLOCKED), and
the window doubles if the application keeps up. Nobody has to guess a round-trip time, which on
several unequal paths with their queues would be a guess indeed. A slow reader never grows its
window, however much the sender asks.
"""

from __future__ import annotations

from fastmtcp.engine.limits import Limits
from fastmtcp.engine.quota import Memory


class WindowPool:
    """Memory that the windows of one session share beyond their floors."""

    __slots__ = ("_memory", "free")

    def __init__(self, size: int, memory: Memory | None = None) -> None:
        self.free = size
        self._memory = memory or Memory()

    def take(self, want: int) -> int:
        """Grant up to `want` bytes, never more than half of what is left: late streams get less
        than early ones, but the pool is never empty for them. Nor more than a share of what is
        left in the worker."""
        granted = max(0, min(want, self.free // 2, self._memory.spare))
        self.free -= granted
        return granted

    def give_back(self, count: int) -> None:
        self.free += count


class ReceiveWindow:
    """The credit one stream gives to its peer."""

    __slots__ = ("_grown_at", "_limits", "_pool", "limit", "size", "taken")

    def __init__(self, limits: Limits, pool: WindowPool) -> None:
        self._limits = limits
        self._pool = pool
        self.size = limits.floor_window
        self.taken = 0
        """Bytes that the application took."""
        self.limit = self.size
        """What the peer has been told: it may send bytes below this offset."""
        self._grown_at = 0

    def start(self) -> None:
        """Grow from the floor to the start window, if there is memory."""
        self._grow(self._limits.start_window)

    def take(self, count: int) -> None:
        """The application took `count` bytes."""
        self.taken += count
        if self.size < self._limits.start_window and self.taken * 4 >= self.size:
            self.start()

    def on_blocked(self, limit: int, waiting: int) -> bool:
        """The peer asks for a larger window while `waiting` bytes wait for the application.

        True if it got one. What it asked before it knew of the last growth does not count.
        """
        if limit < self._grown_at or waiting * 4 > self.size:
            return False
        before = self.size
        self._grow(min(2 * self.size, self._limits.max_window))
        self._grown_at = self.taken + self.size
        return self.size > before

    @property
    def worth_telling(self) -> bool:
        """True if the peer should hear of new credit now."""
        return (self.taken + self.size - self.limit) * 4 >= self.size

    def tell(self) -> int:
        """The limit for the next ACK frame. Never goes back."""
        self.limit = max(self.limit, self.taken + self.size)
        return self.limit

    def close(self) -> None:
        """Return the memory to the pool."""
        self._pool.give_back(self.size - self._limits.floor_window)
        self.size = self._limits.floor_window
        self._pool = WindowPool(0)  # the application may still take what is here

    def _grow(self, size: int) -> None:
        if size > self.size:
            self.size += self._pool.take(size - self.size)
