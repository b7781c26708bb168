"""Finds out whether more subflows might make this side's streams faster.

They might if bulk data waits for a subflow, since all that may carry it are full, most of the time.
If the application sends slowly, the receiver reads slowly or the flow-control window is too small,
then that is what limits a stream: no data waits for a subflow most of the time, however many or few
subflows there are.
"""

from __future__ import annotations

PERIOD = 0.25
"""Seconds. Credit and data come in bursts, which are short against this."""

_MOST = 0.6
"""The share of the samples in a period in which data must wait."""

_FEWEST = 3
"""Samples that a period must have."""


class Demand:
    """Counts in how many samples data was waiting. Samples are taken every SAMPLE_EVERY seconds
    (fastmtcp.engine.scheduling.watch) while anything is on its way, and not at other times."""

    __slots__ = ("_samples", "_since", "_waiting", "at")

    def __init__(self) -> None:
        self.at = float("-inf")
        """When a period in which data waited most of the time has last ended."""
        self._since = float("-inf")
        self._samples = 0
        self._waiting = 0

    def sample(self, waits: bool, now: float) -> bool:
        """Take one sample: whether data waits for a subflow now. True if a period ends with it in
        which data waited most of the time."""
        self._samples += 1
        self._waiting += waits
        period = now - self._since
        if period < PERIOD:
            return False
        # While nothing was on its way there were no samples. A period that began before that is
        # too long or has too few samples, and says nothing.
        known = period < 2 * PERIOD and self._samples >= _FEWEST
        found = known and self._waiting >= _MOST * self._samples
        self._since = now
        self._samples = self._waiting = 0
        if found:
            self.at = now
        return found
