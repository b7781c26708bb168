"""What a server's worker does: lets subflows into sessions, and connects streams to targets."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from fastmtcp.config import targets
from fastmtcp.config.limits import ServerLimits
from fastmtcp.config.server import ServerConfig
from fastmtcp.config.targets import Rule
from fastmtcp.driver.drain import Drain
from fastmtcp.driver.session import SessionDriver
from fastmtcp.driver.turn import Turn
from fastmtcp.endpoint import ANY_HOST, Endpoint
from fastmtcp.engine.quota import Bucket, ClientQuota, Memory
from fastmtcp.engine.session import Session
from fastmtcp.engine.snapshot import Totals, totals
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.wire.errors import ResetCode, SessionCode
from fastmtcp.errors import ConfigError
from fastmtcp.io.buffers import BufferPool
from fastmtcp.io.loop import Loop
from fastmtcp.io.resolver import Resolver
from fastmtcp.security.certificates import ServerTls
from fastmtcp.security.clients import digest
from fastmtcp.security.handshake import (
    WRONG_KEY,
    Grant,
    Hello,
    RefuseCode,
    RefusedError,
    ServerHandshake,
    new_session_id,
)
from fastmtcp.security.handshake_socket import refuse, sealed
from fastmtcp.security.identity import UNNAMED, Clients
from fastmtcp.security.tls import Tls
from fastmtcp.server.outgoing import Outgoing
from fastmtcp.server.reception import Handoff, Reception
from fastmtcp.server.session import ServerSession
from fastmtcp.status.document import Observed

log = logging.getLogger("fastmtcp.server")

_TICK = 0.5
_REPORT = 1.0
"""Seconds between two log lines about streams that one client was refused."""


class Shared(NamedTuple):
    """What all sessions of one client have together in this worker."""

    quota: ClientQuota
    turn: Turn


class ServerService:
    """Runs the sessions that it owns. Its subflows come by its Reception."""

    def __init__(
        self,
        loop: Loop,
        config: ServerConfig,
        clients: Clients,
        index: int,
        sockets: list[socket.socket],
        handoff: Handoff,
        limits: ServerLimits | None = None,
        certificates: ServerTls | None = None,
        on_stream: Callable[[ServerSession, Stream], None] | None = None,
    ) -> None:
        """`sockets` are bound; `index` is this worker's, from 0; without `certificates` there is no
        TLS. `on_stream` takes the streams that clients open, whatever target they name, in place
        of the targets."""
        self._loop = loop
        self._config = config
        self._index = index
        self._limits = limits or config.session_limits()
        self._pool = BufferPool(soft_limit=self._limits.slab_memory)
        self._resolver = Resolver(loop)
        # Names that clients choose, which may hang, hold up no look-up of our own target.
        self._chosen = Resolver(loop)
        self._memory = Memory(self._limits.worker_memory)
        self._clients: dict[str, Shared] = {}
        self._sessions: dict[bytes, ServerSession] = {}
        self._lingering: set[ServerSession] = set()
        self.past = Totals()
        self.is_client = False
        self.target = str(config.target)
        self.clients = digest(clients)
        self._drain = Drain(loop, lambda: self.drivers, self._stop)
        self._on_stream = on_stream
        self.reception = Reception(
            loop,
            index,
            sockets,
            handoff,
            clients,
            certificates,
            self._limits,
            self._on_proved,
        )
        loop.call_later(_TICK, self._tick)
        loop.call_later(_REPORT, self._report)

    @property
    def sessions(self) -> list[Observed]:
        return list(self._sessions.values())

    @property
    def drivers(self) -> list[SessionDriver]:
        """Of all sessions, those that have ended and whose targets still read included."""
        return [session.driver for session in (*self._sessions.values(), *self._lingering)]

    def drain(self, timeout: float | None, done: Callable[[], None]) -> None:
        """Take no new streams, wait up to `timeout` seconds for the open ones (None: as long as
        it takes), reset those that are left, then call `done`."""
        if not self._drain.begun:
            self._drain.begin(done)
            self.reception.close()
            for session in list(self._sessions.values()):
                session.driver.session.drain()
                session.driver.progress()
            self._drain.check()
        self._drain.limit(timeout)

    # --- clients ------------------------------------------------------------------------------

    def set_clients(self, clients: Clients) -> None:
        """Let in `clients` from now on, and end the sessions of all others."""
        self.reception.clients = clients
        self.clients = digest(clients)
        for session in list(self._sessions.values()):
            if clients.get(session.client) != session.verifier:
                session.driver.end(SessionCode.REVOKED, "this client was revoked")

    def set_certificates(self, certificates: ServerTls | None) -> None:
        """Use this certificate for new connections."""
        if certificates is not None:
            self.reception.certificates = certificates

    # --- subflows -----------------------------------------------------------------------------

    def _on_proved(
        self, sock: socket.socket, tls: Tls | None, handshake: ServerHandshake, peer: str
    ) -> None:
        """The client holds its key: let it into its session, or into a new one."""
        request = handshake.request
        assert request is not None
        try:
            session = self._session_for(handshake, request, peer)
        except RefusedError as refused:
            lines, client = self._loop.lines, request.client
            lines.info(log, client, "subflow from %s refused: %s", peer, refused)
            refuse(self._loop, sock, tls, handshake.refusal(refused))
            return
        # The client forgets a stream a little sooner than we do, so it gets some less.
        streams = max(1, self._limits.max_streams * 7 // 8)
        grant = Grant(
            session.session_id, self._limits.floor_window, streams, self._limits.opens_per_second
        )
        try:
            sock.send(sealed(tls, handshake.welcome(grant)))
        except OSError as error:
            lines, client = self._loop.lines, request.client
            lines.info(log, client, "subflow from %s lost: %s", peer, error.strerror)
            self._loop.unwatch(sock.fileno())
            sock.close()
            return
        role = Role.from_wire(request.role)
        session.driver.attach(sock, request.subflow, peer, None, handshake.early, role, tls)

    def _session_for(self, handshake: ServerHandshake, request: Hello, peer: str) -> ServerSession:
        """The session that the client asks for. Raises RefusedError."""
        # It may have been revoked since its HELLO.
        if self.reception.clients.get(request.client) != handshake.verifier:
            raise RefusedError(RefuseCode.KEY, WRONG_KEY)
        if not request.session:
            if self._drain.begun:
                raise RefusedError(RefuseCode.DRAINING, "the server is shutting down")
            if len(self._sessions) >= self._limits.max_sessions:
                raise RefusedError(RefuseCode.LIMIT, "too many sessions")
            self._check_subflows(self._client(request.client).quota)
            return self._new_session(handshake, request.client, peer)
        session = self._sessions.get(request.session)
        if session is None:
            raise RefusedError(RefuseCode.UNKNOWN_SESSION, "unknown session")
        if session.client != request.client or not handshake.may_join(session.secret):
            raise RefusedError(RefuseCode.KEY, "not a member of this session")
        self._check_subflows(session.session.holding.client)
        if not session.driver.session.may_attach(request.subflow):
            raise RefusedError(RefuseCode.LIMIT, "too many subflows in this session")
        return session

    def _check_subflows(self, client: ClientQuota) -> None:
        if client.subflows_left <= 0:
            most = self._limits.max_client_subflows
            text = f"too many subflows of this client: the limit is max_client_subflows = {most}"
            raise RefusedError(RefuseCode.LIMIT, text)

    # --- sessions -----------------------------------------------------------------------------

    def _client(self, name: str) -> Shared:
        """What the sessions of a client share."""
        found = self._clients.get(name)
        if found is None:
            limits = self._limits
            quota = ClientQuota(
                limits.max_client_streams,
                limits.max_client_subflows,
                Bucket(limits.opens_per_second, self._loop.now),
            )
            found = self._clients[name] = Shared(quota, Turn(self._loop))
        return found

    def _new_session(self, handshake: ServerHandshake, client: str, peer: str) -> ServerSession:
        shared = self._client(client)
        if shared.quota.sessions >= self._limits.max_client_sessions:
            raise RefusedError(RefuseCode.LIMIT, "too many sessions of this client")
        session_id = new_session_id(self._index)
        engine = Session(
            opener=False,
            limits=self._limits,
            now=self._loop.now,
            memory=self._memory,
            client=shared.quota,
        )
        shared.quota.sessions += 1
        driver = SessionDriver(
            self._loop,
            self._pool,
            engine,
            partial(self._on_opened, session_id),
            partial(self._on_session_ended, session_id),
            shared.turn,
            whose=client,
        )
        session = ServerSession(
            session_id, handshake.session_secret(), driver, client, handshake.verifier, peer
        )
        self._sessions[session_id] = session
        return session

    def _on_session_ended(self, session_id: bytes, code: SessionCode, reason: str) -> None:
        session = self._sessions.pop(session_id)
        self.past.add(totals(session.session))
        if session.driver.relays:
            # Complete streams whose targets still read. It has its place until they have.
            self._lingering.add(session)
        else:
            session.session.holding.client.sessions -= 1
        level = logging.INFO if code in _QUIET_ENDS else logging.WARNING
        whose = f"{session_id.hex()[:12]} of {session.client}".removesuffix(f" of {UNNAMED}")
        self._loop.lines.log(log, level, session.client, "session %s ended: %s", whose, reason)
        self._drain.check()

    def _on_opened(self, session_id: bytes, stream: Stream) -> None:
        """The client opened a stream: connect it to the target."""
        if stream.reset_code is not None:
            return
        if self._drain.begun:
            stream.reset(ResetCode.DRAINING)
            return
        session = self._sessions[session_id]
        if self._on_stream is not None:
            self._on_stream(session, stream)
            return
        if not stream.target:
            Outgoing(self._loop, self._resolver, self._config, session, stream, self._config.target)
            return
        rules = self._allowed(session)
        target = _chosen(stream.target)
        if target is None or not targets.is_possible(rules, target):
            shown = target or repr(stream.target[:_SHOWN])
            text = "client %s: target %s is not allowed"
            self._loop.lines.warning(log, session.client, text, session.peer, shown)
            stream.reset(ResetCode.NOT_ALLOWED)
            return
        permits = partial(targets.is_allowed, rules, target)
        Outgoing(self._loop, self._chosen, self._config, session, stream, target, permits)

    def _allowed(self, session: ServerSession) -> tuple[Rule, ...]:
        """The targets that the client of a session may choose."""
        return tuple(rule for rule in self._config.allow if rule.is_for(session.client))

    def _tick(self) -> None:
        if self._drain.over:
            return
        for session in [one for one in self._lingering if not one.driver.relays]:
            self._lingering.remove(session)
            session.session.holding.client.sessions -= 1
        self._drain.check()
        self._pool.trim()
        self._loop.call_later(_TICK, self._tick)

    def _report(self) -> None:
        """Say once a second what was refused, however much it is."""
        if self._drain.over:
            return  # a timer of the loop would keep this service for as long as that runs
        for name, client in self._clients.items():
            for limit, count in client.quota.take_refused().items():
                self._loop.lines.warning(
                    log,
                    name,
                    "%s%d streams refused: the limit is %s = %g",
                    f"client {name}: " if name else "",
                    count,
                    limit,
                    getattr(self._limits, limit),
                )
        self._loop.call_later(_REPORT, self._report)

    # --- the end ------------------------------------------------------------------------------

    def _stop(self) -> None:
        for session in list(self._sessions.values()):
            # NORMAL says that what the client has opened since was not even looked at.
            code = SessionCode.NORMAL if session.session.is_over else SessionCode.SHUTDOWN
            session.driver.end(code, "the server is shutting down")
        self._resolver.close()
        self._chosen.close()


_QUIET_ENDS = (SessionCode.NORMAL, SessionCode.SHUTDOWN, SessionCode.REVOKED)

_SHOWN = 100
"""Characters of a target that cannot be read, in a log line."""


def _chosen(text: str) -> Endpoint | None:
    """The target that a client has named; None if it is none."""
    try:
        target = Endpoint.parse(text)
    except ConfigError:
        return None
    return None if target.host == ANY_HOST or not target.port else target
