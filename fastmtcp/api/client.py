"""Connections from Python: Client, and create_connection(), which makes one for itself."""

from __future__ import annotations

import socket
from collections.abc import Collection
from functools import partial
from typing import Literal, Self

from fastmtcp.api import arguments
from fastmtcp.api.answer import Answer
from fastmtcp.api.arguments import Address, File, Key, Paths
from fastmtcp.api.connection import Connection, Joined, Names
from fastmtcp.api.core import Core, Handle
from fastmtcp.api.errors import timeout_error
from fastmtcp.api.opening import Opening
from fastmtcp.client.service import ClientService
from fastmtcp.client.session import ClientSession
from fastmtcp.config.client import ClientConfig
from fastmtcp.config.credentials import Credentials
from fastmtcp.config.limits import within
from fastmtcp.driver.relay import Relay
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.io import cgroup


class _GlobalDefault(float):
    """Stands for socket.getdefaulttimeout() at the time of the call."""

    def __repr__(self) -> str:
        return "socket.getdefaulttimeout()"


GLOBAL_DEFAULT = _GlobalDefault()


def resolve_timeout(timeout: float | None) -> float | None:
    """Seconds, or None for no limit. Raises ValueError for a negative one."""
    if timeout is GLOBAL_DEFAULT:
        return socket.getdefaulttimeout()
    if timeout is not None and timeout < 0:
        raise ValueError("timeout: must not be negative")
    return timeout


class ClientCore(Core):
    """The Client's part on the loop."""

    service: ClientService

    def __init__(self, ready: arguments.Ready) -> None:
        super().__init__(ready.config.drain_timeout)
        self.config: ClientConfig = ready.config
        self.openings: set[Opening] = set()
        self.trouble = ""
        self._credentials = ready.credentials

    def start(self) -> None:
        """Make the service, which begins to connect. On the loop."""
        self.service = ClientService(
            self.thread.loop,
            self.config,
            self._credentials,
            [],
            self._on_pool,
            within(self.config.session_limits(), cgroup.memory_limit(), 1),
        )
        self.service.on_moved = self._on_moved
        self.sample_rates()

    def opening(self, target: str, *, wait: bool) -> Opening:
        """A stream to `target`, which begin() opens; `wait` is as in Opening."""
        return Opening(
            self.service,
            self.thread.loop,
            self.config.connect_timeout,
            self.join,
            self.openings.discard,
            target,
            wait=wait,
        )

    def begin(self, opening: Opening) -> None:
        """Open the stream. On the loop."""
        self.openings.add(opening)
        opening.begin()

    def join(self, session: ClientSession, stream: Stream, target: str) -> Joined:
        """Make a socket for the user the application's end of a stream."""

        def relay(connection: Connection, inner: socket.socket) -> Relay:
            on_close = partial(self.gone, connection)
            return self.service.join(session, stream, inner, on_close=on_close)

        return self.connect(session, stream, target, relay)

    def forget_waiting(self) -> None:
        for opening in list(self.openings):
            opening.cancel()

    def shut(self, still_open: Collection[Names]) -> None:
        self.closing = True
        for opening in list(self.openings):
            opening.shut()
        super().shut(still_open)

    def crashed(self) -> None:
        for opening in list(self.openings):
            opening.shut()
        super().crashed()

    def _on_moved(self, session: ClientSession, stream: Stream) -> None:
        for opening in list(self.openings):
            opening.moved(session, stream)
        for connection in self.connections.values():
            if connection.stream is stream:
                connection.session = session

    def _on_pool(self, _up: int, _wanted: int, trouble: str) -> None:
        self.trouble = trouble
        for opening in list(self.openings):
            opening.check_server()


class Connecting:
    """A stream that is opened for a caller who waits, on any thread or in asyncio:

        with Connecting(core, address, wait=True) as connecting:
            sock, connection = connecting.begin().result()

    If the waiting fails, times out or is interrupted, nothing of the stream is left.
    """

    def __init__(self, core: ClientCore, address: Address | None, *, wait: bool) -> None:
        target = arguments.target_text(address)
        core.thread.check_process()
        self._core = core
        self._opening: Opening | None = core.opening(target, wait=wait)

    def begin(self) -> Answer[Joined]:
        assert self._opening is not None
        self._core.thread.call(self._core.begin, self._opening)
        return self._opening.answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Else the error, its traceback and the answer would hold one another, and us.
        opening, self._opening = self._opening, None
        if kind is not None and opening is not None:
            self._core.thread.post(opening.cancel)


class Client(Handle[ClientCore]):
    """A pool of connections to a server, for many streams. Safe to use from any thread.

    It begins to connect at once and keeps its connections up, like fastmtcp-client. connect()
    gives a socket for each stream.

    Args:
        server: `HOST:PORT[,OPTION...]` as for `fastmtcp-client --server`, `(host, port)`, or a
            list of these: the paths to one server. Only with a link it may be left out.
        connections: TCP connections on each path that does not say how many, 1 to 64: a number,
            or `MIN-MAX`, within which it finds the number that is worth it; None is 2-16.
        key: the key, 32 bytes or 64 hexadecimal digits.
        key_file: a file with the key, as `fastmtcp keygen` makes it. Without a key the server
            must be one without a key too.
        link: the link that the server gave this client: address, name, key and the fingerprint
            of the certificate, with which all is encrypted.
        link_file: a file with the link, which only its owner has access to.
        source_address: `(address, 0)`: the local IP address of all paths without `bind=`.
        egress: `auto` makes one path of each local address, see `fastmtcp-client --egress`.
        express: one more connection, for small streams beside bulk.
        connect_timeout: seconds that the server may take to accept a connection, 0.1 to 600.
        session_timeout: seconds that streams wait while no connection to the server is up.
        drain_timeout: seconds without any progress after which close() gives up what is on its
            way.

    Raises:
        ConfigError: an argument is wrong; one line that names it. A ValueError.
    """

    _NAME = "Client"

    def __init__(
        self,
        server: Paths | None = None,
        *,
        connections: int | str | None = None,
        key: Key | None = None,
        key_file: File | None = None,
        link: str | None = None,
        link_file: File | None = None,
        source_address: Address | None = None,
        egress: Literal["auto", "off"] = "off",
        express: bool = True,
        connect_timeout: float = 10.0,
        session_timeout: float = 120.0,
        drain_timeout: float = 30.0,
    ) -> None:
        ready = arguments.client(
            server,
            key,
            key_file,
            link,
            link_file,
            source_address,
            connections=connections,
            egress=egress,
            express=express,
            connect_timeout=connect_timeout,
            session_timeout=session_timeout,
            drain_timeout=drain_timeout,
        )
        self._start(ready)

    @classmethod
    def from_config(cls, config: ClientConfig, credentials: Credentials) -> Self:
        """A Client with the settings of fastmtcp-client; those of its listening side are not
        used."""
        self = cls.__new__(cls)
        self._start(arguments.Ready(config, credentials))
        return self

    def _start(self, ready: arguments.Ready) -> None:
        core = ClientCore(ready)
        try:
            core.thread.call(core.start).result()
        except BaseException:
            core.thread.leave(core)
            raise
        self._hold(core)

    def connect(
        self,
        address: Address | None = None,
        timeout: float | None = GLOBAL_DEFAULT,
        *,
        wait: bool = True,
    ) -> socket.socket:
        """A connected socket whose bytes travel over all connections of the pool.

        It is one end of a TCP connection within this machine, and everything takes it that takes
        a TCP socket. Its end, half-close and reset are passed on as they are. getsockname() and
        getpeername() are those of that inner connection; fastmtcp.info() tells of the outer ones.

        Args:
            address: the target, as `(host, port)`, if the server lets clients choose; None for
                the server's own target.
            timeout: seconds for all of it, and then the socket's own timeout, as with
                socket.create_connection(); None for no limit.
            wait: wait until the target has accepted the connection. If false, return at once, as
                fastmtcp-client does for its applications: the first bytes then travel with the
                opening, one round trip sooner, and a target that refuses shows as a reset of the
                socket.

        Raises:
            ConnectionRefusedError: the target or the server refused the connection.
            PermissionError: the server does not let clients choose this target.
            TimeoutError: not connected within `timeout`.
            HandshakeError: the server has another key, or is none.
            OSError: another reason, as its errno and text say; EBADF after close().
            ConfigError: `address` is no host and port.
        """
        sock, _ = self._connect(address, timeout, wait=wait)
        return sock

    def _connect(self, address: Address | None, timeout: float | None, *, wait: bool) -> Joined:
        """As connect(), with what belongs to the socket."""
        seconds = resolve_timeout(timeout)
        with Connecting(self._core, address, wait=wait) as connecting:
            sock, connection = _result(connecting.begin(), seconds, self._core)
        sock.settimeout(seconds)
        return sock, connection

    def __repr__(self) -> str:
        paths = ", ".join(map(str, self._core.config.server or ()))
        return f"<fastmtcp.Client to {paths}{' closed' if self._core.closed.done else ''}>"


def _result(answer: Answer[Joined], timeout: float | None, core: ClientCore) -> Joined:
    try:
        return answer.result(timeout)
    except TimeoutError as error:
        if error.errno is not None:
            raise
        raise timeout_error(core.trouble) from None
    finally:
        del answer


def create_connection(
    address: Address | None,
    timeout: float | None = GLOBAL_DEFAULT,
    source_address: Address | None = None,
    *,
    server: Paths | None = None,
    connections: int | str | None = None,
    key: Key | None = None,
    key_file: File | None = None,
    link: str | None = None,
    link_file: File | None = None,
    egress: Literal["auto", "off"] = "off",
    express: bool = True,
    connect_timeout: float = 10.0,
    session_timeout: float = 120.0,
    drain_timeout: float = 30.0,
    wait: bool = True,
) -> socket.socket:
    """Connect to `address` over many TCP connections to `server`, as socket.create_connection().

    The connections are made for this one stream and end with it; a Client keeps them for many.
    For arguments and errors see Client and Client.connect().
    """
    client = Client(
        server,
        connections=connections,
        key=key,
        key_file=key_file,
        link=link,
        link_file=link_file,
        source_address=source_address,
        egress=egress,
        express=express,
        connect_timeout=connect_timeout,
        session_timeout=session_timeout,
        drain_timeout=drain_timeout,
    )
    try:
        return client.connect(address, timeout, wait=wait)
    finally:
        client.release()
