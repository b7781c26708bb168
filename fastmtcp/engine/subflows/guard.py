"""Whether a subflow brings more than it costs the others.

The rates do not tell everything: a subflow that loses packets, or whose line changes, holds up what
the others bring (fastmtcp.engine.scheduling.head_of_line says how). One that has cost them more
than it brought is set aside for a while, and then tried again.
"""

from __future__ import annotations

from fastmtcp.engine.limits import KIB

PERIOD = 2.0
"""Seconds over which the guard compares."""

_BLOCKED = 0.2
_ASIDE = 4.0
_ASIDE_MOST = 64.0


class Guard:
    """Compares what one subflow brings with what it costs the others."""

    __slots__ = ("_aside_for", "_blocked", "_delivered", "_since", "aside", "until")

    def __init__(self, now: float) -> None:
        self.aside = False
        """True while the subflow carries no bulk data."""
        self.until = 0.0
        self._aside_for = _ASIDE
        self._since = now
        self._blocked = 0.0
        self._delivered = 0

    def blame(self, seconds: float) -> None:
        """A stream stood still for so long because a range on this subflow was missing, while
        others could have carried more."""
        self._blocked += seconds

    def judge(self, delivered: int, others: float, now: float) -> bool:
        """Look at what it has `delivered` so far, bytes, while the `others` together carry so many
        bytes a second. True if the subflow is set aside now, or no longer."""
        if self.aside:
            if now < self.until:
                return False
            self.aside = False
            self._start(delivered, now)
            return True
        if now - self._since < PERIOD:
            return False
        blocked = self._blocked
        cost = blocked * others
        brought = delivered - self._delivered
        share = blocked / (now - self._since)
        self._start(delivered, now)
        if share < _BLOCKED or cost < 2 * brought or not others:
            if not blocked and brought > 64 * KIB:
                self._aside_for = max(_ASIDE, self._aside_for / 2)
            return False
        self.aside = True
        self.until = now + self._aside_for
        self._aside_for = min(2 * self._aside_for, _ASIDE_MOST)
        return True

    def _start(self, delivered: int, now: float) -> None:
        self._since = now
        self._blocked = 0.0
        self._delivered = delivered
