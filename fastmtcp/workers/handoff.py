"""Passes an accepted connection to the worker that owns its session (SCM_RIGHTS, unix(7)).

The kernel spreads a session's subflows over all workers, but a session lives in one. Each worker
has an inbox, a socket pair without a name in the file system; all workers hold its sending end.
The supervisor keeps both ends, so an inbox outlives its worker: what lies in it is answered by
the worker's successor.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import msgspec

from fastmtcp.io.loop import Loop

_MAX_SIZE = 512
_BATCH = 64


class Inbox:
    """The two ends of one worker's inbox."""

    def __init__(self) -> None:
        self.receiving, self.sending = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.receiving.setblocking(False)
        self.sending.setblocking(False)

    def close(self) -> None:
        self.receiving.close()
        self.sending.close()


class WorkerHandoff:
    """One worker's view of all inboxes. `on_handoff(sock, peer, tls, until)` gets what comes."""

    def __init__(self, loop: Loop, inboxes: list[Inbox], index: int) -> None:
        self._loop = loop
        self._inboxes = inboxes
        self._own = inboxes[index].receiving
        self.on_handoff: Callable[[socket.socket, str, bool, float], None] | None = None
        loop.watch_level(self._own.fileno(), self._on_event)

    def knows(self, owner: int) -> bool:
        """True if there is a worker of this index."""
        return owner < len(self._inboxes)

    def send(self, owner: int, sock: socket.socket, peer: str, tls: bool, until: float) -> bool:
        """Pass `sock` on. False if the worker's inbox is full, or we are out of descriptors.
        `until` is a time of our loop; what is left until then is passed on, as that of another
        worker differs."""
        message = msgspec.msgpack.encode((peer, tls, until - self._loop.now))
        try:
            socket.send_fds(self._inboxes[owner].sending, [message], [sock.fileno()])
        except OSError:
            return False
        return True

    def _on_event(self, _mask: int) -> None:
        for _ in range(_BATCH):
            try:
                message, fds, _, _ = socket.recv_fds(self._own, _MAX_SIZE, 1)
            except OSError:
                return
            if not fds:
                continue  # out of descriptors: the kernel dropped it, the client tries again
            peer, tls, left = msgspec.msgpack.decode(message, type=tuple[str, bool, float])
            if self.on_handoff is None:
                os.close(fds[0])
                continue
            sock = socket.socket(fileno=fds[0])
            sock.setblocking(False)
            self.on_handoff(sock, peer, tls, self._loop.now + left)
