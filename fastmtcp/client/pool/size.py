"""How many subflows one path should have: finds the number beyond which more bring nothing.

While streams wait for subflows (`hungry`) it tries more of them, in steps of about a half, and
compares what arrives with what arrived before. A step that brings a fair share of what so many
connections would bring if each had a rate of its own is kept, and the next one follows. Else it is
taken back, half of it if that may do, and the number holds: for half a minute, then a minute, up
to five. After that one small step is tried again.

There is no clock and no socket here: the caller gives a Reading every TICK seconds.
"""

from __future__ import annotations

import enum
from collections import deque
from statistics import median

import msgspec

from fastmtcp.config.connections import Connections

TICK = 0.25
"""Seconds between two readings."""

FAIR_SHARE = 0.4
"""Of the gain that a step would have if every connection brought as much as those before: a step
that brings less is taken back. The last step into a full line brings only a part of it."""

SURE_SHARE = 0.8
"""A step that brings this much is kept without waiting any longer."""

AGAIN_SHARE = 0.6
"""As FAIR_SHARE, of the small steps that are tried again after a hold: noise must not add up."""

HALF_SHARE = 0.1
"""A step that brought less than this is not tried by halves."""

FIRST_HOLD = 30.0
LONGEST_HOLD = 300.0
IDLE_AFTER = 30.0
"""Seconds without demand and with hardly any bytes after which the least number is enough."""

IDLE_RATE = 64 * 1024
"""Bytes per second below which a session counts as idle: one small stream every two seconds."""

_SETTLE = 1.0
_SETTLE_MAX = 3.0
_SETTLE_ROUND_TRIPS = 10
"""A new connection needs some round trips to find its rate (slow start)."""

_RISING = 1.15
"""What arrives still grows by itself if half a second brings so much more than the one before."""

_GOING_ON = 2
_BASELINE = 4
_BASELINE_AGAIN = 8
_KEPT = 16
"""Readings that make a level: right after a step that was kept, usually, and where the step is so
small that noise could hide it."""

_TO_CONNECT = 5.0
_TO_PAUSE = 3.0
_AS_BEFORE = 0.95
"""If nothing waits any more and this part of the rate is still there, the streams have enough."""

_MOVED = 1.4
_MOVED_FOR = 12
_MOVED_AFTER = 1 / 6
"""A hold ends early if the goodput is another by this factor for this many readings in a row, but
not before this part of the next hold is over: a line that goes up and down all the time would else
be tried all the time."""


class Reading(msgspec.Struct, frozen=True):
    """What was seen since the last reading. Rates are bytes per second, both directions."""

    up: int
    """Live subflows of the path."""
    hungry: bool
    """Streams wait, and the subflows that may carry them, those of this path among them, are
    full."""
    goodput: float
    """Payload of the whole session that arrived."""
    rate: float
    """Bytes that travelled on this path."""
    rtt: float
    """Seconds."""


class _Level(msgspec.Struct, frozen=True):
    goodput: float
    rate: float


class _Phase(enum.Enum):
    WATCHING = enum.auto()
    PROBING = enum.auto()
    HOLDING = enum.auto()


class PoolSize:
    """The wanted number of subflows of one path, within `limits`.

    Only one path of a session may probe at a time, or each would take the other's gain for its
    own: `is_probing` says that this one does, `update` is told whether it may begin.
    """

    def __init__(self, limits: Connections) -> None:
        self.limits = limits
        self.wanted = limits.least
        self.settled: int | None = None
        """The number that was last found to be enough; None before the first."""
        self.probed_at = float("-inf")
        """When the last step began."""
        self._phase = _Phase.WATCHING
        self._windows: deque[_Level] = deque(maxlen=_KEPT)
        self._lull: list[float] = []
        """Goodput since nothing waits any more."""
        self._again = False
        """The next step is a small one, after a hold."""
        self._base = self.wanted
        self._before = _Level(0.0, 0.0)
        self._halved = False
        self._going_on = False
        """The last step was kept, and its rate is the next one's baseline."""
        self._tried_at = 0.0
        self._up_at: float | None = None
        self._hungry_at = 0.0
        self._hold = FIRST_HOLD
        self._hold_until = 0.0
        self._held_at = 0.0
        self._reference: float | None = None
        """Goodput at the number that is held."""
        self._busy_at: float | None = None
        self._was_down = False

    @property
    def is_probing(self) -> bool:
        return self._phase is _Phase.PROBING

    def limit(self, limits: Connections) -> None:
        """Stay within other limits from now on."""
        self.limits = limits
        if not limits.least <= self.wanted <= limits.most:
            self.wanted = max(limits.least, min(self.wanted, limits.most))
            self._phase = _Phase.WATCHING
            self._windows.clear()

    def disturbed(self) -> None:
        """Something else has changed, so that what was measured until now counts no more."""
        self._windows.clear()

    def retry(self, now: float) -> None:
        """The network has changed: what was found out about it may be wrong."""
        self._hold = FIRST_HOLD
        self._windows.clear()
        if self._phase is _Phase.HOLDING:
            self._hold_until = min(self._hold_until, now + _TO_CONNECT)

    def update(self, now: float, reading: Reading, may_probe: bool) -> int:
        """Take a reading; returns how many subflows the path should have."""
        if self.limits.is_fixed:
            return self.wanted
        if reading.hungry:
            self._hungry_at = now
        if self._busy_at is None or reading.hungry or reading.goodput > IDLE_RATE:
            self._busy_at = now
        if not reading.up:
            self._was_down = True
        elif self._was_down and reading.up == self.wanted:
            self._was_down = False
            self.retry(now)
        if self._phase is _Phase.PROBING:
            self._judge(now, reading)
        elif now - self._busy_at >= IDLE_AFTER:
            self._rest()
        elif reading.up != self.wanted:
            self._windows.clear()
        else:
            self._watch(now, reading, may_probe)
        return self.wanted

    # --- between the steps ----------------------------------------------------------------------

    def _watch(self, now: float, reading: Reading, may_probe: bool) -> None:
        if not reading.hungry:
            self._windows.clear()
            return
        self._windows.append(_Level(reading.goodput, reading.rate))
        if self._phase is _Phase.HOLDING:
            if now < self._hold_until and not self._has_moved(now):
                return
            self._phase = _Phase.WATCHING
            self._again = True
        needed = _GOING_ON if self._going_on else self._enough
        if (
            may_probe
            and self.wanted < self.limits.most
            and len(self._windows) >= needed
            and not self._is_rising()
        ):
            self._probe(now)

    def _has_moved(self, now: float) -> bool:
        """True if the goodput at this number is another than it was: a cap has changed."""
        if len(self._windows) < _MOVED_FOR or now - self._held_at < self._hold * _MOVED_AFTER:
            return False
        level = self._level(_MOVED_FOR).goodput
        if self._reference is None:
            self._reference = level
        if self._reference / _MOVED < level < self._reference * _MOVED:
            return False
        self._reference = level
        return True

    def _is_rising(self) -> bool:
        """True while the rate still grows by itself: slow start, a window that opens."""
        recent = [level.goodput for level in self._windows][-4:]
        half = len(recent) // 2
        return sum(recent[half:]) > _RISING * sum(recent[:half])

    def _level(self, count: int, but: int = 0) -> _Level:
        """The medians of the last `count` readings, `but` so many."""
        windows = list(self._windows)
        last = windows[-count : len(windows) - but]
        return _Level(median(level.goodput for level in last), median(level.rate for level in last))

    @property
    def _enough(self) -> int:
        """Readings that make a level."""
        return _BASELINE_AGAIN if self._again else _BASELINE

    def _rest(self) -> None:
        """Idle: the least number will do until there is something to carry."""
        self._windows.clear()
        self._reference = None
        self._going_on = False
        if self.wanted != self.limits.least or self.settled != self.wanted:
            self.wanted = self.limits.least
            self._phase = _Phase.WATCHING
            self._again = False

    # --- a step ---------------------------------------------------------------------------------

    def _probe(self, now: float) -> None:
        self._before = self._level(_KEPT if self._again else _BASELINE)
        self._base = self.wanted
        self._halved = False
        self._phase = _Phase.PROBING
        self.probed_at = now
        self._try(self._next(), now)

    def _next(self) -> int:
        if self._again:
            step = self.wanted + max(1, self.wanted // 4)
        elif self.settled is not None and self.settled > self.wanted:
            # What was enough before the pause is the best guess.
            step = self.settled
        else:
            step = self.wanted + max(1, (self.wanted + 1) // 2)
        return min(step, self.limits.most)

    def _try(self, count: int, now: float) -> None:
        self.wanted = count
        self._tried_at = now
        self._up_at = None
        self._windows.clear()
        self._lull.clear()

    def _judge(self, now: float, reading: Reading) -> None:
        if reading.up < self.wanted:
            self._up_at = None
            self._windows.clear()
            if now - self._tried_at >= _TO_CONNECT:
                self._take_back(now)
            return
        if self._up_at is None:
            self._up_at = now
            return
        if not reading.hungry:
            self._lull.append(reading.goodput)
            if now - self._hungry_at >= _TO_PAUSE:
                self._end(now)
            return
        self._lull.clear()
        self._windows.append(_Level(reading.goodput, reading.rate))
        if self._is_sure():
            self._keep(now)
            return
        settle = min(max(_SETTLE, _SETTLE_ROUND_TRIPS * reading.rtt), _SETTLE_MAX)
        if len(self._windows) <= self._enough or now - self._up_at < settle + self._enough * TICK:
            return
        # Without the last one: that nothing waits any more is heard a little later.
        share = self._share(self._level(self._enough + 1, but=1))
        if share >= (AGAIN_SHARE if self._again else FAIR_SHARE):
            self._keep(now)
        elif share >= HALF_SHARE and not (self._halved or self._again) and self._grown > 1:
            self._halved = True
            self._try((self._base + self.wanted) // 2, now)
        else:
            self._take_back(now)

    @property
    def _grown(self) -> int:
        return self.wanted - self._base

    def _is_sure(self) -> bool:
        """Two readings in a row, each of which would do alone; small steps take their time."""
        last = list(self._windows)[-_GOING_ON:]
        return (
            not self._again
            and len(last) == _GOING_ON
            and all(self._share(level) >= SURE_SHARE for level in last)
        )

    def _share(self, after: _Level) -> float:
        """The gain, as a part of the one that the new subflows would bring if each had a rate of
        its own and that were as high as the others'. Both the path and the session must gain:
        what this path takes from another is nothing won."""
        expected = max(self._before.rate * self._grown / self._base, 1.0)
        gain = min(after.rate - self._before.rate, after.goodput - self._before.goodput)
        return gain / expected

    def _keep(self, now: float) -> None:
        self._hold = FIRST_HOLD
        self._again = False
        if self._halved or self.wanted in (self.limits.most, self.settled):
            self._settle(now)
        else:
            self._phase = _Phase.WATCHING
            self._going_on = True

    def _take_back(self, now: float) -> None:
        self.wanted = self._base
        self._settle(now)

    def _end(self, now: float) -> None:
        """Nothing waits any more. Either this number satisfies the streams, or they have ended
        before anything could be said."""
        if median(self._lull) >= _AS_BEFORE * self._before.goodput:
            self._keep(now)
            return
        self.wanted = self._base
        self._phase = _Phase.WATCHING
        self._going_on = False
        self._windows.clear()

    def _settle(self, now: float) -> None:
        self.settled = self.wanted
        self._phase = _Phase.HOLDING
        self._going_on = False
        self._held_at = now
        self._hold_until = now + self._hold
        self._hold = min(2 * self._hold, LONGEST_HOLD)
        self._reference = None
        self._windows.clear()
