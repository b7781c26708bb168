"""Receives applications at a client's ways in, until it is known where they want to go."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import msgspec

from fastmtcp.config.ingress import WayIn
from fastmtcp.engine.wire.errors import ResetCode
from fastmtcp.errors import PeerError
from fastmtcp.io.loop import Loop
from fastmtcp.io.tcp import abort
from fastmtcp.proxy.header import HeaderReader
from fastmtcp.proxy.login import Login
from fastmtcp.proxy.preface import Preface, PrefaceParser, say_farewell
from fastmtcp.proxy.requests import ProxyRequest

log = logging.getLogger("fastmtcp.client")

MAX_PREFACES = 1024
"""Applications of one worker that have not said yet what they want: more are reset at once."""


class Arrival(msgspec.Struct):
    """An application whose stream can be opened."""

    sock: socket.socket
    peer: str
    """Its address, as a PROXY protocol header says or as we see it; empty at a unix socket."""
    target: str
    """Where it goes; empty for the server's own target."""
    early: bytes = b""
    """The first bytes of the stream, read already."""
    request: ProxyRequest | None = None
    """What it asked of the proxy, and wants an answer to."""

    def __str__(self) -> str:
        to = f" to {self.target}" if self.target else ""
        return f"connection from {self.peer or 'a unix socket'}{to}"


class Arrivals:
    """Calls `on_arrival` for each application that is ready; its socket is not blocking."""

    def __init__(
        self,
        loop: Loop,
        login: Login | None,
        accept_proxy: bool,
        on_arrival: Callable[[Arrival], None],
    ) -> None:
        """`login` is for the proxy; with `accept_proxy` all begin with a PROXY protocol header."""
        self._loop = loop
        self._login = login
        self._accept_proxy = accept_proxy
        self._on_arrival = on_arrival
        self._prefaces: set[Preface] = set()

    def accept(self, way: WayIn, sock: socket.socket, peer: str) -> None:
        """An application has connected at `way`."""
        arrival = Arrival(sock, peer, way.target)
        if self._accept_proxy:
            self._read_header(way, arrival)
        else:
            self._go_on(way, arrival)

    def turn_away(self, arrival: Arrival, code: ResetCode) -> None:
        """There is no stream for this one."""
        if arrival.request is None:
            self._loop.unwatch(arrival.sock.fileno())
            abort(arrival.sock)
        else:
            say_farewell(self._loop, arrival.sock, arrival.request.refused(code))

    def close(self) -> None:
        """Reset all that have not come through yet."""
        for preface in self._prefaces:
            preface.cancel()
        self._prefaces.clear()

    def _go_on(self, way: WayIn, arrival: Arrival) -> None:
        if way.kind == "forward":
            self._on_arrival(arrival)
        else:
            self._read_request(arrival)

    def _read_header(self, way: WayIn, arrival: Arrival) -> None:
        """Let it say whose connection it is."""
        header = HeaderReader()

        def done() -> None:
            if header.source is not None:
                arrival.peer = str(header.source)
            arrival.early = header.rest
            self._go_on(way, arrival)

        self._begin(arrival, header, done)

    def _read_request(self, arrival: Arrival) -> None:
        """Let it say where it wants to go."""
        request = ProxyRequest(self._login)

        def done() -> None:
            arrival.target = str(request.target)
            arrival.early = request.rest
            arrival.request = request
            self._on_arrival(arrival)

        self._begin(arrival, request, done)

    def _begin(self, arrival: Arrival, opening: PrefaceParser, done: Callable[[], None]) -> None:
        if len(self._prefaces) >= MAX_PREFACES:
            self._loop.lines.warning(log, "", "%s reset: %d others wait", arrival, MAX_PREFACES)
            self._loop.unwatch(arrival.sock.fileno())
            abort(arrival.sock)
            return

        def over() -> None:
            self._prefaces.discard(preface)
            done()

        def failed(error: PeerError) -> None:
            self._prefaces.discard(preface)
            # One that only looks whether the port is open, as a balancer does, asks for nothing.
            level = logging.WARNING if preface.has_begun else logging.DEBUG
            self._loop.lines.log(log, level, "", "%s refused: %s", arrival, error)

        preface = Preface(self._loop, arrival.sock, opening, over, failed, arrival.early)
        self._prefaces.add(preface)
