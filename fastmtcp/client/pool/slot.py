"""A place in the pool: keeps one subflow of a path alive."""

from __future__ import annotations

import logging
import random
import socket
from collections.abc import Set
from functools import partial
from typing import Protocol

from fastmtcp.client.pool.attempt import Attempt
from fastmtcp.client.pool.connector import Connector
from fastmtcp.config.path import PathSpec
from fastmtcp.driver.subflow import SubflowSocket
from fastmtcp.engine.subflows.role import Role
from fastmtcp.errors import PeerError
from fastmtcp.io.backoff import Backoff
from fastmtcp.io.loop import Timer
from fastmtcp.io.tcp import local_address, remote_address
from fastmtcp.security.handshake import ClientHandshake
from fastmtcp.security.handshake_socket import SupersededError
from fastmtcp.security.tls import Tls

log = logging.getLogger("fastmtcp.paths")

FIRST_DELAY = 0.2
MAX_DELAY = 30.0
URGENT_DELAY = 1.0
"""The longest delay while streams wait and no subflow is left."""

_MAX_ATTEMPTS = 2

LASTING = 10.0
"""A subflow that lived this long, in seconds, was no failed attempt: dial again at once."""


def pause(backoff: Backoff, urgent: bool) -> float:
    """An attempt has failed: the seconds to wait before the next one."""
    most = min(backoff.next(), URGENT_DELAY if urgent else MAX_DELAY)
    # Without jitter all clients of a server that restarts come back at the same moment.
    return most * random.uniform(0.5, 1.0)


class SlotOwner(Protocol):
    """Says where a slot leads, and is told what becomes of it."""

    def spec_for(self, slot: Slot) -> PathSpec | None:
        """The path for the next attempt of `slot`; None if it shall rest until it is woken."""

    def on_up(self, slot: Slot, handshake: ClientHandshake) -> None:
        """`slot` has a subflow in the session."""

    def on_renewed(self, slot: Slot) -> None:
        """`slot` has a fresh subflow in place of the one that it had."""

    def on_failed(self, slot: Slot, error: PeerError) -> None:
        """An attempt of `slot` has failed."""

    def on_lost(self, slot: Slot, reason: str) -> None:
        """The subflow of `slot` died."""


class Slot:
    """Connects, authenticates and attaches a subflow, again whenever that is lost.

    It is resting (nothing to do until woken), waiting (a timer), trying (an attempt) or up. An
    attempt that has its time left is never given up for a new one, which begins beside it: the
    first that is up wins. So a second one replaces a subflow, too, when that may be dead.
    """

    def __init__(self, connector: Connector, owner: SlotOwner, role: Role, index: int) -> None:
        """`index` says with which of a name's addresses to begin."""
        self.role = role
        self.subflow: SubflowSocket | None = None
        self.local_address = ""
        """The subflow's address on this machine."""
        self.remote_address = ""
        """Where it leads: to the server, or to a proxy."""
        self.stopped = False
        """It dials no more."""
        self._connector = connector
        self._owner = owner
        self._loop = connector.loop
        self._address_at = index
        self._backoff = Backoff(FIRST_DELAY, MAX_DELAY, at_once=True)
        self._attempts: list[Attempt] = []
        self._timer: Timer | None = None
        self._up_at = 0.0

    @property
    def is_up(self) -> bool:
        return self.subflow is not None

    # --- when to dial -------------------------------------------------------------------------

    def wake(self) -> None:
        """Dial in this slot's turn, unless that is under way."""
        if self._timer is not None and not self._backoff.failures:
            return
        if not self.stopped and self.subflow is None and not self._attempts:
            self._backoff.reset()
            self._dial_at(self._connector.turn())

    def hurry(self, stale_after: float) -> None:
        """Something has changed: dial now if this slot waits, and also if its last connection has
        been silent for `stale_after` seconds (its SYN may have gone to where nothing is any
        more)."""
        if not self.stopped and self.subflow is None and self._may_begin(stale_after):
            self._backoff.reset()
            self._dial_at(self._loop.now)

    def renew(self, stale_after: float) -> None:
        """The subflow may be dead: try a fresh one at once, which then takes its place."""
        if not self.stopped and self.subflow is not None and self._may_begin(stale_after):
            self._dial_at(self._loop.now)

    def leave(self, lost: Set[str]) -> bool:
        """This machine does not have the addresses `lost` any more: what comes from them is dead,
        and TCP would not notice before its time-out. True if anything did."""
        dead = [attempt for attempt in self._attempts if attempt.local_address in lost]
        for attempt in dead:
            self._give_up(attempt)
        subflow = self.subflow
        if subflow is not None and self.local_address in lost:
            self._connector.drop(subflow, f"this machine lost the address {self.local_address}")
            return True
        return bool(dead)

    def stop(self) -> None:
        """Dial no more. The subflow, if there is one, stays."""
        self.stopped = True
        self._rest()
        self._give_up(*self._attempts)

    def release(self) -> SubflowSocket | None:
        """Stop and give the subflow away: whatever happens to it is no matter of this slot."""
        self.stop()
        subflow, self.subflow = self.subflow, None
        if subflow is not None:
            subflow.on_lost = None
        return subflow

    def _may_begin(self, stale_after: float) -> bool:
        """Make room for a new attempt, if it is time for one."""
        if not self._attempts:
            return True
        last = self._attempts[-1]
        if self._loop.now - last.started_at < stale_after or not all(
            attempt.is_connecting for attempt in self._attempts
        ):
            return False
        if len(self._attempts) == _MAX_ATTEMPTS:
            # The older one is left alone: changes without end must not keep it from its end.
            self._give_up(last)
        return True

    def _give_up(self, *attempts: Attempt) -> None:
        for attempt in attempts:
            self._attempts.remove(attempt)
            attempt.cancel()

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _dial_at(self, when: float) -> None:
        self._rest()
        self._timer = self._loop.call_at(when, self._dial)

    def _dial(self) -> None:
        self._timer = None
        if self.stopped or len(self._attempts) == _MAX_ATTEMPTS:
            return
        spec = self._owner.spec_for(self)
        if spec is None:
            return
        self._attempts.append(
            Attempt(
                self._connector,
                spec,
                self.role,
                self._on_done,
                self._on_failed,
                # Another address than that of the attempt beside it.
                first=self._address_at + len(self._attempts),
            )
        )

    def _again(self) -> None:
        self._dial_at(self._loop.now + pause(self._backoff, self._connector.is_urgent))

    # --- what comes of it ---------------------------------------------------------------------

    def _on_done(
        self, attempt: Attempt, sock: socket.socket, tls: Tls | None, handshake: ClientHandshake
    ) -> None:
        self._attempts.remove(attempt)
        self._give_up(*self._attempts)
        self._rest()
        local, remote = local_address(sock), remote_address(sock)
        label = attempt.spec.label
        lost = partial(self._on_lost, label)
        attached = self._connector.attach(sock, tls, handshake, label, lost)
        if attached is None:
            if self.subflow is None:
                self._again()
            return
        if attached.closed:
            return  # it was lost with its first bytes, and _on_lost has been called
        old, self.subflow = self.subflow, attached
        self.local_address, self.remote_address = local, remote
        self._up_at = self._loop.now
        if old is not None:
            old.on_lost = None
            self._connector.drop(old, "another one has replaced it")
            self._owner.on_renewed(self)
            return
        self._owner.on_up(self, handshake)

    def _on_failed(self, attempt: Attempt, error: PeerError) -> None:
        self._attempts.remove(attempt)
        if self._attempts or self.subflow is not None:
            return  # what is beside it goes on
        if isinstance(error, SupersededError):
            self._dial_at(self._loop.now)
            return
        self._address_at += 1
        self._owner.on_failed(self, error)
        if not self.stopped:
            self._again()

    def _on_lost(self, label: str, reason: str) -> None:
        if self.subflow is not None and self._loop.now - self._up_at >= LASTING:
            self._backoff.reset()
        self.subflow = None
        if not self.stopped:
            text = "subflow to %s lost: %s; %d left"
            self._loop.lines.info(log, label, text, label, reason, self._connector.live)
        self._owner.on_lost(self, reason)
        if not (self.stopped or self._attempts):
            self._again()
