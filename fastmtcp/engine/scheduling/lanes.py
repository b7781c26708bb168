"""Which subflows may carry what, and which of them should send now.

Control frames may go on any subflow. Data goes on those that this side may send on, backups only
while no other works. Bulk data keeps off the express subflow, so that small streams and control
frames never wait behind it.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastmtcp.engine.scheduling.head_of_line import Gate
from fastmtcp.engine.streams.stream import NO_SUBFLOW, Stream
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.subflows.subflow import State, Subflow

CONTROL, SWIFT, BULK = range(3)

_STAYING = (State.ACTIVE, State.SUSPECT)

_PATIENCE = 0.1
"""Seconds that a small stream may wait for a subflow that is busy, if it gains more by that."""


class Lanes:
    """The subflows of a session, sorted by use. refresh() after every change of their states.

    `subflow.lane` says what a subflow may carry: CONTROL frames only, SWIFT streams too, or BULK.
    """

    __slots__ = ("_any", "_swift", "bulk", "gate", "has_choice", "held_back", "probing")

    def __init__(self) -> None:
        self._any: list[Subflow] = []
        self._swift: list[Subflow] = []
        self.bulk: list[Subflow] = []
        """Subflows that carry bulk data."""
        self.has_choice = False
        """True if they are more than one."""
        self.gate = Gate()
        self.held_back: Subflow | None = None
        """The ready subflow that pick_bulk() has passed over, as it is too slow."""
        self.probing: Subflow | None = None
        """The one that pick_bulk() has chosen only to find out its rate: the chunk goes out on
        another as well."""

    def refresh(self, subflows: Iterable[Subflow]) -> None:
        """Sort the subflows anew. Where all are suspect, none is: there is nothing better."""
        everyone = list(subflows)
        for subflow in everyone:
            subflow.lane = CONTROL
        staying = [subflow for subflow in everyone if subflow.state in _STAYING]
        self._any = [subflow for subflow in staying if not subflow.suspect] or staying
        senders = [subflow for subflow in self._any if subflow.sends]
        senders = senders or [subflow for subflow in staying if subflow.sends]
        primary = [subflow for subflow in senders if not subflow.role & Role.BACKUP] or senders
        self._swift = primary
        wide = [subflow for subflow in primary if not subflow.role & Role.EXPRESS]
        if not wide:
            # Rather a backup for bulk than the express subflow.
            wide = [subflow for subflow in senders if not subflow.role & Role.EXPRESS] or primary
        self.bulk = [subflow for subflow in wide if not subflow.guard.aside] or wide
        self.has_choice = len(self.bulk) > 1
        self.gate.update(self.bulk)
        for subflow in self._swift:
            subflow.lane = SWIFT
        for subflow in self.bulk:
            subflow.lane = BULK

    def pick_control(self, now: float) -> Subflow | None:
        """The ready subflow on which a control frame would arrive first."""
        return _earliest(self._any, now)

    def pick_other(self, holder: Subflow, now: float) -> Subflow | None:
        """The ready bulk subflow, other than `holder`, on which a chunk would arrive first."""
        return _earliest([subflow for subflow in self.bulk if subflow is not holder], now)

    def pick_swift(self, now: float) -> Subflow | None:
        """The ready subflow on which a small stream's bytes would arrive first; None if there is
        none, or if it is worth waiting for one that is much faster."""
        best = _earliest(self._swift, now)
        return None if best is None or self.is_too_slow(best, now) else best

    def is_too_slow(self, subflow: Subflow, now: float) -> bool:
        """True if a small stream had better wait for another subflow that is much faster. One that
        was refused for this takes no small stream along with other things either."""
        if len(self._swift) < 2:
            return False
        limit = subflow.speed.eta(now) - _PATIENCE
        if limit <= 0:
            return False
        return any(
            other.speed.eta(now) < limit and now - other.progress_at < _PATIENCE
            for other in self._swift
        )

    def pick_bulk(self, stream: Stream, streams: int, now: float) -> Subflow | None:
        """The ready subflow on which a chunk of `stream`, one of `streams` that send, would arrive
        first. None if there is none, or if it is so slow that waiting for another is better:
        `held_back` then says which it is. `probing` says whether its rate is to be found out."""
        self.held_back = None
        self.probing = None
        if len(self.bulk) == 1:
            only = self.bulk[0]
            return only if only.ready else None
        avoid = stream.avoid if stream.send.lost else NO_SUBFLOW
        ready = [subflow for subflow in self.bulk if subflow.ready and subflow.subflow_id != avoid]
        if len(ready) > 1:
            ready.sort(key=lambda subflow: subflow.speed.eta(now))
        for subflow in ready:
            if self.gate.is_open(subflow, stream, streams, now):
                return subflow
        if avoid != NO_SUBFLOW and ready and not self._may_wait(stream, streams, now):
            return ready[0]
        for subflow in ready:
            if subflow.speed.may_probe(now):
                self.probing = subflow
                return subflow
        if ready:
            self.held_back = ready[0]
        return None

    def _may_wait(self, stream: Stream, streams: int, now: float) -> bool:
        """True if a subflow that is not ready will take the lost range, which keeps off one of
        them. Where the gate refuses all others it must open, as nothing else of the session goes
        out before a lost range."""
        avoid = stream.avoid
        return any(
            subflow.subflow_id != avoid and self.gate.is_open(subflow, stream, streams, now)
            for subflow in self.bulk
        )


def _earliest(subflows: list[Subflow], now: float) -> Subflow | None:
    best = None
    earliest = 0.0
    for subflow in subflows:
        if subflow.ready:
            eta = subflow.speed.eta(now)
            if best is None or eta < earliest:
                best = subflow
                earliest = eta
    return best
