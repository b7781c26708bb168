"""Asks a proxy for a connection, on a socket that is connected to it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

from fastmtcp.errors import PeerError
from fastmtcp.io.dialogue import Dialogue
from fastmtcp.io.loop import Loop
from fastmtcp.proxy.upstream import ProxyConversation


class Tunnel(Dialogue):
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
        super().__init__(loop, sock, loop.now + timeout)
        self._conversation = conversation
        self._done = done
        self._failed = failed
        try:
            self._send(conversation.start())
        except PeerError as error:
            # Not from here: the caller does not know us yet.
            loop.call_soon(partial(self._fail, error))

    def _take(self, data: bytes) -> None:
        self._send(self._conversation.feed(data))
        if self._conversation.done and self._leave():
            self._done(self._sock, self._conversation.rest)

    def _fail(self, error: PeerError) -> None:
        if self._leave():
            self._close()
            self._failed(error)
