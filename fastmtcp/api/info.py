"""What is behind a socket of the library."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

import msgspec

from fastmtcp.api.connection import Connection
from fastmtcp.api.thread import find_connection
from fastmtcp.io.loop import Loop
from fastmtcp.status import document, report


class Socketlike(Protocol):
    """A socket.socket, ssl.SSLSocket, asyncio's TransportSocket ..."""

    def getsockname(self) -> Any: ...

    def getpeername(self) -> Any: ...


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """A stream and its session. Bytes, seconds, bytes per second; `up` is from the client to the
    server. The fields of the parts are those of `fastmtcp status --json`."""

    target: str
    """The target that the client named, as HOST:PORT; empty for the server's own."""
    is_client: bool
    """True at the side that has connected, false at the one that has accepted."""
    stream: document.StreamStatus
    session: document.SessionStatus
    """With `paths` and `subflows`: addresses, rates, round-trip times. `streams` is empty."""


def info(sock: Socketlike) -> Info:
    """What is behind `sock`, a socket that this module made, or a wrapper or copy of one.

    getsockname() and getpeername() of such a socket are the two ends of a connection within this
    machine; the addresses of the subflows are here.

    Raises:
        ValueError: it is no such socket, or its stream is over.
        OSError: it is closed, ENOTCONN if its connection is.
    """
    found = find_connection((sock.getsockname(), sock.getpeername()))
    if found is None:
        raise ValueError("no stream of fastmtcp belongs to this socket, or it is over")
    thread, connection = found
    return thread.call(_look, connection, thread.loop).result()


def _look(connection: Connection, loop: Loop) -> Info:
    now = loop.clock()
    observed = connection.session
    view = report.View(observed, connection.rates, now)
    totals = report.totals_of(observed, connection.rates, now)
    session = _last(view.session(totals, report.MAX_SUBFLOWS, 0, ""))
    return Info(
        target=connection.target,
        is_client=connection.is_client,
        stream=view.stream(connection.stream, ""),
        session=session,
    )


def _last(steps: Generator[None, None, document.SessionStatus]) -> document.SessionStatus:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: document.SessionStatus = end.value
            return found
