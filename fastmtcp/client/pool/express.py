"""The express subflow of a session: one slot of its own, on the best path there is."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fastmtcp.client.pool.connector import Connector
from fastmtcp.client.pool.path import PathOwner, PoolPath, is_unknown_session
from fastmtcp.client.pool.slot import Slot
from fastmtcp.config.path import PathSpec
from fastmtcp.engine.subflows.role import Role
from fastmtcp.errors import PeerError
from fastmtcp.security.handshake import ClientHandshake

log = logging.getLogger("fastmtcp.paths")


class Express:
    """Each time that it dials it goes to the path that is the best one then. Trouble that it has
    says nothing about that path, whose own slots find out."""

    def __init__(self, connector: Connector, owner: PathOwner) -> None:
        self.slot = Slot(connector, self, Role.BOTH | Role.EXPRESS, 0)
        self.path: PoolPath | None = None
        """Where its last attempt went."""
        self._owner = owner
        self._paths: Sequence[PoolPath] = ()

    def set_paths(self, paths: Sequence[PoolPath]) -> None:
        """Choose among these from now on, the best ones first."""
        self._paths = paths

    def wake(self) -> None:
        """A path is up: dial, unless that is under way or done."""
        self.slot.wake()

    def best_path(self) -> PoolPath | None:
        """The first that works, both ways and not as a backup only. None if there is none."""
        for path in self._paths:
            if path.up and path.role == Role.BOTH:
                return path
        return None

    # --- for the slot ---------------------------------------------------------------------------

    def spec_for(self, _slot: Slot) -> PathSpec | None:
        best = self.best_path()
        if best is None:
            return None
        self.path = best
        return best.spec

    def on_up(self, _slot: Slot, handshake: ClientHandshake) -> None:
        self._owner.on_up(handshake.grant)

    def on_renewed(self, _slot: Slot) -> None:
        raise AssertionError("the slots of its path find the new way")

    def on_failed(self, _slot: Slot, error: PeerError) -> None:
        # The path that it was to go to had a subflow in the session.
        if is_unknown_session(error) and self._owner.is_forgotten(joined=True):
            return
        assert self.path is not None
        text = str(error) or type(error).__name__
        log.debug("express subflow over %s: %s", self.path.spec.label, text)

    def on_lost(self, slot: Slot, _reason: str) -> None:
        self._owner.on_lost(slot)
