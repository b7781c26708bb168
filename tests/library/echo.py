"""Servers of the library on a thread of the test."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import fastmtcp
from fastmtcp.api.arguments import Address
from fastmtcp.api.server import Handler

from tests.io.net import WAIT


def echo(sock: socket.socket, _address: Address) -> None:
    """Send everything back, then the end behind the peer's end."""
    with contextlib.suppress(OSError):  # it may be reset at any moment
        while part := sock.recv(1 << 18):
            sock.sendall(part)
        sock.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def serve(server: fastmtcp.Server, handler: Handler) -> Iterator[None]:
    """serve_forever() until the end of the block; the server is closed then."""
    thread = threading.Thread(target=server.serve_forever, args=(handler,))
    thread.start()
    try:
        yield
    finally:
        server.close()
        thread.join(WAIT)
        assert not thread.is_alive()
