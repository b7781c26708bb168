"""Messages between the supervisor and a worker, over a socket pair that has no name.

Every message is one datagram (SOCK_SEQPACKET): it comes whole or not at all.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import msgspec

from fastmtcp.io.loop import Loop
from fastmtcp.security.handshake import Membership

_MAX_SIZE = 65536


class Serving(msgspec.Struct, array_like=True, tag=1):
    """The worker listens."""


class PoolState(msgspec.Struct, array_like=True, tag=2):
    """A client worker's subflows, and why the last attempt to connect failed."""

    up: int
    wanted: int
    trouble: str


class Heartbeat(msgspec.Struct, array_like=True, tag=3):
    """The worker's loop turns."""


class CannotStart(msgspec.Struct, array_like=True, tag=4):
    """Starting the worker again would fail again."""

    reason: str
    exit_code: int


class Drain(msgspec.Struct, array_like=True, tag=5):
    """From the supervisor: end within `timeout` seconds."""

    timeout: float


class StatusRequest(msgspec.Struct, array_like=True, tag=6):
    """From the supervisor: what are you doing? The answer comes in pieces, each asked for by
    `offset`; the first question of a new `token` has offset 0."""

    token: int
    offset: int


class StatusPart(msgspec.Struct, array_like=True, tag=7):
    """A piece of the answer, which has `total` bytes."""

    token: int
    offset: int
    total: int
    data: bytes


class Sessions(msgspec.Struct, array_like=True, tag=8):
    """The sessions that a client worker has or has to end, all of them, and what it takes to join
    them: so another worker can end them at the server if this one dies."""

    sessions: list[Membership]


class Left(msgspec.Struct, array_like=True, tag=9):
    """From the supervisor: sessions of a client worker that has died, to be ended."""

    sessions: list[Membership]


Message = (
    Serving
    | PoolState
    | Heartbeat
    | CannotStart
    | Drain
    | StatusRequest
    | StatusPart
    | Sessions
    | Left
)

_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Message] = msgspec.msgpack.Decoder(Message).decode


class Channel:
    """One end. `on_message` is called with each message of the other end, `on_end` when the other
    end is closed."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_message: Callable[[Message], None],
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._on_message = on_message
        self._on_end = on_end
        self.on_left: Callable[[list[Membership]], None] | None = None
        """At a client worker: ends the sessions that another one has left."""
        self._closed = False
        sock.setblocking(False)
        loop.watch_level(sock.fileno(), self._on_event)

    def send(self, message: Message) -> None:
        """Send it, or drop it if the other end does not read: a process never waits for another."""
        with contextlib.suppress(OSError):
            self._sock.send(_encode(message))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()

    def _on_event(self, _mask: int) -> None:
        try:
            data = self._sock.recv(_MAX_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._on_message(_decode(data))
        else:
            self.close()
            self._on_end()


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets for the two ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
