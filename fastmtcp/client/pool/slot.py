"""A place in the pool: keeps one subflow of a path alive."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

from fastmtcp.client.pool.attempt import Attempt
from fastmtcp.driver.subflow import SubflowSocket
from fastmtcp.engine.subflows.role import Role
from fastmtcp.errors import PeerError
from fastmtcp.io.backoff import Backoff
from fastmtcp.io.loop import Timer
from fastmtcp.security.handshake import ClientHandshake
from fastmtcp.security.handshake_socket import SupersededError
from fastmtcp.security.tls import Tls

if TYPE_CHECKING:
    from fastmtcp.client.pool.path import PoolPath
    from fastmtcp.client.pool.pool import Pool

FIRST_DELAY = 0.2
MAX_DELAY = 30.0
URGENT_DELAY = 1.0
"""The longest delay while streams wait and no subflow is left."""

URGENT_PATIENCE = 2.0
"""The kernel repeats a SYN after 1, 3 and 7 s (tcp(7), tcp_syn_retries). While streams wait, a
new attempt replaces one that is silent, so that the network's return is noticed in a second."""

LASTING = 10.0
"""A subflow that lived this long, in seconds, was no failed attempt: dial again at once."""


def pause(backoff: Backoff, urgent: bool) -> float:
    """An attempt has failed: the seconds to wait before the next one."""
    most = min(backoff.next(), URGENT_DELAY if urgent else MAX_DELAY)
    # Without jitter all clients of a server that restarts come back at the same moment.
    return most * random.uniform(0.5, 1.0)


class Slot:
    """Connects, authenticates and attaches a subflow, again whenever that is lost.

    It is resting (nothing to do until woken), waiting (a timer), trying (an attempt) or up.
    """

    def __init__(self, pool: Pool, path: PoolPath, role: Role, index: int) -> None:
        """`index` says with which of a name's addresses to begin."""
        self.path = path
        self.role = role
        self.subflow: SubflowSocket | None = None
        self.local_address = ""
        """The subflow's address on this machine."""
        self._pool = pool
        self._loop = pool.loop
        self._address_at = index
        self._backoff = Backoff(FIRST_DELAY, MAX_DELAY, at_once=True)
        self._attempt: Attempt | None = None
        self._timer: Timer | None = None
        self._up_at = 0.0
        self._stopped = False

    @property
    def is_express(self) -> bool:
        return bool(self.role & Role.EXPRESS)

    @property
    def is_up(self) -> bool:
        return self.subflow is not None

    # --- when to dial -------------------------------------------------------------------------

    def wake(self) -> None:
        """Dial in this slot's turn, unless that is under way."""
        if self._timer is not None and not self._backoff.failures:
            return
        if not self._stopped and self.subflow is None and self._attempt is None:
            self._backoff.reset()
            self._dial_at(self._pool.turn())

    def hurry(self, stale_after: float) -> None:
        """Something has changed: dial now if this slot waits, or if its connection has been
        silent for `stale_after` seconds (its SYN may have gone to where nothing is any more)."""
        if self._stopped or self.subflow is not None:
            return
        attempt = self._attempt
        if attempt is not None:
            if not attempt.is_connecting or self._loop.now - attempt.started_at < stale_after:
                return
            attempt.cancel()
            self._attempt = None
        self._backoff.reset()
        self._dial_at(self._loop.now)

    def stop(self) -> None:
        """Dial no more. The subflow, if there is one, stays."""
        self._stopped = True
        self._rest()
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt = None
        self._pool.gate.leave(self)

    def release(self) -> SubflowSocket | None:
        """Stop and give the subflow away: whatever happens to it is no matter of this slot."""
        self.stop()
        subflow, self.subflow = self.subflow, None
        if subflow is not None:
            subflow.on_lost = None
        return subflow

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _dial_at(self, when: float) -> None:
        self._rest()
        self._timer = self._loop.call_at(when, self._dial)

    def _dial(self) -> None:
        self._timer = None
        pool = self._pool
        if self._stopped or self.subflow is not None or self._attempt is not None:
            return
        if self.is_express:
            path = pool.best_path()
            if path is None:
                return  # woken when a path is up
            self.path = path
        elif not self.path.may_dial(self):
            return  # another slot finds out; woken when it has
        self._attempt = Attempt(
            self._loop,
            pool.resolver,
            self.path.spec,
            self._on_connected,
            self._on_done,
            self._on_failed,
            timeout=pool.config.connect_timeout,
            subflow_timeout=pool.session.limits.subflow_timeout,
            patience=URGENT_PATIENCE if pool.is_urgent else None,
            first=self._address_at,
        )

    def _again(self) -> None:
        self._dial_at(self._loop.now + pause(self._backoff, self._pool.is_urgent))

    # --- an attempt ---------------------------------------------------------------------------

    def _on_connected(self) -> None:
        self._pool.gate.enter(self)

    def authenticate(self, creates: bool) -> None:
        """The gate is open: create the session, or join it."""
        assert self._attempt is not None
        pool = self._pool
        self._attempt.authenticate(
            pool.credentials,
            pool.allocate_subflow(),
            None if creates else pool.gate.membership,
            self.role,
            (lambda: pool.gate.may_create(self)) if creates else None,
        )

    def _on_done(self, sock: socket.socket, tls: Tls | None, handshake: ClientHandshake) -> None:
        pool = self._pool
        self._attempt = None
        self.local_address = sock.getsockname()[0].partition("%")[0]
        pool.gate.passed(self, handshake)
        attached = pool.attach(self, sock, tls, handshake)
        if attached is None:
            self._again()
            return
        if attached.closed:
            return  # it was lost with its first bytes, and on_lost has been called
        self.subflow = attached
        self._up_at = self._loop.now
        pool.on_up(self, handshake)

    def _on_failed(self, error: PeerError) -> None:
        self._attempt = None
        self._pool.gate.leave(self)
        if isinstance(error, SupersededError):
            self._dial_at(self._loop.now)
            return
        self._address_at += 1
        self._pool.on_failed(self, error)
        if not self._stopped:
            self._again()

    def on_lost(self, reason: str) -> None:
        """The subflow died."""
        if self.subflow is not None and self._loop.now - self._up_at >= LASTING:
            self._backoff.reset()
        self.subflow = None
        self._pool.on_lost(self, reason)
        if not self._stopped:
            self._again()
