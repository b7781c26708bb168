"""What is due in a session as time goes by: delayed ACKs, probes, PINGs, idle limits, and sending
again what may have died with a subflow.

It queues frames that only ask or repeat. What changes the session it hands to the session (Due).
"""

from __future__ import annotations

import msgspec

from fastmtcp.engine.limits import LEFT_TIMEOUT, REPEAT_SPACING, Limits
from fastmtcp.engine.outbox import Outbox
from fastmtcp.engine.resets import Resets
from fastmtcp.engine.scheduling import liveness
from fastmtcp.engine.streams import recall
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.streams.table import StreamTable
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.errors import SessionCode
from fastmtcp.engine.wire.frames import Gone, Ping

FIN_PAUSE = 0.1
"""Seconds in which the kernel closes all connections of a process that has died."""

TICK = 1.0
"""Seconds between two looks at everything."""


class Due(msgspec.Struct):
    """What the session has to do now."""

    dead: list[Subflow] = []
    """Subflows that do not answer."""
    idle: list[Stream] = []
    """Streams on which nothing has moved for too long: to be reset."""
    end: tuple[SessionCode, str] | None = None
    """Why the session is to be ended."""


class Timers:
    """The timers of one session."""

    __slots__ = (
        "_cut_at",
        "_finished",
        "_limits",
        "_outbox",
        "_patience",
        "_repeat_after",
        "_resets",
        "_subflows",
        "_table",
        "_tick_at",
        "_used_at",
        "empty_since",
        "repeat_wanted",
    )

    def __init__(
        self,
        table: StreamTable,
        subflows: dict[int, Subflow],
        outbox: Outbox,
        resets: Resets,
        limits: Limits,
        now: float,
    ) -> None:
        self._table = table
        self._subflows = subflows
        self._outbox = outbox
        self._resets = resets
        self._limits = limits
        self._tick_at = now + TICK
        self._repeat_after = now
        self._used_at = now
        self._cut_at = float("-inf")
        self._finished: list[int] = []
        self._patience = limits.session_timeout
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

    def on_time(self, now: float) -> Due | None:
        """What is due, if it is time to look at everything."""
        self._outbox.on_time(now)
        if now < self._tick_at:
            return None
        self._tick_at = now + TICK
        for stream in self._table.streams.values():
            if liveness.is_stuck(stream, self._limits):
                self._outbox.send(liveness.probe(stream))
        for frame in recall.unused_credit(self._table):
            self._outbox.send(frame)
        self._resets.on_time(self._subflows.values())
        self._outbox.repeat_resets()
        idle = self._idle_streams(now)
        end = self._end_of_session(len(self._table.streams) - len(idle), now)
        self._table.memory.wake()
        dead = []
        for subflow in self._subflows.values():
            if liveness.is_unanswered(subflow, self._limits, now):
                dead.append(subflow)
            elif liveness.wants_ping(subflow, self._limits, now):
                self._outbox.send_on(subflow, Ping(int(now)))
        return Due(dead, idle, end)

    def on_detached(self, now: float, *, by_fin: bool, is_last: bool) -> None:
        """A subflow is gone, perhaps the last one."""
        if not by_fin:
            self._cut_at = now
        if is_last:
            self.empty_since = now
            # A client's process that lives closes a connection with a word, or an RST. Only its
            # kernel ends all with FINs. What was cut shortly before speaks for a bad network.
            has_left = not self._table.opener and now - self._cut_at >= LEFT_TIMEOUT
            self._patience = LEFT_TIMEOUT if has_left else self._limits.session_timeout

    def repeat_later(self, subflow: Subflow, now: float) -> None:
        """`subflow` has ended with a FIN. If the client's process is about to die, whatever is sent
        on the others would turn their FINs into resets."""
        self._finished.append(subflow.subflow_id)
        self._repeat_after = max(self._repeat_after, now + FIN_PAUSE)

    def may_repeat(self, now: float) -> bool:
        """True if everything should be sent again now: call repeat()."""
        return self.repeat_wanted and now >= self._repeat_after

    def repeat(self, now: float) -> None:
        """Send all control frames again. They are idempotent."""
        self.repeat_wanted = False
        streams = self._table.streams
        self._repeat_after = now + len(streams) * REPEAT_SPACING
        for stream in streams.values():
            # What nobody has heard of needs no ACK, and may lose its id.
            if stream.open_received and stream.open_sent:
                self._outbox.ack(stream, now, urgent=True)
            if not stream.send.lost and liveness.needs_news(stream):
                self._outbox.send(liveness.probe(stream))
        for subflow_id in self._finished:
            self._outbox.hint(Gone(subflow_id))
        self._finished.clear()
        self._resets.repeat()
        self._outbox.repeat(self._subflows.values())

    def _idle_streams(self, now: float) -> list[Stream]:
        limits = self._limits
        if not (limits.stream_idle_timeout or limits.half_closed_timeout):
            return []
        streams = self._table.streams.values()
        return [stream for stream in streams if liveness.is_idle(stream, limits, now)]

    def _end_of_session(self, streams: int, now: float) -> tuple[SessionCode, str] | None:
        """Why to end a session with so many streams, if it has had nothing to do, or no subflow,
        for too long."""
        timeout = self._limits.session_idle_timeout
        if streams or not timeout:
            self._used_at = now
        elif now - self._used_at >= timeout:
            return SessionCode.NORMAL, f"no stream for {timeout:g} s"
        since = self.empty_since
        patience = min(self._patience, self._limits.session_timeout)
        if since is not None and now - since >= patience:
            return SessionCode.TIMEOUT, "no subflow for too long"
        return None
