"""A stream whose application is the user of the library: its socket and what is behind that."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Container, Iterable
from typing import Protocol

from fastmtcp.driver.relay import Relay
from fastmtcp.driver.session import SessionDriver
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.status.document import Observed
from fastmtcp.status.rates import Rates

Names = tuple[object, object]
"""getsockname() and getpeername() of the user's socket: it may be wrapped, copied or passed on to
another process, and keeps them."""


def open_ends(wanted: Container[Names]) -> dict[int, Names]:
    """The descriptors of this process that are one of the `wanted`, whoever holds them.

    TCP cannot tell the other end whether a socket was closed while its last bytes still wait in
    its buffer, and the object we gave away may have been wrapped, copied or detached.
    """
    found: dict[int, Names] = {}
    for fd in _descriptors():
        try:
            sock = socket.socket(fileno=fd)
        except OSError:  # no socket, or closed by another thread
            continue
        try:
            names = (sock.getsockname(), sock.getpeername())
        except OSError:
            continue
        finally:
            sock.detach()
        if names in wanted:
            found[fd] = names
    return found


def _descriptors() -> Iterable[int]:
    """Those that may be open."""
    try:
        return [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        # No /proc. More than these takes a good part of a second.
        return range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 16))


class Driven(Observed, Protocol):
    """A session on the loop."""

    @property
    def driver(self) -> SessionDriver: ...


class Connection:
    """Joins a socket of the user with a stream. Made on the loop."""

    __slots__ = ("is_client", "names", "rates", "relay", "session", "stream", "target")

    def __init__(
        self,
        session: Driven,
        stream: Stream,
        inner: socket.socket,
        rates: Rates,
        *,
        is_client: bool,
        target: str,
    ) -> None:
        self.session = session
        self.stream = stream
        self.rates = rates
        self.is_client = is_client
        self.relay: Relay | None = None
        self.target = target
        self.names: Names = (inner.getpeername(), inner.getsockname())

    @property
    def is_complete(self) -> bool:
        """True if both directions have ended well."""
        return self.stream.reset_code is None and self.stream.finished


Joined = tuple[socket.socket, Connection]
"""The user's end, and what is behind it."""
