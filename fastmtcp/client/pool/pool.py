"""The pool of a session: each path is kept at its number of live, authenticated subflows."""

from __future__ import annotations

import logging
import random
import socket
from collections.abc import Callable, Sequence, Set

from fastmtcp.client.pool.gate import Gate
from fastmtcp.client.pool.growth import PoolGrowth
from fastmtcp.client.pool.path import PoolPath
from fastmtcp.client.pool.slot import URGENT_PATIENCE, Slot
from fastmtcp.config.client import ClientConfig
from fastmtcp.config.connections import MAX_CONNECTIONS, Connections, fit
from fastmtcp.config.credentials import Credentials
from fastmtcp.config.path import PathSpec
from fastmtcp.driver.session import SessionDriver
from fastmtcp.driver.subflow import SubflowSocket
from fastmtcp.engine.session import Session
from fastmtcp.engine.subflows.role import Role
from fastmtcp.errors import PeerError
from fastmtcp.io.loop import Loop, Timer
from fastmtcp.io.resolver import Resolver
from fastmtcp.security.handshake import ClientHandshake, Grant, RefuseCode, RefusedError
from fastmtcp.security.tls import Tls

log = logging.getLogger("fastmtcp.paths")

_STAGGER = 0.1
"""Seconds between the starts of two subflows: bbr probes the round-trip time every ten seconds
from the start of a connection, and connections that all probe at once leave the line empty."""

_ALL_STARTED = 1.0
"""Seconds in which all subflows of a large pool have been started."""

_NEXT_PATH = 0.25
"""Seconds before the next path is tried as well for a session's first subflow (RFC 8305)."""

_STALE = 0.3
_NUDGE_PAUSE = 1.0
_DRAIN_CHECK = 0.05
_DRAIN_TIMEOUT = 10.0


class Pool:
    """The paths of one session and their slots.

    `on_created(grant)` is called when the first subflow has made the session, `on_change()` when
    a subflow comes or goes or an attempt fails, `on_unknown()` if the server has forgotten the
    session.
    """

    def __init__(
        self,
        loop: Loop,
        resolver: Resolver,
        config: ClientConfig,
        credentials: Credentials,
        driver: SessionDriver,
        on_created: Callable[[Grant], None],
        on_change: Callable[[], None],
        on_unknown: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.resolver = resolver
        self.config = config
        self.credentials = credentials
        self.driver = driver
        self.session: Session = driver.session
        self.gate = Gate(loop)
        self.paths: list[PoolPath] = []
        self.down_since: float | None = loop.now
        """Since when no subflow has been up; None while one is."""
        self._on_created = on_created
        self._on_change = on_change
        self._on_unknown = on_unknown
        self._growth = PoolGrowth(self)
        self._express: Slot | None = None
        self._retiring: dict[SubflowSocket, float] = {}
        self._drain_timer: Timer | None = None
        self._next_subflow = 0
        self._next_turn = 0.0
        self._nudged_at = float("-inf")
        self._created = False
        self._stopped = False
        self._error: PeerError | None = None

    # --- from outside ---------------------------------------------------------------------------

    @property
    def up(self) -> int:
        """Subflows that are connected and authenticated, the express one not counted."""
        return sum(path.up for path in self.paths)

    @property
    def wanted(self) -> int:
        """Subflows that there should be, the express one not counted."""
        return sum(path.target for path in self.paths)

    @property
    def trouble(self) -> str:
        """Why the first path that is down is down; empty if none is."""
        for path in self.paths:
            if path.trouble:
                return f"cannot use server {path.spec.label}: {path.trouble}"
        return ""

    @property
    def failure(self) -> PeerError | None:
        """What the last attempt failed with; None unless every path has been tried and is down."""
        if self.paths and all(path.is_up is False for path in self.paths):
            return self._error
        return None

    def set_paths(self, specs: Sequence[PathSpec]) -> None:
        """Use these paths and no others: new ones are dialled, the subflows of those that are
        not among them any more are lost."""
        if self._stopped:
            return
        for path in [path for path in self.paths if path.spec not in specs]:
            log.info("path %s: gone", path.spec.label)
            self.paths.remove(path)
            self._abandon(path.slots, "its path is gone")
        known = {path.spec: path for path in self.paths}
        ranges = fit(
            [spec.connections or self.config.connections for spec in specs],
            self.config.most_subflows,
        )
        for spec, limits in zip(specs, ranges, strict=True):
            if spec in known:
                # Before the new ones, which may need the room.
                known[spec].size.limit(limits)
                self.set_target(known[spec], known[spec].size.wanted)
        added = []
        for spec, limits in zip(specs, ranges, strict=True):
            if spec not in known:
                room = self._room()
                if room < 1:
                    log.warning(
                        "path %s: not used: %d subflows are the limit",
                        spec.label,
                        self.config.most_subflows,
                    )
                    continue
                if limits.least > room:
                    limits = Connections(room, room)
                known[spec] = PoolPath(self, spec, limits)
                added.append(known[spec])
                self.paths.append(known[spec])
        # In the order of the configuration: the first usable path is the best one.
        self.paths = [known[spec] for spec in specs if spec in known]
        self._start(added)
        self._growth.start()
        self._on_change()

    def set_target(self, path: PoolPath, count: int) -> None:
        """Keep `count` subflows on `path`, 1 to MAX_CONNECTIONS, as far as the session has room.

        More are dialled one after the other. Of those that are too many the ones that are not up
        go first; the others get no more data, and are closed when all they carry has arrived.
        """
        count = max(1, min(count, MAX_CONNECTIONS, path.target + self._room()))
        if self._stopped or count == path.target:
            return
        superfluous = path.resize(count)
        for slot in superfluous:
            subflow = slot.release()
            if subflow is not None:
                self.session.retire(subflow.subflow)
                self._retiring[subflow] = self.loop.now + _DRAIN_TIMEOUT
        if self._retiring:
            self._check_drained()
        if self.gate.membership is not None:
            path.wake()
        self._on_change()

    def network_changed(self, lost: Set[str]) -> None:
        """The network of this machine has changed and does not have the addresses `lost` any
        more: what used those is dead, and whatever waits dials at once."""
        for slot in self._slots():
            if slot.subflow is not None and slot.local_address in lost:
                # TCP would not notice before its time-out.
                reason = f"this machine lost the address {slot.local_address}"
                self.driver.lost(slot.subflow, reason)
        for slot in self._slots():
            slot.hurry(_STALE)
        for path in self.paths:
            path.size.retry(self.loop.now)

    def nudge(self) -> None:
        """An application waits: if no subflow is up, see at once whether one can be."""
        if self.session.subflows or self.loop.now - self._nudged_at < _NUDGE_PAUSE:
            return
        self._nudged_at = self.loop.now
        for path in self.paths:
            path.slots[0].hurry(URGENT_PATIENCE)

    def stop(self) -> None:
        """Dial no more; the subflows that are up stay."""
        self._stopped = True
        for slot in self._slots():
            slot.stop()
        self._growth.stop()
        if self._drain_timer is not None:
            self._drain_timer.cancel()

    # --- for the slots --------------------------------------------------------------------------

    @property
    def is_urgent(self) -> bool:
        """Streams wait, and no subflow is left."""
        return not self.session.subflows and bool(self.session.streams)

    def turn(self) -> float:
        """When the next subflow should start."""
        spacing = min(_STAGGER, _ALL_STARTED / max(self.wanted, 1))
        self._next_turn = max(self.loop.now, self._next_turn + spacing * random.uniform(0.9, 1.1))
        return self._next_turn

    def allocate_subflow(self) -> int:
        self._next_subflow += 1
        return self._next_subflow - 1

    def best_path(self) -> PoolPath | None:
        """The path for the express subflow: the first that works, both ways and not as a backup
        only. None if there is none."""
        for path in self.paths:
            if path.up and path.role == Role.BOTH:
                return path
        return None

    def attach(
        self, slot: Slot, sock: socket.socket, tls: Tls | None, handshake: ClientHandshake
    ) -> SubflowSocket | None:
        return self.driver.attach(
            sock,
            handshake.subflow_id,
            slot.path.spec.label,
            slot.on_lost,
            handshake.early,
            handshake.role,
            tls,
        )

    def on_up(self, slot: Slot, handshake: ClientHandshake) -> None:
        """A subflow has joined the session."""
        self.down_since = None
        if not self._created:
            assert handshake.grant is not None
            self._created = True
            self._on_created(handshake.grant)
            slot.path.on_up()
            for path in self.paths:
                path.wake()
        elif not slot.is_express:
            slot.path.on_up()
        if self._express is not None:
            self._express.wake()
        self._on_change()

    def on_failed(self, slot: Slot, error: PeerError) -> None:
        """An attempt has failed."""
        text = str(error) or type(error).__name__
        if isinstance(error, RefusedError) and error.code is RefuseCode.UNKNOWN_SESSION:
            if not self.session.subflows and (slot.path.joined or self._is_long_down()):
                # The worker that owned it is gone, and with it what it held.
                self._on_unknown()
                return
            text = "it leads to another server process than the other paths"
        if slot.is_express:
            log.debug("express subflow over %s: %s", slot.path.spec.label, text)
            return
        self._error = error
        slot.path.on_down(text)
        self._on_change()

    def on_lost(self, slot: Slot, reason: str) -> None:
        """A subflow died."""
        if self._stopped:
            self._on_change()
            return
        left = len(self.session.subflows)
        log.info("subflow to %s lost: %s; %d left", slot.path.spec.label, reason, left)
        if not slot.is_express:
            slot.path.reconnects += 1
            slot.path.on_down(reason)
        if not left:
            self.down_since = self.loop.now
            for other in self._slots():
                if other is not slot:
                    other.hurry(_STALE)
        self._on_change()

    # --- internal -------------------------------------------------------------------------------

    def _slots(self) -> list[Slot]:
        slots = [slot for path in self.paths for slot in path.slots]
        return slots if self._express is None else [*slots, self._express]

    def _room(self) -> int:
        return self.config.most_subflows - self.wanted

    def _is_long_down(self) -> bool:
        since = self.down_since
        return since is not None and self.loop.now - since > self.config.connect_timeout

    def _start(self, added: list[PoolPath]) -> None:
        if self.config.express and self._express is None and self.paths:
            self._express = Slot(self, self.paths[0], Role.BOTH | Role.EXPRESS, 0)
        if self.gate.membership is not None:
            for path in added:
                path.wake()
            return
        # Backups last: they are for when nothing else works.
        for index, path in enumerate(sorted(added, key=lambda path: path.spec.backup)):
            self.loop.call_later(index * _NEXT_PATH, path.slots[0].wake)

    def _abandon(self, slots: Sequence[Slot], reason: str) -> None:
        for slot in slots:
            slot.stop()
            if slot.subflow is not None:
                self.driver.lost(slot.subflow, reason)

    def _check_drained(self) -> None:
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        for subflow, until in list(self._retiring.items()):
            if self.driver.close_retired(subflow):
                del self._retiring[subflow]
            elif self.loop.now >= until:
                del self._retiring[subflow]
                self.driver.lost(subflow, "not drained in time")
        if self._retiring and not self._stopped:
            self._drain_timer = self.loop.call_later(_DRAIN_CHECK, self._check_drained)
