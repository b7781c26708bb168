"""Gives each path of a pool the number of subflows that is worth it, as PoolSize finds it out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fastmtcp.client.pool.size import TICK, Reading
from fastmtcp.engine.scheduling.demand import PERIOD
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.io.loop import Timer

if TYPE_CHECKING:
    from fastmtcp.client.pool.path import PoolPath
    from fastmtcp.client.pool.pool import Pool

log = logging.getLogger("fastmtcp.paths")

_DEFAULT_RTT = 0.1


class PoolGrowth:
    """Reads the counters of a session every TICK seconds while any of its paths is automatic."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._timer: Timer | None = None
        self._read_at = 0.0
        self._payload = 0
        self._carried: dict[Subflow, int] = {}
        self._said: dict[str, int] = {}

    def start(self) -> None:
        """Begin, if there is a path whose number is not fixed and this has not begun yet."""
        if self._timer is None and self._is_needed:
            self._read_at = self._pool.loop.now
            self._payload = _payload(self._pool)
            self._timer = self._pool.loop.call_later(TICK, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _is_needed(self) -> bool:
        return any(not path.size.limits.is_fixed for path in self._pool.paths)

    def _tick(self) -> None:
        self._timer = None
        if not self._is_needed:
            return
        pool = self._pool
        now = pool.loop.now
        readings = self._read(now)
        busy = any(path.size.is_probing for path in pool.paths)
        # Who has waited longest for its turn goes first.
        for path in sorted(pool.paths, key=lambda path: path.size.probed_at):
            size = path.size
            before = size.wanted
            wanted = size.update(now, readings[path], may_probe=not busy)
            busy = busy or size.is_probing
            if wanted != before:
                log.debug("path %s: %d connections, %d before", path.spec.label, wanted, before)
                pool.set_target(path, wanted)
                for other in pool.paths:
                    if other is not path:
                        other.size.disturbed()
            self._say(path)
        self._timer = pool.loop.call_later(TICK, self._tick)

    def _say(self, path: PoolPath) -> None:
        size = path.size
        label = path.spec.label
        if (
            size.settled is not None
            and not size.is_probing
            and self._said.get(label) != size.settled
        ):
            self._said[label] = size.settled
            log.info("path %s: %d connections are enough", label, size.settled)

    def _read(self, now: float) -> dict[PoolPath, Reading]:
        pool = self._pool
        seconds = max(now - self._read_at, 1e-3)
        self._read_at = now
        before, self._payload = self._payload, _payload(pool)
        goodput = (self._payload - before) / seconds
        carried = {
            # Not what was sent: a relay's buffers take that in bursts.
            subflow: subflow.through + subflow.bytes_received
            for subflow in pool.session.subflows.values()
        }
        rates = {
            subflow: (count - self._carried.get(subflow, 0)) / seconds
            for subflow, count in carried.items()
        }
        self._carried = carried
        waiting = self._waiting(now)
        primary = any(path.up for path in pool.paths if not path.role & Role.BACKUP)
        readings = {}
        for path in pool.paths:
            live = [slot.subflow for slot in path.slots if slot.subflow is not None]
            is_used = not (path.role & Role.BACKUP and primary)
            readings[path] = Reading(
                up=len(live),
                hungry=is_used and bool(path.role & waiting),
                goodput=goodput,
                rate=sum(rates.get(one.subflow, 0.0) for one in live),
                rtt=(live[0].srtt() if live else None) or _DEFAULT_RTT,
            )
        return readings

    def _waiting(self, now: float) -> Role:
        """The directions in which data waits for subflows."""
        session = self._pool.session
        waiting = Role(0)
        if now - session.demand.at < 1.5 * PERIOD:
            waiting |= Role.UP
        # What the server says comes behind what it has sent before.
        if now - session.peer_demand_at < 2 * PERIOD:
            waiting |= Role.DOWN
        return waiting


def _payload(pool: Pool) -> int:
    """Bytes of applications that have arrived, at either side."""
    session = pool.session
    received = sum(stream.receive.data.next for stream in session.streams.values())
    return session.acked + session.past_payload_received + received
