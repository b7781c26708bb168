"""Ever longer pauses between attempts that fail."""

from __future__ import annotations


class Backoff:
    """The pause before the next attempt: `first` seconds, then twice as many after each failure,
    never more than `longest`. With `at_once` there is none after the first failure.

    The pause itself is kept and not computed from the number of failures: doubled a thousand times
    it would be no float any more.
    """

    def __init__(self, first: float, longest: float, *, at_once: bool = False) -> None:
        self.failures = 0
        """So many attempts have failed in a row."""
        self._first = first
        self._longest = longest
        self._shortest = 0.0 if at_once else first
        self._pause = self._shortest

    def next(self) -> float:
        """An attempt has failed: the seconds to wait before the next one."""
        self.failures += 1
        pause = self._pause
        self._pause = min(max(2 * pause, self._first), self._longest)
        return pause

    def reset(self) -> None:
        """An attempt was good, or all is new: begin again with the shortest pause."""
        self.failures = 0
        self._pause = self._shortest
