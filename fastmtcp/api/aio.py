"""The library for asyncio: open_connection() and start_server(), like those of asyncio.

Nothing here blocks the caller's event loop: the sessions live on the library's own thread, and
what may wait (a key file, a name to bind to) is done on a thread of asyncio's executor.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl as ssl_module
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Literal, Self

from fastmtcp.api.answer import answer_of
from fastmtcp.api.arguments import Address, File, Key, Paths
from fastmtcp.api.client import Client, Connecting
from fastmtcp.api.connection import open_ends
from fastmtcp.api.errors import timeout_error
from fastmtcp.api.server import Server
from fastmtcp.errors import ConfigError
from fastmtcp.io.tcp import abort
from fastmtcp.status.document import WorkerReport

log = logging.getLogger("fastmtcp.library")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Callback = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]

_LIMIT = 1 << 16


async def open_connection(
    address: Address | None = None,
    *,
    client: Client | None = None,
    server: Paths | None = None,
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
    timeout: float | None = None,
    limit: int = _LIMIT,
    ssl: ssl_module.SSLContext | None = None,
    server_hostname: str | None = None,
    wait: bool = True,
) -> Streams:
    """Connect to `address` as asyncio.open_connection() does, over many TCP connections.

    Args:
        client: the pool to use; or else `server` or `link`, and the arguments of Client, for a
            pool that is made for this stream and ends with it.
        timeout: seconds for all of it, TLS included; None for no limit.
        limit: of the StreamReader's buffer, in bytes.
        ssl, server_hostname: TLS inside the stream, as for asyncio.open_connection().
        wait: as for Client.connect().

    Raises:
        The errors of Client and Client.connect(). When it is cancelled or times out, nothing of
        the connection is left.
    """
    if client is not None and not (server is None and link is None and link_file is None):
        raise ConfigError("client excludes server and link; give one of them")
    try:
        async with asyncio.timeout(timeout):
            if client is not None:
                sock = await _connect(client, address, wait=wait)
            else:
                make = partial(
                    Client,
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
                )
                making = _Making(make)
                try:
                    made = await asyncio.to_thread(making.run)
                    sock = await _connect(made, address, wait=wait)
                finally:
                    making.release()
            try:
                return await asyncio.open_connection(
                    sock=sock,
                    limit=limit,
                    ssl=ssl,
                    server_hostname=server_hostname or (address[0] if ssl and address else None),
                )
            except BaseException:
                sock.close()
                raise
    except TimeoutError as error:
        raise (error if error.errno else timeout_error()) from None


class _Making:
    """A Client that is made on a thread, for one stream. The thread goes on when the task that
    waits for it is cancelled, and what it has made then must not live for as long as that task is
    remembered."""

    def __init__(self, make: Callable[[], Client]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._released = False
        self._client: Client | None = None

    def run(self) -> Client:
        client = self._make()
        with self._lock:
            if self._released:
                client.release()
            else:
                self._client = client
        return client

    def release(self) -> None:
        """Let it end with its last socket, now or as soon as it is made."""
        with self._lock:
            self._released = True
            if self._client is not None:
                self._client.release()
                self._client = None


async def _connect(client: Client, address: Address | None, *, wait: bool) -> socket.socket:
    with Connecting(client._core, address, wait=wait) as connecting:
        sock, _ = await answer_of(connecting.begin())
    return sock


async def start_server(
    callback: Callback,
    listen: str | Address | Sequence[str | Address] = "127.0.0.1:7700",
    *,
    key: Key | None = None,
    key_file: File | None = None,
    clients_file: File | None = None,
    certificate: File | None = None,
    certificate_key: File | None = None,
    session_timeout: float = 120.0,
    limit: int = _LIMIT,
    ssl: ssl_module.SSLContext | None = None,
) -> AsyncServer:
    """Accept streams as asyncio.start_server() does: `callback(reader, writer)` is called for
    each, and if it is a coroutine function, runs as a task.

    For the arguments and errors see Server; `limit` and `ssl` are as for asyncio.start_server().
    """
    make = partial(
        Server,
        listen,
        key=key,
        key_file=key_file,
        clients_file=clients_file,
        certificate=certificate,
        certificate_key=certificate_key,
        session_timeout=session_timeout,
    )
    server = await asyncio.to_thread(make)
    return AsyncServer(server, callback, limit, ssl)


class AsyncServer:
    """What start_server() gives; like asyncio.Server."""

    def __init__(
        self,
        server: Server,
        callback: Callback,
        limit: int,
        ssl: ssl_module.SSLContext | None,
    ) -> None:
        self._server = server
        self._callback = callback
        self._limit = limit
        self._ssl = ssl
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        core = server._core
        core.thread.post(partial(core.give_to, self._on_accepted))

    @property
    def addresses(self) -> list[Address]:
        """Where it listens, as `(host, port)`."""
        return self._server.addresses

    def is_serving(self) -> bool:
        return not self._closing

    async def status(self) -> WorkerReport:
        """What it is doing, see Client.status()."""
        return await asyncio.to_thread(self._server.status)

    async def set_clients(self, clients_file: File | None = None) -> None:
        """Read the list of clients again, or take another one, see Server.set_clients()."""
        await asyncio.to_thread(self._server.set_clients, clients_file)

    def close(self) -> None:
        """Accept nothing more. Open connections go on."""
        self._closing = True
        self._server.release()

    def abort_clients(self) -> None:
        """Accept nothing more, and reset the connections that are still open."""
        self._closing = True
        core = self._server._core
        still_open = list(open_ends(core.connections).values())
        core.thread.post(partial(core.shut, still_open))

    async def wait_closed(self) -> None:
        """Wait until close() was called and the last connection has ended."""
        core = self._server._core
        await answer_of(core.closed)
        await asyncio.to_thread(core.thread.join_if_ending)

    async def serve_forever(self) -> None:
        """Serve until it is cancelled or closed; then it is closed."""
        try:
            await answer_of(self._server._core.closed)
        finally:
            self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        await self.wait_closed()

    def _on_accepted(self, sock: socket.socket) -> None:
        """On the library's loop."""
        try:
            self._loop.call_soon_threadsafe(self._begin, sock)
        except RuntimeError:  # the event loop is closed
            abort(sock)

    def _begin(self, sock: socket.socket) -> None:
        task = self._loop.create_task(self._serve(sock))
        self._tasks.add(task)
        task.add_done_callback(partial(self._served, sock))

    def _served(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # perhaps before it began
            abort(sock)

    async def _serve(self, sock: socket.socket) -> None:
        try:
            reader = asyncio.StreamReader(limit=self._limit, loop=self._loop)
            protocol = asyncio.StreamReaderProtocol(reader, self._callback, loop=self._loop)
            sock.setblocking(False)
            await self._loop.connect_accepted_socket(lambda: protocol, sock, ssl=self._ssl)
        except (OSError, ssl_module.SSLError) as error:
            sock.close()
            log.info("stream ended before it was served: %s", error)
        except BaseException:
            sock.close()
            raise
