"""A client's share of one turn of the loop, and who goes on in the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fastmtcp.engine.limits import READ_WORK, TURN_CHUNKS, TURN_WORK
from fastmtcp.io.loop import Loop


class Reader(Protocol):
    """Whoever reads for a session."""

    def read_on(self) -> None:
        """Go on where reading has stopped."""


class Turn:
    """Counts the work that the sessions of a client do together in a turn of the loop: whatever the
    client sends or asks for, and in however many sessions, others have their turns.

    Those that have to wait go on in the order in which they came.
    """

    __slots__ = ("_at", "_loop", "_readers", "_senders", "_waits", "chunks", "rests", "work")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._at = 0.0
        self._readers: dict[Reader, None] = {}
        self._senders: dict[Callable[[], None], None] = {}
        self._waits = False
        self.work = TURN_WORK
        """What is left of the share for what comes in."""
        self.chunks = TURN_CHUNKS
        """What is left of the share for what goes out."""
        self.rests = 0
        """How many sockets have read what could not be handled yet: they read little at a time."""

    def begin(self) -> None:
        """Have a new share if this is another turn than the last time."""
        if self._at != self._loop.now:
            self._at = self._loop.now
            self.work = TURN_WORK
            self.chunks = TURN_CHUNKS

    @property
    def may_read(self) -> bool:
        """False if the client has had its share of this turn of the loop: others are next."""
        self.begin()
        return self.work > 0

    def spend(self, left: int) -> None:
        """A read is over, and `left` is what its frames have left of the share."""
        self.work = left - READ_WORK

    def read_later(self, reader: Reader) -> None:
        """Let `reader` read on in the next turn of the loop, behind those that wait already."""
        self._wait()
        self._readers[reader] = None

    def send_later(self, send: Callable[[], None]) -> None:
        """Call `send` in the next turn of the loop, behind those that wait already."""
        self._wait()
        self._senders[send] = None

    def _wait(self) -> None:
        if not self._waits:
            self._waits = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        readers, senders = self._readers, self._senders
        for _ in range(len(readers)):
            if not self.may_read:
                break
            reader = next(iter(readers))
            del readers[reader]
            reader.read_on()
        for _ in range(len(senders)):
            self.begin()
            if self.chunks <= 0:
                break
            send = next(iter(senders))
            del senders[send]
            send()
        self._waits = bool(readers or senders)
        if self._waits:
            self._loop.call_soon(self._go_on)
