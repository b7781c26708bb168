"""How much credit a stream gets: a floor of its own, and a share of the session's pool.

The window follows the need: the sender says when it is about to run out of credit (BLOCKED), and
the window doubles if the application keeps up. Nobody has to guess a round-trip time, which on
several unequal paths with their queues would be a guess indeed. A slow reader never grows its
window, however much the sender asks.

A sender that is faster than everything behind it asks for ever: on one machine a larger window
only moves more bytes out of the processor's cache. So a window that is large, and used up in a
moment, grows on trial.
"""

from __future__ import annotations

from fastmtcp.engine.limits import MIB, Limits
from fastmtcp.engine.quota import Holding

_LARGE = 4 * MIB
_MOMENT = 0.02
"""Seconds. A window used up sooner is enough for round trips of that length, and for longer ones
at a rate that is reached anyway."""

_PERIOD = 0.2
"""The goodput is measured over so many seconds; a trial takes as long."""

_BETTER = 1.25
"""What a doubled window must bring to stay. It would bring 2 if it were all that is missing."""

_TRY_AGAIN = 5.0
"""Seconds after a trial that brought nothing."""


class WindowPool:
    """Memory that the windows of one session share beyond their floors."""

    __slots__ = ("_holding", "free")

    def __init__(self, size: int, holding: Holding | None = None) -> None:
        self.free = size
        self._holding = holding or Holding()

    def take(self, want: int) -> int:
        """Grant up to `want` bytes, never more than half of what is left: late streams get less
        than early ones, but the pool is never empty for them. Nor more than a share of what is
        left in the worker to its client."""
        granted = max(0, min(want, self.free // 2, self._holding.spare))
        self.free -= granted
        return granted

    def give_back(self, count: int) -> None:
        self.free += count


class ReceiveWindow:
    """The credit one stream gives to its peer."""

    __slots__ = (
        "_from",
        "_goodput",
        "_grown_at",
        "_limits",
        "_look_at",
        "_pool",
        "_since",
        "_smaller",
        "_to_beat",
        "_try_at",
        "excess",
        "limit",
        "size",
        "taken",
    )

    def __init__(self, limits: Limits, pool: WindowPool) -> None:
        self._limits = limits
        self._pool = pool
        self.size = limits.floor_window
        self.taken = 0
        """Bytes that the application took."""
        self.limit = self.size
        """What the peer has been told: it may send bytes below this offset."""
        self._grown_at = 0
        self.excess = 0
        """Bytes beyond `size` that the peer still has credit for, after a trial that failed."""
        self._to_beat = 0.0
        """While a trial runs: the goodput before it."""
        self._smaller = 0
        """And the window."""
        self._try_at = 0.0
        self._start_period(0.0)

    def start(self) -> None:
        """Grow from the floor to the start window, if there is memory."""
        self._grow(self._limits.start_window)

    def take(self, count: int, now: float) -> None:
        """The application took `count` bytes."""
        self.taken += count
        if self.size < self._limits.start_window and self.taken * 4 >= self.size:
            self.start()
        if now >= self._look_at:
            self._end_period(now)

    def on_blocked(self, limit: int, waiting: int, now: float) -> bool:
        """The peer asks for a larger window while `waiting` bytes wait for the application.

        True if it got one. What it asked before it knew of the last growth does not count.
        """
        if limit < self._grown_at or waiting * 4 > self.size:
            return False
        if self.size >= _LARGE and not self._may_grow(now):
            return False
        before = self._smaller = self.size
        self._grow(min(2 * self.size, self._limits.max_window))
        self._grown_at = self.taken + self.size
        self._start_period(now)
        return self.size > before

    @property
    def worth_telling(self) -> bool:
        """True if the peer should hear of new credit now."""
        return (self.taken + self.size - self.limit) * 4 >= self.size

    def tell(self) -> int:
        """The limit for the next ACK frame. Never goes back."""
        self.limit = max(self.limit, self.taken + self.size)
        if self.excess and self.limit == self.taken + self.size:
            self._pool.give_back(self.excess)
            self.excess = 0
        return self.limit

    def close(self) -> None:
        """Return the memory to the pool."""
        self._pool.give_back(self.size - self._limits.floor_window + self.excess)
        self.size = self._limits.floor_window
        self.excess = 0
        self._to_beat = 0.0
        self._pool = WindowPool(0)  # the application may still take what is here

    def _may_grow(self, now: float) -> bool:
        if self._to_beat or now < self._try_at:
            return False
        elapsed = now - self._since
        goodput = self._goodput
        if elapsed > 0:
            goodput = max(goodput, (self.taken - self._from) / elapsed)
        if 0 < goodput * _MOMENT <= self.size:
            return True
        self._to_beat = self._goodput  # after a whole period only
        return self._to_beat > 0

    def _start_period(self, now: float) -> None:
        self._since = now
        self._from = self.taken
        self._goodput = 0.0
        self._look_at = now + _PERIOD

    def _end_period(self, now: float) -> None:
        goodput = (self.taken - self._from) / max(now - self._since, _PERIOD)
        self._start_period(now)
        if self._to_beat and goodput < _BETTER * self._to_beat:
            self.excess += self.size - self._smaller
            self.size = self._smaller
            self._try_at = now + _TRY_AGAIN
        self._to_beat = 0.0
        self._goodput = goodput

    def _grow(self, size: int) -> None:
        if size <= self.size:
            return
        kept = min(self.excess, size - self.size)
        self.excess -= kept
        self.size += kept
        self.size += self._pool.take(size - self.size)
