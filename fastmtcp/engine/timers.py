"""What a session does by itself as time goes by: delayed ACKs, probes, PINGs, idle limits, and
saying again what may have died with a subflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmtcp.engine.limits import REPEAT_SPACING
from fastmtcp.engine.outbox import Outbox
from fastmtcp.engine.scheduling import liveness
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.errors import ResetCode, SessionCode
from fastmtcp.engine.wire.frames import Ping

if TYPE_CHECKING:
    from fastmtcp.engine.session import Session

TICK = 1.0
"""Seconds between two looks at everything."""


class Upkeep:
    """The timers of one session."""

    __slots__ = (
        "_outbox",
        "_repeat_after",
        "_session",
        "_tick_at",
        "_used_at",
        "empty_since",
        "repeat_wanted",
    )

    def __init__(self, session: Session, outbox: Outbox, now: float) -> None:
        self._session = session
        self._outbox = outbox
        self._tick_at = now + TICK
        self._repeat_after = now
        self._used_at = now
        self.empty_since: float | None = now
        """Since when there has been no subflow."""
        self.repeat_wanted = False
        """True if control frames may have died with a subflow."""

    @property
    def deadline(self) -> float:
        """When on_time() must be called at the latest."""
        when = self._tick_at
        if self._outbox.acks_at is not None:
            when = min(when, self._outbox.acks_at)
        return min(when, self._repeat_after) if self.repeat_wanted else when

    def on_time(self, now: float) -> list[Subflow]:
        """Do what is due. Returns the subflows that are dead."""
        session = self._session
        self._outbox.on_time(now)
        if now < self._tick_at or session.ended is not None:
            return []
        self._tick_at = now + TICK
        for stream in session.streams.values():
            if liveness.is_stuck(stream, session.limits):
                self._outbox.add(liveness.probe(stream))
        self._outbox.repeat_resets()
        self._look_for_idle(now)
        session.memory.wake()
        if self.empty_since is not None:
            if now - self.empty_since >= session.limits.session_timeout:
                session.end(SessionCode.TIMEOUT, "no subflow for too long")
            return []
        dead = []
        for subflow in session.subflows.values():
            if liveness.is_unanswered(subflow, session.limits, now):
                dead.append(subflow)
            elif liveness.wants_ping(subflow, session.limits, now):
                session.say(subflow, Ping(int(now)))
        return dead

    def may_repeat(self, now: float) -> bool:
        """True if everything should be said again now: call repeat()."""
        return self.repeat_wanted and now >= self._repeat_after

    def repeat(self, now: float) -> None:
        """Say all control frames again. They are idempotent."""
        session = self._session
        self.repeat_wanted = False
        self._repeat_after = now + len(session.streams) * REPEAT_SPACING
        if session.ended is not None:
            return
        for stream in session.streams.values():
            if stream.open_received:
                self._outbox.ack(stream, now, urgent=True)
            if not stream.send.lost and liveness.needs_news(stream):
                self._outbox.add(liveness.probe(stream))
        session.owe_reports()
        self._outbox.repeat_resets()
        if session.draining:
            session.drain()

    def _look_for_idle(self, now: float) -> None:
        """End what has had nothing to do for too long, if there is a limit to that."""
        session = self._session
        timeout = session.limits.stream_idle_timeout
        if timeout:
            for stream in list(session.streams.values()):
                if liveness.is_idle(stream, timeout, now):
                    session.touch(stream)
                    session.reset_stream(stream, ResetCode.IDLE)
        timeout = session.limits.session_idle_timeout
        if session.streams or not timeout:
            self._used_at = now
        elif now - self._used_at >= timeout:
            session.end(SessionCode.NORMAL, f"no stream for {timeout:g} s")
