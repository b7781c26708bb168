"""A stream's connection to its target."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable

from fastmtcp.config.server import ServerConfig
from fastmtcp.endpoint import Endpoint
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.wire.errors import ResetCode
from fastmtcp.io.dialer import Dial, ForbiddenError
from fastmtcp.io.loop import Loop
from fastmtcp.io.resolver import Resolver
from fastmtcp.io.tcp import keep_alive, text_address, tune
from fastmtcp.proxy.header import header, parse_source
from fastmtcp.server.session import ServerSession

log = logging.getLogger("fastmtcp.outgoing")


class Outgoing:
    """A stream's connection to its target, until it is up."""

    __slots__ = ("_dial", "_keepalive", "_loop", "_send_proxy", "_session", "_stream", "_target")

    def __init__(
        self,
        loop: Loop,
        resolver: Resolver,
        config: ServerConfig,
        session: ServerSession,
        stream: Stream,
        target: Endpoint,
        permits: Callable[[str], bool] | None = None,
    ) -> None:
        """Begin to connect. `permits` says to which addresses of a target that the client has
        chosen it may be connected; None stands for the server's own target."""
        self._loop = loop
        self._keepalive = config.keepalive
        self._session = session
        self._stream = stream
        self._target = target
        self._send_proxy = config.send_proxy if permits is None else "off"
        stream.watcher = self
        self._dial: Dial | None = Dial(
            loop,
            resolver,
            target,
            config.connect_timeout,
            self._connected,
            self._failed,
            permits=permits,
            asker=session.client,
        )

    def update(self) -> None:
        """The stream was updated: all that matters before the relay exists is its end."""
        if self._stream.reset_code is not None and self._dial is not None:
            self._dial.cancel()
            self._leave()

    def _leave(self) -> None:
        """It is over: the stream and the dial refer to this object and it to them, and would wait
        for the garbage collector."""
        self._dial = None
        if self._stream.watcher is self:
            self._stream.watcher = None

    def _connected(self, sock: socket.socket) -> None:
        self._leave()
        tune(sock)
        keep_alive(sock, self._keepalive)
        if self._send_proxy != "off":
            source = parse_source(self._stream.source)
            try:
                destination = text_address(sock.getpeername())
            except OSError:
                destination = ""
            try:
                if destination:
                    # A fresh socket's buffer takes all of it.
                    sock.send(header(self._send_proxy, source, parse_source(destination)))
                else:
                    # Gone already. If it has spoken, the relay is told of that behind its words.
                    sock.recv(1, socket.MSG_PEEK)
            except OSError as error:
                # Told once: the relay would take the reset for a FIN.
                self._loop.unwatch(sock.fileno())
                sock.close()
                self._failed(error, False)
                return
        self._stream.confirm()
        self._session.driver.add_relay(sock, self._stream)
        self._session.driver.progress()

    def _failed(self, error: OSError, unresolved: bool) -> None:
        reason = error.strerror or str(error)
        lines, client = self._loop.lines, self._session.client
        if isinstance(error, ForbiddenError):
            code = ResetCode.NOT_ALLOWED
        elif unresolved:
            code = ResetCode.UNRESOLVED
        elif error.errno == errno.ECONNREFUSED:
            code = ResetCode.REFUSED
        elif error.errno in (errno.EMFILE, errno.ENFILE):
            code = ResetCode.OVERLOADED
        else:
            code = ResetCode.UNREACHABLE
        if code is ResetCode.NOT_ALLOWED:
            peer = self._session.peer
            text = "client %s: target %s is not allowed: %s"
            lines.warning(log, client, text, peer, self._target, reason)
        else:
            lines.warning(log, client, "cannot connect to target %s: %s", self._target, reason)
        self._leave()
        self._stream.reset(code)
        self._session.driver.progress()
