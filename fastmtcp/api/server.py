"""Streams into Python: a Server in this process."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import islice

import msgspec

from fastmtcp.api import arguments
from fastmtcp.api.answer import Answer
from fastmtcp.api.arguments import Address, File, Key
from fastmtcp.api.client import resolve_timeout
from fastmtcp.api.connection import Connection, Names
from fastmtcp.api.core import Core, Handle
from fastmtcp.api.errors import closed_error, timeout_error
from fastmtcp.config.limits import within
from fastmtcp.config.server import ServerConfig
from fastmtcp.driver.relay import Relay
from fastmtcp.endpoint import Endpoint
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.wire.errors import ResetCode
from fastmtcp.errors import ConfigError
from fastmtcp.io import cgroup, resolver
from fastmtcp.io.listener import bind, bind_those_here
from fastmtcp.io.tcp import abort, tune
from fastmtcp.security.identity import Clients
from fastmtcp.server.service import ServerService
from fastmtcp.server.session import ServerSession

log = logging.getLogger("fastmtcp.library")

Arrived = tuple[ServerSession, Stream]
Accepted = tuple[socket.socket, Address]
Handler = Callable[[socket.socket, Address], object]


class _NoOtherWorker:
    """This process is the only worker, so every session is its own."""

    def knows(self, owner: int) -> bool:
        return False

    def send(self, owner: int, sock: socket.socket, peer: str, tls: bool, until: float) -> bool:
        return False


class _Unaccepted:
    """A stream that waits for accept()."""

    def __init__(self, core: ServerCore, arrived: Arrived) -> None:
        self._core = core
        self.arrived = arrived

    def update(self) -> None:
        """The stream was updated: all that matters now is its end."""
        if self.arrived[1].reset_code is not None:
            with contextlib.suppress(ValueError):
                self._core.backlog.remove(self)
            self._core.admit()


class ServerCore(Core):
    """The Server's part on the loop."""

    service: ServerService

    def __init__(
        self, ready: arguments.Ready, sockets: list[socket.socket], limit: int, forwards: bool
    ) -> None:
        super().__init__(ready.config.drain_timeout)
        self.config: ServerConfig = ready.config
        self.forwards = forwards
        self.backlog: deque[_Unaccepted] = deque()
        self._on_accepted: Callable[[socket.socket], None] | None = None
        self._waiters: deque[Answer[Accepted]] = deque()
        self._limit = limit
        self._clients = ready.credentials
        self.own_key: bytes | None = ready.own
        self._certificates = ready.certificates
        self._sockets = sockets

    def start(self) -> None:
        """Make the service, which begins to accept. On the loop."""
        self.service = ServerService(
            self.thread.loop,
            self.config,
            self._clients,
            0,
            self._sockets,
            _NoOtherWorker(),
            within(self.config.session_limits(), cgroup.memory_limit(), 1),
            self._certificates,
            on_stream=None if self.forwards else self._on_stream,
        )
        self.sample_rates()

    def set_clients(self, config: ServerConfig, clients: Clients) -> None:
        self.config = config
        self.service.set_clients(clients)

    def next(self, answer: Answer[Accepted]) -> None:
        """Set `answer` to the next stream that nobody has accepted."""
        if self.closing:
            if answer.claim():
                answer.set_exception(closed_error("Server"))
            return
        self._waiters.append(answer)
        self._serve()
        self.admit()
        for driver in self.service.drivers:
            driver.progress()

    def give_to(self, on_accepted: Callable[[socket.socket], None]) -> None:
        """Call `on_accepted` with each stream, instead of accept(); also with those that have come
        already."""
        self._on_accepted = on_accepted
        self._serve()

    def forget_waiting(self) -> None:
        self._waiters.clear()

    def shut(self, still_open: Collection[Names]) -> None:
        self.closing = True
        self._end_waiting()
        super().shut(still_open)

    def orphan(self) -> None:
        """The Server was dropped or released: its streams cannot be accepted any more."""
        if not self.forwards:
            self._refuse_all()
        super().orphan()

    def crashed(self) -> None:
        self._end_waiting()
        super().crashed()

    def _on_stream(self, session: ServerSession, stream: Stream) -> None:
        arrived = (session, stream)
        stream.watcher = waiting = _Unaccepted(self, arrived)
        self.backlog.append(waiting)
        self._serve()
        self.admit()

    def admit(self) -> None:
        """As with a listening socket, the first ones are connected before accept() is called, and
        those behind wait."""
        for waiting in islice(self.backlog, self._limit):
            waiting.arrived[1].confirm()

    def _serve(self) -> None:
        on_accepted = self._on_accepted
        if on_accepted is not None:
            while self.backlog:
                arrived = self.backlog.popleft().arrived
                try:
                    on_accepted(self._join(arrived))
                except OSError as error:
                    session, text = arrived[0], "stream from %s refused: %s"
                    lines = self.thread.loop.lines
                    lines.warning(log, session.client, text, session.peer, error)
        while self.backlog and self._waiters:
            answer = self._waiters.popleft()
            if answer.claim():  # else it has timed out
                arrived = self.backlog.popleft().arrived
                try:
                    answer.set_result((self._join(arrived), client_address(arrived)))
                except OSError as error:
                    answer.set_exception(error)

    def _join(self, arrived: Arrived) -> socket.socket:
        """A socket whose other end is the target's end of a stream; if none can be made, the
        stream is refused."""
        session, stream = arrived

        def relay(connection: Connection, inner: socket.socket) -> Relay:
            tune(inner)
            stream.confirm()
            on_close = partial(self.gone, connection)
            return session.driver.add_relay(inner, stream, on_close=on_close)

        try:
            sock, _ = self.connect(session, stream, stream.target, relay)
        except BaseException:
            self._refuse(arrived)
            raise
        session.driver.progress()
        return sock

    def _refuse(self, arrived: Arrived) -> None:
        """Nobody takes this stream."""
        session, stream = arrived
        stream.reset(ResetCode.OVERLOADED)
        session.driver.progress()

    def _refuse_all(self) -> None:
        while self.backlog:
            self._refuse(self.backlog.popleft().arrived)

    def _end_waiting(self) -> None:
        self._refuse_all()
        while self._waiters:
            answer = self._waiters.popleft()
            if answer.claim():
                answer.set_exception(closed_error("Server"))


def bind_all(endpoints: Sequence[Endpoint]) -> list[socket.socket]:
    """Bound sockets for those addresses of `endpoints` that this machine has. Looks names up,
    which blocks.

    Raises:
        OSError: as bind(2), with the address in its text.
        StartError: the name is unknown.
    """
    bound: list[socket.socket] = []

    def claim(address: resolver.Address) -> None:
        bound.append(bind(address, shared=False))

    try:
        for endpoint in endpoints:
            for words in bind_those_here(endpoint, claim):
                log.warning(words)
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return bound


def _name(file: File | None) -> str | None:
    return None if file is None else os.fspath(file)


class Server(Handle[ServerCore]):
    """Accepts clients in this process. Safe to use from any thread.

    Without `target` and `allow` each stream becomes a socket, which accept(), iteration or
    serve_forever() gives, whatever target it names; with one of them they are forwarded, as
    fastmtcp-server does.

    Args:
        listen: `HOST:PORT` or `(host, port)`, or a list of these. Port 0 lets the kernel choose;
            `addresses` then says which. Anything but loopback needs a key.
        key, key_file: as for Client.
        clients_file: the list of clients that `fastmtcp init server` makes; it is read again by
            set_clients() only.
        certificate, certificate_key: PEM files, such as those that it makes; with a certificate
            all is encrypted.
        target: where to forward streams to.
        allow: targets that clients may choose besides, as for `fastmtcp-server --allow`.
        backlog: streams that are connected before accept() takes them, 1 or more; further ones
            wait.
        connect_timeout: seconds that the target may take to accept a connection.
        session_timeout, drain_timeout: as for Client.

    Raises:
        ConfigError: an argument is wrong; one line that names it. A ValueError.
        OSError: the address cannot be bound.
    """

    _NAME = "Server"

    def __init__(
        self,
        listen: str | Address | Sequence[str | Address] = "127.0.0.1:7700",
        *,
        key: Key | None = None,
        key_file: File | None = None,
        clients_file: File | None = None,
        certificate: File | None = None,
        certificate_key: File | None = None,
        target: str | Address | None = None,
        allow: str | Sequence[str] = (),
        backlog: int = 128,
        connect_timeout: float = 10.0,
        session_timeout: float = 120.0,
        drain_timeout: float = 30.0,
    ) -> None:
        ready = arguments.server(
            listen,
            key,
            key_file,
            target,
            clients_file=_name(clients_file),
            tls=certificate is not None,
            certificate=_name(certificate),
            certificate_key=_name(certificate_key),
            allow=[allow] if isinstance(allow, str) else list(allow),
            connect_timeout=connect_timeout,
            session_timeout=session_timeout,
            drain_timeout=drain_timeout,
        )
        if backlog < 1:
            raise ConfigError("backlog: must be 1 or more")
        sockets = bind_all(ready.config.listen)
        self.addresses: list[Address] = [sock.getsockname()[:2] for sock in sockets]
        """Where it listens, as `(host, port)`."""
        core = ServerCore(ready, sockets, backlog, target is not None or bool(allow))
        try:
            core.thread.call(core.start).result()
        except BaseException:
            core.thread.leave(core)
            for sock in sockets:
                sock.close()
            raise
        self._hold(core)

    def accept(self, timeout: float | None = None) -> tuple[socket.socket, Address]:
        """The next stream: its socket, and the client's address as one of its connections has it.

        What is said of the socket at Client.connect() holds here as well; fastmtcp.info() has the
        target that the client named, if it did. `timeout` is in seconds, None for no limit.

        Raises:
            TimeoutError: no stream within `timeout`.
            OSError: EBADF if the Server is closed, meanwhile or before.
            ValueError: it forwards to a target.
        """
        core = self._core
        core.thread.check_process()
        if core.forwards:
            raise ValueError("this Server forwards to its target; make one without for accept()")
        seconds = resolve_timeout(timeout)
        answer: Answer[Accepted] = Answer()
        try:
            core.thread.call(core.next, answer)
            sock, address = answer.result(seconds)
        except TimeoutError:
            if answer.claim():
                raise timeout_error() from None
            sock, address = answer.result()
        except BaseException:
            if not answer.claim():
                answer.when_done(partial(_drop, answer))
            raise
        # As with socket.accept().
        sock.settimeout(socket.getdefaulttimeout())
        return sock, address

    def set_clients(self, clients_file: File | None = None) -> None:
        """Read the list of clients again, or take another one, and let in those and nobody else.
        The sessions of all others have ended when this returns. A `key` or `key_file` that the
        Server was made with goes on to count.

        Raises:
            ConfigError: the list cannot be read, or there is none; nothing has changed then.
            OSError: EBADF if the Server is closed.
        """
        core = self._core
        config = core.config
        if clients_file is not None:
            config = msgspec.structs.replace(config, clients_file=os.fspath(clients_file))
        if config.clients_file is None:
            raise ConfigError("clients_file: this Server has no list of clients; give one")
        clients = arguments.clients(config, core.own_key)
        if core.closing:
            raise closed_error(self._NAME)
        core.thread.call(core.set_clients, config, clients).result()

    def __iter__(self) -> Iterator[tuple[socket.socket, Address]]:
        """All streams, until the Server is closed."""
        while True:
            try:
                yield self.accept()
            except OSError:
                if self._core.closing:
                    return
                raise

    def serve_forever(self, handler: Handler) -> None:
        """Call `handler(socket, address)` for each stream, on a thread of its own, until the
        Server is closed. The socket is closed when the handler returns."""
        for sock, address in self:
            # A daemon: a handler that hangs must not keep the process from exiting.
            thread = threading.Thread(
                target=_handle, args=(handler, sock, address), name="fastmtcp-handler", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:
                # Of this stream only: there may be threads again for the next one.
                log.warning("a stream is reset: %s", error)
                abort(sock)

    def __repr__(self) -> str:
        where = ", ".join(str(Endpoint(host, port)) for host, port in self.addresses)
        return f"<fastmtcp.Server on {where}{' closed' if self._core.closed.done else ''}>"


def _drop(answer: Answer[Accepted]) -> None:
    """Reset the connection that nobody takes."""
    with contextlib.suppress(OSError):
        abort(answer.result()[0])


def client_address(arrived: Arrived) -> Address:
    """The far end of one of the session's connections; an empty host if none is left."""
    for subflow in list(arrived[0].session.subflows.values()):
        remote = arrived[0].socket_of(subflow).addresses()[1]
        if remote:
            endpoint = Endpoint.parse(remote)
            return endpoint.host, endpoint.port
    return "", 0


def _handle(handler: Handler, sock: socket.socket, address: Address) -> None:
    with sock:
        handler(sock, address)
