"""Asks a proxy for a connection, on a socket that is connected to it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

from fastmtcp.errors import PeerError
from fastmtcp.io.loop import READ, Loop
from fastmtcp.proxy_protocol import ProxyConversation

_READ_SIZE = 2048


class Tunnel:
    """Holds the conversation with the proxy.

    Calls either `done(sock, rest)` with the bytes that came behind the proxy's last word, or
    `failed(error)`, with the socket closed; neither after cancel(). `timeout` seconds are for all
    of it.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        conversation: ProxyConversation,
        timeout: float,
        done: Callable[[socket.socket, bytes], None],
        failed: Callable[[PeerError], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._conversation = conversation
        self._done = done
        self._failed = failed
        self._over = False
        loop.watch(sock.fileno(), self._on_event)
        self._timer = loop.call_later(timeout, self._on_timeout)
        try:
            self._send(conversation.start())
        except PeerError as error:
            # Not from here: the caller does not know us yet.
            loop.call_soon(partial(self._fail, error))

    def cancel(self) -> None:
        """Give up without telling anybody."""
        if self._leave():
            self._close()

    def _on_event(self, mask: int) -> None:
        if not mask & READ:
            return
        while not self._over:
            try:
                data = self._sock.recv(_READ_SIZE)
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(PeerError(error.strerror or str(error)))
                return
            if not data:
                self._fail(PeerError("it closed the connection"))
                return
            try:
                self._send(self._conversation.feed(data))
            except PeerError as error:
                self._fail(error)
                return
            if self._conversation.done and self._leave():
                self._done(self._sock, self._conversation.rest)

    def _send(self, data: bytes) -> None:
        """All that is ever said to a proxy is far smaller than a fresh socket's buffer."""
        if data:
            try:
                self._sock.send(data)
            except OSError as error:
                raise PeerError(error.strerror or str(error)) from None

    def _on_timeout(self) -> None:
        self._fail(PeerError("it does not answer"))

    def _fail(self, error: PeerError) -> None:
        if self._leave():
            self._close()
            self._failed(error)

    def _leave(self) -> bool:
        """End the conversation; true if it was not over. The socket stays watched."""
        if self._over:
            return False
        self._over = True
        self._timer.cancel()
        return True

    def _close(self) -> None:
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
