"""A session's share of one turn of the loop, and who goes on in the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fastmtcp.engine.limits import READ_WORK, TURN_WORK
from fastmtcp.io.loop import Loop


class Reader(Protocol):
    """Whoever reads for the session."""

    def read_on(self) -> None:
        """Go on where reading has stopped."""


class Turn:
    """Counts the work that a session does in a turn of the loop: whatever its peer sends, the other
    sessions of the worker have their turns.

    `progress()` is called when those that had to wait have read.
    """

    __slots__ = ("_at", "_loop", "_progress", "_waiting", "work")

    def __init__(self, loop: Loop, progress: Callable[[], None]) -> None:
        self._loop = loop
        self._progress = progress
        self._at = 0.0
        self._waiting: dict[Reader, None] = {}
        self.work = TURN_WORK
        """What is left of the share."""

    @property
    def may_read(self) -> bool:
        """False if the session has had its share of this turn of the loop: others are next."""
        if self._at != self._loop.now:
            self._at = self._loop.now
            self.work = TURN_WORK
        return self.work > 0

    def spend(self, left: int) -> None:
        """A read is over, and `left` is what its frames have left of the share."""
        self.work = left - READ_WORK

    def read_later(self, reader: Reader) -> None:
        """Let `reader` read on in the next turn of the loop, behind those that wait already."""
        if reader not in self._waiting:
            if not self._waiting:
                self._loop.call_soon(self._read_on)
            self._waiting[reader] = None

    def _read_on(self) -> None:
        waiting = self._waiting
        for _ in range(len(waiting)):
            if not self.may_read:
                break
            reader = next(iter(waiting))
            del waiting[reader]
            reader.read_on()
        if waiting:
            self._loop.call_soon(self._read_on)
        self._progress()
