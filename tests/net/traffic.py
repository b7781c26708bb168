"""A transfer through the forwarder, slow enough to do something to the network meanwhile."""

from __future__ import annotations

import hashlib
import socket
import time

from tests.io.net import Background, data
from tests.net.lab import Host

KB = 1000
CHUNK = data(64 * KB)


class Transfer:
    """Bytes on their way, up or down, at about `rate` bytes a second. check() compares them."""

    def __init__(
        self, client: Host, server: Host, *, rate: float = 4e6, size: int = 16_000_000, up: bool
    ) -> None:
        with server.listen(5201) as listener:
            near = client.connect(7701)
            far, _ = listener.accept()
        far.settimeout(near.gettimeout())
        sender, receiver = (near, far) if up else (far, near)
        self.received = 0
        self._size = size
        self._sending = Background(self._send, sender, rate)
        self._receiving = Background(self._receive, receiver)

    @property
    def done(self) -> bool:
        return self._receiving.done

    def check(self) -> None:
        """Wait for the end: what arrived is what was sent."""
        sent, received = self._sending.result(), self._receiving.result()
        assert received == sent, f"{self.received} of {self._size} bytes arrived"

    def _send(self, sock: socket.socket, rate: float) -> str:
        digest = hashlib.sha256()
        left = self._size
        started = time.monotonic()
        with sock:
            while left:
                # Each chunk is different, so that a swapped or repeated one shows.
                part = (left.to_bytes(8) + CHUNK)[: min(left, len(CHUNK))]
                sock.sendall(part)
                digest.update(part)
                left -= len(part)
                due = started + (self._size - left) / rate
                time.sleep(max(0.0, min(due - time.monotonic(), 0.2)))  # this is the rate
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)
        return digest.hexdigest()

    def _receive(self, sock: socket.socket) -> str:
        digest = hashlib.sha256()
        with sock:
            while part := sock.recv(1 << 18):
                digest.update(part)
                self.received += len(part)
        return digest.hexdigest()
