"""Sees to it that all paths together create exactly one session."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmtcp.io.loop import Loop, Timer
from fastmtcp.security.handshake import ClientHandshake, Membership

if TYPE_CHECKING:
    from fastmtcp.client.pool.slot import Slot

TURN = 1.0
"""Seconds that a connection has to create the session before the next one tries as well."""


class Gate:
    """Connections that are up before there is a session come here.

    A handshake says in its first message whether it creates a session or joins one, so the others
    wait while one creates. If that one gives no answer for a while, the next tries too: who is
    answered first goes on, the rest is dropped and dials anew, to join.
    """

    def __init__(self, loop: Loop) -> None:
        self.membership: Membership | None = None
        """The session, once it exists."""
        self._loop = loop
        self._trying: set[Slot] = set()
        self._answered: Slot | None = None
        self._waiting: list[Slot] = []
        self._timer: Timer | None = None

    def enter(self, slot: Slot) -> None:
        """`slot` is connected: it is told to authenticate, now or when its time comes."""
        if self.membership is not None:
            slot.authenticate(creates=False)
        elif self._trying:
            self._waiting.append(slot)
            self._set_timer()
        else:
            self._create(slot)

    def leave(self, slot: Slot) -> None:
        """The attempt of `slot` is over without success."""
        if slot in self._waiting:
            self._waiting.remove(slot)
        self._trying.discard(slot)
        if self._answered is slot:
            self._answered = None
        if not self._trying and self.membership is None:
            self._next()

    def may_create(self, slot: Slot) -> bool:
        """The server has answered `slot`: true if it was the first."""
        if self.membership is not None or self._answered not in (None, slot):
            return False
        self._answered = slot
        return True

    def passed(self, slot: Slot, handshake: ClientHandshake) -> None:
        """The handshake of `slot` has succeeded."""
        self._trying.discard(slot)
        if self.membership is not None:
            return
        self.membership = handshake.membership
        if self._timer is not None:
            self._timer.cancel()
        waiting, self._waiting = self._waiting, []
        for other in waiting:
            other.authenticate(creates=False)

    def _create(self, slot: Slot) -> None:
        self._trying.add(slot)
        slot.authenticate(creates=True)
        if self._waiting:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is None or self._timer.callback is None:
            self._timer = self._loop.call_at(self._loop.now + TURN, self._next)

    def _next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and self.membership is None:
            self._create(self._waiting.pop(0))
