"""The pool of a session: each path is kept at its number of live, authenticated subflows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence, Set

from fastmtcp.client.pool.attempt import URGENT_PATIENCE
from fastmtcp.client.pool.connector import Connector
from fastmtcp.client.pool.express import Express
from fastmtcp.client.pool.growth import PoolGrowth
from fastmtcp.client.pool.path import PoolPath
from fastmtcp.client.pool.retiring import Retiring
from fastmtcp.client.pool.size import TICK
from fastmtcp.client.pool.slot import Slot
from fastmtcp.config.client import ClientConfig
from fastmtcp.config.connections import MAX_CONNECTIONS, Connections, fit
from fastmtcp.config.credentials import Credentials
from fastmtcp.config.path import PathSpec
from fastmtcp.driver.session import SessionDriver
from fastmtcp.errors import PeerError
from fastmtcp.io.loop import Timer
from fastmtcp.io.resolver import Resolver
from fastmtcp.security.handshake import Grant, Membership

log = logging.getLogger("fastmtcp.paths")

_ALL_PATHS = 0.25
"""Seconds within which all paths are tried for a session's first subflow, the first one first (as
RFC 8305 has it for addresses): one whose name is looked up for ever holds up none behind it."""

_STALE = 0.3
_NUDGE_PAUSE = 1.0


class Pool:
    """The paths of one session and their slots.

    `on_created(grant)` is called when the first subflow has made the session, `on_change()` when
    a subflow comes or goes or an attempt fails, `on_unknown()` if the server has forgotten the
    session.
    """

    def __init__(
        self,
        resolver: Resolver,
        config: ClientConfig,
        credentials: Credentials,
        driver: SessionDriver,
        on_created: Callable[[Grant], None],
        on_change: Callable[[], None],
        on_unknown: Callable[[], None],
    ) -> None:
        self._connector = Connector(
            driver, resolver, credentials, config.connect_timeout, lambda: self.wanted
        )
        self.paths: list[PoolPath] = []
        """The first usable one is the best one."""
        self.express = Express(self._connector, self) if config.express else None
        self.down_since: float | None = driver.loop.now
        """Since when no subflow has been up; None while one is."""
        self._loop = driver.loop
        self._config = config
        self._driver = driver
        self._session = driver.session
        self._on_created = on_created
        self._on_change = on_change
        self._on_unknown = on_unknown
        self._retiring = Retiring(driver)
        self._growth = PoolGrowth()
        self._growth_timer: Timer | None = None
        self._nudged_at = float("-inf")
        self._created = False
        self._stopped = False
        self._error: PeerError | None = None

    # --- from outside ---------------------------------------------------------------------------

    @property
    def membership(self) -> Membership | None:
        """The session, once the server has made it."""
        return self._connector.creation.membership

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
        not among them any more retire."""
        if self._stopped:
            return
        for path in [path for path in self.paths if path.spec not in specs]:
            log.info("path %s: gone", path.spec.label)
            self.paths.remove(path)
            self._retire(path.slots)
        known = {path.spec: path for path in self.paths}
        ranges = fit(
            [spec.connections or self._config.connections for spec in specs],
            self._config.most_subflows,
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
                        self._config.most_subflows,
                    )
                    continue
                if limits.least > room:
                    limits = Connections(room, room)
                known[spec] = PoolPath(self._connector, self, spec, limits)
                added.append(known[spec])
                self.paths.append(known[spec])
        # In the order of the configuration.
        self.paths = [known[spec] for spec in specs if spec in known]
        if self.express is not None:
            self.express.set_paths(self.paths)
        self._start(added)
        self._start_growth()
        self._on_change()

    def set_target(self, path: PoolPath, count: int) -> None:
        """Keep `count` subflows on `path`, 1 to MAX_CONNECTIONS, as far as the session has room.

        More are dialled one after the other. Of those that are too many the ones that are not up
        go first; the others get no more data, and are closed when all they carry has arrived.
        """
        count = max(1, min(count, MAX_CONNECTIONS, path.target + self._room()))
        if self._stopped or count == path.target:
            return
        self._retire(path.resize(count))
        if self.membership is not None:
            path.wake()
        self._on_change()

    def set_credentials(self, credentials: Credentials) -> None:
        """Authenticate with these from now on; the subflows that are up stay."""
        self._connector.credentials = credentials

    def network_changed(self, lost: Set[str], devices: Set[int] = frozenset()) -> None:
        """The network of this machine has changed. It does not have the addresses `lost` any more:
        what used those is dead. Addresses of the interfaces `devices` have come or gone.

        If this concerns us, whatever waits dials at once, and where the way to the server is
        another one a fresh subflow finds out whether it works.
        """
        moved = [path for path in self.paths if path.ways.have_changed(devices)]
        self._retiring.leave(lost)
        # All of them, whether one is or not.
        gone = [slot for slot in self._slots() if slot.leave(lost)]
        if not (moved or gone):
            return
        for slot in self._slots():
            slot.hurry(_STALE)
        for path in self.paths:
            path.size.retry(self._loop.now)
        for path in moved:
            path.renew(_STALE)

    def nudge(self) -> None:
        """An application waits: if no subflow is up, see at once whether one can be."""
        if self._session.subflows or self._loop.now - self._nudged_at < _NUDGE_PAUSE:
            return
        self._nudged_at = self._loop.now
        for path in self.paths:
            path.slots[0].hurry(URGENT_PATIENCE)

    def stop(self) -> None:
        """Dial no more; the subflows that are up stay."""
        self._stopped = True
        for slot in self._slots():
            slot.stop()
        self._retiring.stop()
        if self._growth_timer is not None:
            self._growth_timer.cancel()

    # --- for the paths --------------------------------------------------------------------------

    def on_up(self, grant: Grant | None) -> None:
        """A subflow has joined the session."""
        self.down_since = None
        if not self._created:
            assert grant is not None
            self._created = True
            self._on_created(grant)
            for path in self.paths:
                path.wake()
        if self.express is not None:
            self.express.wake()
        self._on_change()

    def on_renewed(self, path: PoolPath, slot: Slot) -> None:
        """There is a new way to the server: what comes from another address than the fresh subflow
        still goes the old one, or with an address that is wrong on the new one."""
        others = list(path.slots)
        if self.express is not None and self.express.path is path:
            others.append(self.express.slot)
        for other in others:
            if other.subflow is not None and other.local_address != slot.local_address:
                self._connector.drop(other.subflow, "the way to the server has changed")
                other.hurry(_STALE)

    def on_failed(self, error: PeerError) -> None:
        """An attempt of a path has failed."""
        self._error = error
        self._on_change()

    def on_lost(self, slot: Slot) -> None:
        """The subflow of `slot` died."""
        if not self._stopped and not self._session.subflows:
            self.down_since = self._loop.now
            for other in self._slots():
                if other is not slot:
                    other.hurry(_STALE)
        self._on_change()

    def is_forgotten(self, *, joined: bool) -> bool:
        """The server does not know the session. Ends it, unless that may be because a path leads
        to another server process than the others."""
        if self._session.subflows or not (joined or self._is_long_down()):
            return False
        # The worker that owned it is gone, and with it what it held.
        self._on_unknown()
        return True

    # --- internal -------------------------------------------------------------------------------

    def _slots(self) -> list[Slot]:
        slots = [slot for path in self.paths for slot in path.slots]
        return slots if self.express is None else [*slots, self.express.slot]

    def _retire(self, slots: Sequence[Slot]) -> None:
        released = [slot.release() for slot in slots]
        self._retiring.add([subflow for subflow in released if subflow is not None])

    def _room(self) -> int:
        return self._config.most_subflows - self.wanted

    def _is_long_down(self) -> bool:
        since = self.down_since
        return since is not None and self._loop.now - since > self._config.connect_timeout

    def _start(self, added: list[PoolPath]) -> None:
        if self.membership is not None:
            for path in added:
                path.wake()
            return
        # Backups last: they are for when nothing else works.
        spacing = _ALL_PATHS / max(len(added) - 1, 1)
        for index, path in enumerate(sorted(added, key=lambda path: path.spec.backup)):
            self._loop.call_later(index * spacing, path.slots[0].wake)

    def _start_growth(self) -> None:
        if self._growth_timer is None and self._is_automatic:
            self._growth.begin(self._loop.now, self._session)
            self._growth_timer = self._loop.call_later(TICK, self._grow)

    def _grow(self) -> None:
        self._growth_timer = None
        if not self._is_automatic:
            return
        for path, wanted in self._growth.update(self._loop.now, self._session, self.paths):
            self.set_target(path, wanted)
        self._growth_timer = self._loop.call_later(TICK, self._grow)

    @property
    def _is_automatic(self) -> bool:
        return any(not path.size.limits.is_fixed for path in self.paths)
