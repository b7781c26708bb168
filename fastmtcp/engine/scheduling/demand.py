"""Whether more subflows might help: bulk data waits, and every subflow that may carry it is full.

A sender that is held back by its application, by a slow reader or by the window has nothing that
waits for a subflow most of the time, whatever the subflows do.
"""

from __future__ import annotations

PERIOD = 0.25
"""Seconds over which it is judged: long against the bursts in which credit and data come."""

_MOST = 0.6
_FEWEST = 3


class Demand:
    """Looks of one side at its queue, every SAMPLE_EVERY seconds while anything is on its way."""

    __slots__ = ("_looks", "_since", "_waiting", "at")

    def __init__(self) -> None:
        self.at = float("-inf")
        """When a period last ended in which data waited most of the time."""
        self._since = float("-inf")
        self._looks = 0
        self._waiting = 0

    def look(self, waits: bool, now: float) -> bool:
        """Data waits for a subflow now, or does not. True at the end of a period in which it
        waited most of the time."""
        self._looks += 1
        self._waiting += waits
        period = now - self._since
        if period < PERIOD:
            return False
        # Nobody looks while nothing is on its way: then a period is long, or has few looks.
        found = (
            period < 2 * PERIOD and self._looks >= _FEWEST and self._waiting >= _MOST * self._looks
        )
        self._since = now
        self._looks = self._waiting = 0
        if found:
            self.at = now
        return found
