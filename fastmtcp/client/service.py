"""What a client's worker does: applications connect here, and each becomes a stream."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from functools import partial

import msgspec

from fastmtcp.client.arrivals import Arrival, Arrivals
from fastmtcp.client.egress import Egress, LocalAddress, local_addresses
from fastmtcp.client.pool.farewell import Farewell
from fastmtcp.client.pool.ways import Ways
from fastmtcp.client.session import ClientSession
from fastmtcp.config.client import ClientConfig
from fastmtcp.config.credentials import Credentials
from fastmtcp.config.ingress import WayIn
from fastmtcp.config.path import PathSpec
from fastmtcp.driver.drain import Drain
from fastmtcp.driver.relay import Relay
from fastmtcp.driver.session import SessionDriver
from fastmtcp.engine.limits import Limits
from fastmtcp.engine.quota import Memory
from fastmtcp.engine.snapshot import Totals, totals
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.wire.errors import OpenError, ResetCode, SessionCode
from fastmtcp.io.buffers import BufferPool
from fastmtcp.io.listener import Listener
from fastmtcp.io.loop import Loop, Timer
from fastmtcp.io.netlink import NetworkWatch
from fastmtcp.io.resolver import Resolver
from fastmtcp.io.tcp import keep_alive, tune
from fastmtcp.proxy.login import Login
from fastmtcp.proxy.preface import Waiting
from fastmtcp.proxy.requests import ProxyRequest
from fastmtcp.security.certificates import ClientTls
from fastmtcp.security.handshake import Membership
from fastmtcp.status.document import Observed

log = logging.getLogger("fastmtcp.client")

_QUIET = 0.002
"""An application that says nothing for this long, in seconds, waits for the target to speak
first: its stream is opened without waiting for bytes to go with the OPEN."""

_TICK = 0.5

_LOOK_AGAIN = 1.0
"""Seconds until the interfaces are looked at again after the system did not tell them."""


class ClientService:
    """Listens for applications and owns one session, with a second one during a hand-over."""

    def __init__(
        self,
        loop: Loop,
        config: ClientConfig,
        credentials: Credentials,
        ways_in: list[tuple[WayIn, socket.socket]],
        on_pool: Callable[[int, int, str], None],
        limits: Limits | None = None,
        login: Login | None = None,
        workers: int = 1,
    ) -> None:
        """The sockets of `ways_in` are bound; `on_pool(up, wanted, trouble)` hears of every
        change. `login` is what applications must give to the proxy, and
        `workers` how many the client has."""
        self._loop = loop
        self._config = config
        self._credentials = credentials
        self._limits = limits or config.session_limits()
        self._memory = Memory(self._limits.worker_memory)
        self._on_pool = on_pool
        self._workers = workers
        self._pool = BufferPool(soft_limit=self._limits.slab_memory)
        self._resolver = Resolver(loop)
        found = local_addresses()
        self._local: tuple[LocalAddress, ...] = found or ()
        self._routes_changed = False
        self._look_again: Timer | None = None
        if found is None:
            self._look_again = loop.call_later(_LOOK_AGAIN, self._on_network)
        self._egress = Egress(
            loop, self._resolver, config.paths, config.egress == "auto", self._on_paths
        )
        self._default = Ways()
        self._network = NetworkWatch(loop, self._on_network)
        self._retired: set[ClientSession] = set()
        self._quiet: list[Stream] = []
        self._waited = 0
        self.has_been_up = False
        """True once there has been a connection to the server."""
        self.on_moved: Callable[[ClientSession, Stream], None] | None = None
        """Called with a stream that is in another session now."""
        self.on_sessions: Callable[[list[Membership]], None] | None = None
        """Called with what the server keeps for this worker whenever that is something else."""
        self._said: list[Membership] = []
        self._farewells: set[Farewell] = set()
        self.past = Totals()
        self.is_client = True
        self.target = str(config.target or "")
        self.clients = ""
        self._drain = Drain(loop, lambda: self.drivers, self._stop)
        self._current = self._new_session()
        self._egress.refresh(self._local)
        self._arrivals = Arrivals(loop, login, config.accept_proxy, self._on_arrival)
        for _, sock in ways_in:
            keep_alive(sock, config.keepalive)  # what it accepts has that from it
        self._listeners = [
            Listener(loop, sock, partial(self._arrivals.accept, way)) for way, sock in ways_in
        ]
        loop.call_later(_TICK, self._tick)

    def drain(self, timeout: float | None, done: Callable[[], None]) -> None:
        """Accept nothing more, wait up to `timeout` seconds for the open streams (None: as long
        as it takes), reset those that are left, then call `done`."""
        if not self._drain.begun:
            for listener in self._listeners:
                listener.close()
            self._arrivals.close()
            self._drain.begin(done)
            self._drain.check()
        self._drain.limit(timeout)

    def open(self, target: str = "", source: str = "") -> tuple[ClientSession, Stream]:
        """Open a stream of the application at `source`; empty `target` is the server's own.

        Raises:
            OpenError: too many streams wait, or the session has just ended.
        """
        current = self._current
        current.pool.nudge()
        return current, current.session.open(self._loop.now, target, source)

    def join(
        self,
        session: ClientSession,
        stream: Stream,
        sock: socket.socket,
        budget: int | None = None,
        on_close: Callable[[Relay], None] | None = None,
    ) -> Relay:
        """Make an application's socket the end of a stream; `budget` is as in Relay, `on_close` as
        in SessionDriver.add_relay()."""
        tune(sock)
        relay = session.driver.add_relay(sock, stream, budget, on_close)
        if not stream.open_sent and not stream.send.backlog:
            if not self._quiet:
                self._loop.call_at(self._loop.now + _QUIET, self._open_quiet)
            self._quiet.append(stream)
        session.driver.progress()
        return relay

    @property
    def is_draining(self) -> bool:
        """True if no stream should be opened any more."""
        return self._drain.begun

    @property
    def sessions(self) -> list[Observed]:
        return [one for one in self._sessions() if not one.driver.ended]

    @property
    def drivers(self) -> list[SessionDriver]:
        """Of all sessions, those that have ended and whose applications still read included."""
        return [session.driver for session in self._sessions()]

    def set_certificates(self, certificates: ClientTls) -> None:
        """Use these certificates for new connections."""
        self._credentials = msgspec.structs.replace(self._credentials, tls=certificates)
        for session in self._sessions():
            session.pool.set_credentials(self._credentials)

    def end_left(self, sessions: list[Membership]) -> None:
        """End the sessions of a worker of this client that has died."""
        if self._drain.over:
            return
        for membership in sessions:
            farewell = Farewell(
                self._loop,
                self._resolver,
                self._credentials,
                membership,
                lambda: self._egress.paths or (),
                self._config.connect_timeout,
                self._limits,
                self._on_farewell_over,
            )
            self._farewells.add(farewell)
        self._tell_sessions()

    # --- applications -------------------------------------------------------------------------

    def _on_arrival(self, arrival: Arrival) -> None:
        down_since = self._current.down_since
        if down_since is not None and self._loop.now - down_since > self._config.connect_timeout:
            log.debug("%s reset: no server", arrival)
            self._current.pool.nudge()
            self._arrivals.turn_away(arrival, ResetCode.UNREACHABLE)
            return
        try:
            session, stream = self.open(arrival.target, arrival.peer)
        except OpenError as error:
            self._loop.lines.warning(log, "", "%s reset: %s", arrival, error)
            self._arrivals.turn_away(arrival, ResetCode.OVERLOADED)
            return
        if arrival.early:
            stream.write(arrival.early)
        if arrival.request is None:
            self.join(session, stream, arrival.sock)
        else:
            self._answer_later(session, arrival, arrival.request, stream)

    def _answer_later(
        self, session: ClientSession, arrival: Arrival, request: ProxyRequest, stream: Stream
    ) -> None:
        """Open the stream, and tell the application when the target is connected."""

        def connected() -> None:
            self.join(self._session_of(stream), stream, arrival.sock, request.budget)

        def refused(code: ResetCode) -> None:
            self._loop.lines.warning(log, "", "%s refused: %s", arrival, code.explanation)
            self._arrivals.turn_away(arrival, code)

        def progress() -> None:
            for one in self._sessions():
                one.driver.progress()

        answer = request.connected()
        Waiting(self._loop, arrival.sock, stream, answer, connected, refused, progress)
        stream.announce()
        session.driver.progress()

    def _open_quiet(self) -> None:
        quiet, self._quiet = self._quiet, []
        for stream in quiet:
            stream.announce()
        for session in self._sessions():
            session.driver.progress()

    # --- sessions -----------------------------------------------------------------------------

    def _new_session(self) -> ClientSession:
        session = ClientSession(
            self._loop,
            self._pool,
            self._resolver,
            self._config,
            self._credentials,
            self._limits,
            self._memory,
            self._on_change,
            self._on_session_ended,
            self._workers,
        )
        session.driver.on_draining = partial(self._on_draining, session)
        session.driver.on_returned = partial(self._on_returned, session)
        return session

    def _session_of(self, stream: Stream) -> ClientSession:
        return next(one for one in self._sessions() if one.session is stream.owner)

    def _on_draining(self, session: ClientSession) -> None:
        """The server takes no new streams: those that it has end on this session, while new ones
        wait for the next."""
        if session is not self._current or self._drain.begun:
            return
        log.info("the server is shutting down; new streams wait for another")
        session.retire()
        self._retired.add(session)
        self._current = self._new_session()
        self._start_current()

    def _on_returned(self, session: ClientSession, stream: Stream) -> bool:
        """The server of `session` has not taken a stream, as it is shutting down."""
        self._on_draining(session)
        if self._current is session:
            return False
        try:
            self._current.driver.adopt(stream, session.driver)
        except OpenError as error:
            self._loop.lines.warning(log, "", "stream reset: %s", error)
            return False
        if self.on_moved is not None:
            self.on_moved(self._current, stream)
        return True

    def _start_current(self) -> None:
        if self._egress.paths is not None:
            self._current.pool.set_paths(self._egress.paths)

    def _sessions(self) -> list[ClientSession]:
        return [self._current, *self._retired]

    def _on_change(self) -> None:
        pool = self._current.pool
        self.has_been_up = self.has_been_up or pool.up > 0
        self._on_pool(pool.up, pool.wanted, pool.trouble)
        self._tell_sessions()

    def _on_farewell_over(self, farewell: Farewell) -> None:
        self._farewells.discard(farewell)
        self._tell_sessions()

    def _tell_sessions(self) -> None:
        if self.on_sessions is None:
            return
        own = [one.pool.membership for one in self._sessions() if not one.driver.ended]
        left = [farewell.membership for farewell in self._farewells]
        sessions = [membership for membership in (*own, *left) if membership is not None]
        if sessions != self._said:
            self._said = sessions
            self.on_sessions(sessions)

    def _on_session_ended(self, session: ClientSession, reason: str) -> None:
        self.past.add(totals(session.session))
        if session.driver.relays:
            # Complete streams whose applications still read.
            self._retired.add(session)
        if session is self._current and not self._drain.begun:
            self._loop.lines.warning(log, "", "session ended: %s; starting a new one", reason)
            self._loop.call_later(0.1, self._replace_session)
        self._tell_sessions()
        self._drain.check()

    def _replace_session(self) -> None:
        if not self._drain.begun and self._current.driver.ended:
            self._current = self._new_session()
            self._start_current()

    # --- the network ----------------------------------------------------------------------------

    def _on_paths(self, paths: tuple[PathSpec, ...]) -> None:
        if not paths:
            log.warning("no usable local address; waiting for one")
        self._current.pool.set_paths(paths)

    def _on_network(self, routes: bool = False) -> None:
        """Addresses, links or, if `routes`, routes of this machine have changed."""
        self._routes_changed |= routes
        if self._look_again is not None:
            self._look_again.cancel()
        found = local_addresses()
        if found is None:
            # All stays as it was until the system tells again.
            self._look_again = self._loop.call_later(_LOOK_AGAIN, self._on_network)
            return
        routes, self._routes_changed = self._routes_changed, False
        before, self._local = self._local, found
        if not routes and self._local == before:
            return
        # By interface: what is bound to one that was made anew with the same address is dead.
        old, new = set(before), set(self._local)
        lost = {local.address for local in old - new} - {local.address for local in old & new}
        devices = {local.index for local in old ^ new}
        if self._default.have_changed() or old != new:
            self._egress.refresh(self._local)
        for session in self._sessions():
            session.pool.network_changed(lost, devices)

    # --- once in a while ------------------------------------------------------------------------

    def _tick(self) -> None:
        if self._drain.over:
            return
        current = self._current
        for session in list(self._retired):
            if session.driver.is_quiet:
                session.driver.end(SessionCode.NORMAL, "no streams left")
                self._retired.discard(session)
            elif not session.session.subflows:
                # It does not connect again, so what is still open cannot be completed.
                session.driver.end(SessionCode.TIMEOUT, "the server is gone")
        self._give_up_waiting(current)
        self._drain.check()
        self._pool.trim()
        self._loop.call_later(_TICK, self._tick)

    def _give_up_waiting(self, current: ClientSession) -> None:
        """Reset the streams that have waited for the server, or for its limits, for too long."""
        now, patience = self._loop.now, self._config.connect_timeout
        waiting = current.session.table.waiting
        if len(waiting) != self._waited:
            self._waited = len(waiting)
            log.debug("%d streams wait for the limits of the server", self._waited)
        late: dict[Stream, ResetCode] = {}
        if current.down_since is not None and now - current.down_since > patience:
            unsent = [one for one in current.session.streams.values() if not one.open_sent]
            late = dict.fromkeys((*unsent, *waiting), ResetCode.UNREACHABLE)
        elif current.down_since is None:
            old = [one for one in waiting if now - one.created_at > patience]
            late = dict.fromkeys(old, ResetCode.OVERLOADED)
        for stream, code in late.items():
            stream.reset(code)
            if stream.watcher is not None:
                stream.watcher.update()

    # --- the end ------------------------------------------------------------------------------

    def _stop(self) -> None:
        for session in self._sessions():
            session.close("the client is shutting down")
        for farewell in self._farewells:
            farewell.cancel()
        self._network.close()
        if self._look_again is not None:
            self._look_again.cancel()
        self._egress.close()
        self._resolver.close()
