"""Gives each path of a pool the number of subflows that is worth it, as PoolSize finds it out."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fastmtcp.client.pool.path import PoolPath
from fastmtcp.client.pool.size import Reading
from fastmtcp.engine.scheduling.demand import PERIOD
from fastmtcp.engine.session import Session
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.subflows.subflow import Subflow

log = logging.getLogger("fastmtcp.paths")

_DEFAULT_RTT = 0.1


class PoolGrowth:
    """Reads the counters of a session, every TICK seconds while any of its paths is automatic.

    It sets no timer and dials nothing: the pool asks it, and does what it says.
    """

    def __init__(self) -> None:
        self._read_at = 0.0
        self._payload = 0
        self._carried: dict[Subflow, int] = {}
        self._said: dict[str, int] = {}

    def begin(self, now: float, session: Session) -> None:
        """Count from here."""
        self._read_at = now
        self._payload = _payload(session)

    def update(
        self, now: float, session: Session, paths: Sequence[PoolPath]
    ) -> list[tuple[PoolPath, int]]:
        """Take a reading. Returns the paths that should have another number of subflows than
        before, and that number."""
        readings = self._read(now, session, paths)
        changes = []
        busy = any(path.size.is_probing for path in paths)
        # The one that has waited longest for its turn goes first.
        for path in sorted(paths, key=lambda path: path.size.probed_at):
            size = path.size
            before = size.wanted
            wanted = size.update(now, readings[path], may_probe=not busy)
            busy = busy or size.is_probing
            if wanted != before:
                log.debug("path %s: %d connections, %d before", path.spec.label, wanted, before)
                changes.append((path, wanted))
                for other in paths:
                    if other is not path:
                        other.size.disturbed()
            self._tell(path)
        return changes

    def _tell(self, path: PoolPath) -> None:
        size = path.size
        label = path.spec.label
        if (
            size.settled is not None
            and not size.is_probing
            and self._said.get(label) != size.settled
        ):
            self._said[label] = size.settled
            log.info("path %s: %d connections are enough", label, size.settled)

    def _read(
        self, now: float, session: Session, paths: Sequence[PoolPath]
    ) -> dict[PoolPath, Reading]:
        seconds = max(now - self._read_at, 1e-3)
        self._read_at = now
        before, self._payload = self._payload, _payload(session)
        goodput = (self._payload - before) / seconds
        carried = {
            # Not what was sent: a relay's buffers take that in bursts.
            subflow: subflow.through + subflow.bytes_received
            for subflow in session.subflows.values()
        }
        rates = {
            subflow: (count - self._carried.get(subflow, 0)) / seconds
            for subflow, count in carried.items()
        }
        self._carried = carried
        waiting = _waiting(now, session)
        primary = any(path.up for path in paths if not path.role & Role.BACKUP)
        readings = {}
        for path in paths:
            live = path.live()
            is_used = not (path.role & Role.BACKUP and primary)
            readings[path] = Reading(
                up=len(live),
                hungry=is_used and bool(path.role & waiting),
                goodput=goodput,
                rate=sum(rates.get(one.subflow, 0.0) for one in live),
                rtt=(live[0].srtt() if live else None) or _DEFAULT_RTT,
            )
        return readings


def _waiting(now: float, session: Session) -> Role:
    """The directions in which data waits for subflows."""
    waiting = Role(0)
    if now - session.demand.at < 1.5 * PERIOD:
        waiting |= Role.UP
    # What the server says comes behind what it has sent before.
    if now - session.peer.demand_at < 2 * PERIOD:
        waiting |= Role.DOWN
    return waiting


def _payload(session: Session) -> int:
    """Bytes of applications that have arrived, at either side."""
    return session.table.acked + session.table.payload_received
