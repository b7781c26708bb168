"""One path in the pool: its slots, how many it should have, and whether it works."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fastmtcp.client.pool.size import PoolSize
from fastmtcp.client.pool.slot import Slot
from fastmtcp.config.connections import Connections
from fastmtcp.config.path import PathSpec
from fastmtcp.engine.subflows.role import Role
from fastmtcp.errors import in_a_sentence

if TYPE_CHECKING:
    from fastmtcp.client.pool.pool import Pool

log = logging.getLogger("fastmtcp.paths")

_DIRECTIONS = {"both": Role.BOTH, "up": Role.UP, "down": Role.DOWN}


class PoolPath:
    """Keeps `target` subflows on one path. Made and changed by the Pool."""

    def __init__(self, pool: Pool, spec: PathSpec, limits: Connections) -> None:
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
        self.joined = False
        """A subflow of this path has been in the session."""
        self._pool = pool
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
            self.slots.append(Slot(self._pool, self, self.role, self._numbers))
            self._numbers += 1
        # Those go first that have nothing, then the youngest.
        keep = sorted(self.slots, key=lambda slot: not slot.is_up)[:target]
        superfluous = [slot for slot in self.slots if slot not in keep]
        self.slots = keep
        return superfluous

    def may_dial(self, slot: Slot) -> bool:
        """While the path is down, or there is no session yet, only its first slot finds out
        whether it works: a server that is away need not be asked by all of them."""
        if slot is self.slots[0]:
            return True
        return self.is_up is not False and self._pool.gate.membership is not None

    def wake(self) -> None:
        """Let every slot dial that may."""
        for slot in self.slots:
            if not slot.is_up and self.may_dial(slot):
                slot.wake()

    def on_up(self) -> None:
        """A subflow has joined."""
        self.joined = True
        self.trouble = ""
        if not self.is_up:
            self.is_up = True
            log.info("path %s: up", self.spec.label)
            self.wake()

    def on_down(self, reason: str) -> None:
        """An attempt failed, or a subflow was lost; says so if that was the last one."""
        if self.up:
            return
        self.trouble = reason
        if self.is_up is not False:
            self.is_up = False
            log.warning("path %s: down: %s; trying again", self.spec.label, in_a_sentence(reason))
