"""Sees to it that all paths together create exactly one session."""

from __future__ import annotations

from typing import Protocol

from fastmtcp.io.loop import Loop, Timer
from fastmtcp.security.handshake import Membership

TURN = 1.0
"""Seconds that a connection has to create the session before the next one tries as well."""


class Candidate(Protocol):
    """A connection that is up and has not said yet whether it creates the session or joins it."""

    def authenticate(self, *, creates: bool) -> None:
        """Run the handshake now."""


class Creation:
    """Connections that are up before there is a session come here.

    A handshake says in its first message whether it creates a session or joins one, so the others
    wait while one creates. If that one gives no answer for a while, the next tries too: the one
    that is answered first goes on, the rest is dropped and dials anew, to join.
    """

    def __init__(self, loop: Loop) -> None:
        self.membership: Membership | None = None
        """The session, once it exists."""
        self._loop = loop
        self._trying: set[Candidate] = set()
        self._answered: Candidate | None = None
        self._waiting: list[Candidate] = []
        self._timer: Timer | None = None

    def enter(self, candidate: Candidate) -> None:
        """`candidate` is connected: it is told to authenticate, now or when its time comes."""
        if self.membership is not None:
            candidate.authenticate(creates=False)
        elif self._trying:
            self._waiting.append(candidate)
            self._set_timer()
        else:
            self._create(candidate)

    def leave(self, candidate: Candidate) -> None:
        """`candidate` is over without success, whether it has come here or not."""
        if candidate in self._waiting:
            self._waiting.remove(candidate)
        self._trying.discard(candidate)
        if self._answered is candidate:
            self._answered = None
        if not self._trying and self.membership is None:
            self._next()

    def may_create(self, candidate: Candidate) -> bool:
        """The server has answered `candidate`: true if it was the first."""
        if self.membership is not None or self._answered not in (None, candidate):
            return False
        self._answered = candidate
        return True

    def passed(self, candidate: Candidate, membership: Membership | None) -> None:
        """The handshake of `candidate` has succeeded; it is in that session now."""
        self._trying.discard(candidate)
        if self.membership is not None:
            return
        self.membership = membership
        if self._timer is not None:
            self._timer.cancel()
        waiting, self._waiting = self._waiting, []
        for other in waiting:
            other.authenticate(creates=False)

    def _create(self, candidate: Candidate) -> None:
        self._trying.add(candidate)
        candidate.authenticate(creates=True)
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
