"""One path in the pool: its slots, how many it should have, and whether it works."""

from __future__ import annotations

import logging
from typing import Protocol

from fastmtcp.client.pool.connector import Connector
from fastmtcp.client.pool.size import PoolSize
from fastmtcp.client.pool.slot import Slot
from fastmtcp.client.pool.ways import Ways
from fastmtcp.config.connections import Connections
from fastmtcp.config.path import PathSpec
from fastmtcp.driver.subflow import SubflowSocket
from fastmtcp.engine.subflows.role import Role
from fastmtcp.errors import PeerError, in_a_sentence
from fastmtcp.security.handshake import ClientHandshake, Grant, RefuseCode, RefusedError

log = logging.getLogger("fastmtcp.paths")

_DIRECTIONS = {"both": Role.BOTH, "up": Role.UP, "down": Role.DOWN}


class PathOwner(Protocol):
    """The pool: what happens on a path and concerns the whole session."""

    def on_up(self, grant: Grant | None) -> None:
        """A subflow is in the session. The first one, with the grant, has made it."""

    def on_renewed(self, path: PoolPath, slot: Slot) -> None:
        """`slot` has found the new way of `path`."""

    def on_failed(self, error: PeerError) -> None:
        """An attempt of a path has failed."""

    def on_lost(self, slot: Slot) -> None:
        """The subflow of `slot` died."""

    def is_forgotten(self, *, joined: bool) -> bool:
        """The server does not know the session. True if it is over by that; `joined` says that
        the path has led to the right server before."""


class PoolPath:
    """Keeps `target` subflows on one path. Made and changed by the Pool."""

    def __init__(
        self, connector: Connector, owner: PathOwner, spec: PathSpec, limits: Connections
    ) -> None:
        self.spec = spec
        self.size = PoolSize(limits)
        self.role = _DIRECTIONS[spec.direction] | (Role.BACKUP if spec.backup else Role(0))
        self.slots: list[Slot] = []
        self.is_up: bool | None = None
        """True if a subflow is up, False if none can be; None until either is known."""
        self.trouble = ""
        """Why the path is down; empty while it is not."""
        self.reconnects = 0
        """Subflows that were lost, each of which is replaced."""
        self.ways = Ways(spec)
        self.joined = False
        """A subflow of this path has been in the session."""
        self._connector = connector
        self._owner = owner
        self._numbers = 0
        self.resize(self.size.wanted)

    @property
    def target(self) -> int:
        """Subflows that this path should have."""
        return len(self.slots)

    @property
    def up(self) -> int:
        """Subflows that are connected and authenticated."""
        return sum(slot.is_up for slot in self.slots)

    def resize(self, target: int) -> list[Slot]:
        """Have `target` slots. New ones are not woken yet; returns those that are superfluous."""
        while len(self.slots) < target:
            self.slots.append(Slot(self._connector, self, self.role, self._numbers))
            self._numbers += 1
        # Those go first that have nothing, then the youngest.
        keep = sorted(self.slots, key=lambda slot: not slot.is_up)[:target]
        superfluous = [slot for slot in self.slots if slot not in keep]
        self.slots = keep
        return superfluous

    def wake(self) -> None:
        """Let every slot dial that may."""
        for slot in self.slots:
            if not slot.is_up and self._may_dial(slot):
                slot.wake()

    def stop(self) -> None:
        """Dial no more; the subflows that are up stay."""
        for slot in self.slots:
            slot.stop()

    def renew(self, stale_after: float) -> None:
        """The way to the server is another one now: try one fresh subflow on it."""
        for slot in self.slots:
            if slot.is_up:
                slot.renew(stale_after)
                return

    def live(self) -> list[SubflowSocket]:
        """The subflows that are up."""
        return [slot.subflow for slot in self.slots if slot.subflow is not None]

    # --- for the slots --------------------------------------------------------------------------

    def spec_for(self, slot: Slot) -> PathSpec | None:
        return self.spec if self._may_dial(slot) else None

    def on_up(self, slot: Slot, handshake: ClientHandshake) -> None:
        self.joined = True
        self.ways.note(slot.remote_address)
        self.trouble = ""
        if not self.is_up:
            self.is_up = True
            log.info("path %s: up", self.spec.label)
            self.wake()
        self._owner.on_up(handshake.grant)

    def on_renewed(self, slot: Slot) -> None:
        self._owner.on_renewed(self, slot)

    def on_failed(self, _slot: Slot, error: PeerError) -> None:
        reason = str(error) or type(error).__name__
        if is_unknown_session(error):
            if self._owner.is_forgotten(joined=self.joined):
                return
            reason = "it leads to another server process than the other paths"
        self._on_down(reason)
        self._owner.on_failed(error)

    def on_lost(self, slot: Slot, reason: str) -> None:
        if not slot.stopped:
            self.reconnects += 1
            self._on_down(reason)
        self._owner.on_lost(slot)

    # --- internal -------------------------------------------------------------------------------

    def _may_dial(self, slot: Slot) -> bool:
        """While the path is down, or there is no session yet, only its first slot finds out
        whether it works: a server that is away need not be asked by all of them."""
        if slot is self.slots[0]:
            return True
        return self.is_up is not False and self._connector.creation.membership is not None

    def _on_down(self, reason: str) -> None:
        """An attempt failed, or a subflow was lost; says so if that was the last one."""
        if self.up:
            return
        self.trouble = reason
        if self.is_up is not False:
            self.is_up = False
            log.warning("path %s: down: %s; trying again", self.spec.label, in_a_sentence(reason))


def is_unknown_session(error: PeerError) -> bool:
    """The server does not know the session, or not at this process."""
    return isinstance(error, RefusedError) and error.code is RefuseCode.UNKNOWN_SESSION
