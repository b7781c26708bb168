"""How much credit a stream gets: a floor of its own, and a share of the session's pool.

The window follows the need: the sender says when it is about to run out of credit (BLOCKED), and
the window doubles if the application keeps up. Nobody has to guess a round-trip time, which on
several unequal paths with their queues would be a guess indeed. A slow reader never grows its
window, however much the sender asks.

A sender that is faster than everything behind it asks for ever: on one machine a larger window
only moves more bytes out of the processor's cache. So a window that is large, and used up in a
moment, grows on trial.

What counts in the pool is what is out: credit given beyond the floor for bytes that the application
has not taken. Those that want more than there is, the hungry ones, share alike what the others
leave, whoever was first: who has more is not advanced as its bytes are taken, so that a round trip
later the rest is there for the others. If credit is not used, the peer is asked to give it back
(RECALL), and says how much that is (RETURN): both count all there ever was, so that either frame
may be lost, late or doubled, and an ACK from before gives nothing back to the peer.
"""

from __future__ import annotations

from fastmtcp.engine.limits import MIB, SHARE, Limits
from fastmtcp.engine.quota import Holding
from fastmtcp.engine.wire.errors import RemoteError, SessionCode

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

_UNUSED = 4
"""Idle streams keep together one part in so many of the pool, for answers that begin at once, and
each at most its start window."""

_NEEDS = 2
"""A stream keeps so many times what it has used in the last second: two round trips of half a
second each."""


class WindowPool:
    """Credit that the windows of one session share beyond their floors."""

    __slots__ = ("_holding", "_most", "free", "hungry", "satisfied", "size")

    def __init__(self, size: int, holding: Holding | None = None) -> None:
        self.size = size
        self.free = size
        """What is not out. Never negative."""
        self.hungry = 0
        """How many streams want more than they have got."""
        self.satisfied = 0
        """What the others have out."""
        self._holding = holding or Holding()
        self._most = size * SHARE // (SHARE + 1)

    @property
    def budget(self) -> int:
        """What may be out: a part is left for those that come, and all of it must be within the
        session's share of the worker's memory."""
        return min(self._most, self._holding.spare)

    def goal(self, window: ReceiveWindow) -> int:
        """The size that `window` may have now."""
        # As `budget`, which would be one call more.
        spare = self._holding.spare
        rest = (self._most if self._most < spare else spare) - self.satisfied
        own = window.out
        share = rest // self.hungry if window.hungry else (rest + own) // (self.hungry + 1)
        if share > own + self.free:
            share = own + self.free
        elif share < 0:
            share = 0
        goal = window.floor + share
        return goal if goal < window.wanted else window.wanted

    @property
    def is_tight(self) -> bool:
        """True if credit that is not used should come back."""
        return 2 * (self.size - self.free) > self.budget


class ReceiveWindow:
    """The credit one stream gives to its peer."""

    __slots__ = (
        "_began_at",
        "_finished",
        "_from",
        "_goodput",
        "_grown_at",
        "_limits",
        "_look_at",
        "_pool",
        "_seen",
        "_since",
        "_smaller",
        "_to_beat",
        "_top",
        "_try_at",
        "floor",
        "hungry",
        "limit",
        "out",
        "returned",
        "size",
        "taken",
        "wanted",
    )

    def __init__(self, limits: Limits, pool: WindowPool, now: float) -> None:
        self._limits = limits
        self._pool = pool
        self.floor = limits.floor_window
        """What the stream has without the pool."""
        self.wanted = self.floor
        """The window that the stream has proved to need."""
        self.size = self.floor
        """The window as it was last told: `wanted`, or the share of the pool if that is less."""
        self.taken = 0
        """Bytes that the application took."""
        self.limit = self.floor
        """The peer may send bytes below this offset. It goes back only by RETURN."""
        self.returned = 0
        """Bytes of credit that the peer has given back, in all."""
        self.out = 0
        """What the stream has of the pool."""
        self.hungry = False
        """True if the stream wants more than it was last told."""
        self._top = self.limit
        """Bytes below this offset may come: `limit`, or the end once that is known."""
        self._finished = False
        self._grown_at = 0
        self._began_at = 0
        self._seen = 0
        self._to_beat = 0.0
        """While a trial runs: the goodput before it."""
        self._smaller = 0
        """And the window."""
        self._try_at = now
        self._start_period(now)

    def start(self) -> None:
        """Grow from the floor to the start window."""
        self.wanted = max(self.wanted, self._limits.start_window)

    def take(self, count: int, now: float) -> None:
        """The application took `count` bytes."""
        self.taken += count
        self._count()
        wanted = self.wanted
        if wanted < self._limits.start_window and (self.taken - self._began_at) * 4 >= wanted:
            self.start()
        if now >= self._look_at:
            self._end_period(now)

    def on_blocked(self, limit: int, waiting: int, now: float) -> bool:
        """The peer asks for a larger window while `waiting` bytes wait for the application.

        True if it should hear of new credit. What it asked before it knew of the last growth does
        not count.
        """
        if limit < self._grown_at or waiting * 4 > self.size or self._finished:
            return False
        if self.wanted <= self._pool.goal(self):
            if self.wanted >= _LARGE and not self._may_grow(now):
                return False
            self._smaller = self.wanted
            self.wanted = max(self.wanted, min(2 * self.wanted, self._limits.max_window))
            self._start_period(now)
        elif not self.worth_telling:
            return False
        before = self.limit
        self._grown_at = self.tell()
        return self.limit > before

    def on_return(self, returned: int, highest: int) -> None:
        """The peer has given back `returned` bytes of credit in all; `highest` is one past the
        highest byte received.

        Raises:
            RemoteError: it gives back what it has used.
        """
        back = returned - self.returned
        if back <= 0:
            return
        if self.limit - back < highest:
            raise RemoteError(SessionCode.PROTOCOL, "credit given back that was used")
        self._set_hungry(False)
        self.returned = returned
        self.limit -= back
        self._top = min(self._top, self.limit)
        self._count()
        # It grows again when it is used again.
        self.wanted = max(self.floor, min(self.wanted, self.limit - self.taken))
        self.size = min(self.size, self.wanted)
        self._began_at = self.taken
        self._to_beat = 0.0

    def unused(self, streams: int) -> int:
        """How much credit the peer should give back, as one of so many `streams`. To be called once
        a second while the pool is tight."""
        used = self.taken - self._seen
        self._seen = self.taken
        keep = self._pool.size // (_UNUSED * streams)
        keep = max(self.floor, min(keep, self._limits.start_window), _NEEDS * used)
        unused = self._top - self.taken - keep
        return unused if unused >= self.floor else 0

    def finish(self, end: int) -> None:
        """The peer's FIN is here: nothing comes behind `end`."""
        self._finished = True
        self._set_hungry(False)
        self._top = end
        self._count()

    @property
    def worth_telling(self) -> bool:
        """True if the peer should hear of new credit now."""
        given = 4 * (self.limit - self.taken)
        if given > 3 * self.wanted or self._finished:  # most often, and quick to tell
            return False
        return given <= 3 * self._pool.goal(self)

    def tell(self) -> int:
        """The limit for the next ACK frame: all credit there ever was. Never goes back."""
        if not self._finished:
            self.size = self._pool.goal(self)
            if (self.size < self.wanted) is not self.hungry:
                self._set_hungry(not self.hungry)
            if self.taken + self.size > self.limit:
                self.limit = self._top = self.taken + self.size
                self._count()
        return self.limit + self.returned

    def close(self) -> None:
        """Return the memory to the pool."""
        self.finish(self.taken)
        self._to_beat = 0.0
        self._pool = WindowPool(0)  # the application may still take what is here

    def _count(self) -> None:
        """Settle with the pool."""
        out = self._top - self.taken - self.floor
        if out < 0:
            out = 0
        more = out - self.out
        self.out = out
        self._pool.free -= more
        if not self.hungry:
            self._pool.satisfied += more

    def _set_hungry(self, hungry: bool) -> None:
        if hungry == self.hungry:
            return
        self.hungry = hungry
        self._pool.hungry += 1 if hungry else -1
        self._pool.satisfied += -self.out if hungry else self.out

    def _may_grow(self, now: float) -> bool:
        if self._to_beat or now < self._try_at:
            return False
        elapsed = now - self._since
        goodput = self._goodput
        if elapsed > 0:
            goodput = max(goodput, (self.taken - self._from) / elapsed)
        if 0 < goodput * _MOMENT <= self.wanted:
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
            self.wanted = self._smaller
            self._try_at = now + _TRY_AGAIN
        self._to_beat = 0.0
        self._goodput = goodput
