"""Servers behind the forwarder, on threads of the test, and applications in front of it."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from tests.io.net import WAIT, Background, data, read_exactly

T = TypeVar("T")

_HEADER = struct.Struct("!QQ")  # bytes wanted, their seed


class Target(Generic[T]):
    """Accepts connections and serves each on a thread of its own."""

    def __init__(
        self, serve: Callable[[socket.socket], T], host: str = "127.0.0.1", port: int = 0
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._serve = serve
        self.connections: list[socket.socket] = []
        self.works: list[Background[T]] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(WAIT)
            self.connections.append(sock)
            self.works.append(Background(self._one, sock))

    def _one(self, sock: socket.socket) -> T:
        with sock:
            return self._serve(sock)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(WAIT)
        for sock in self.connections:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def echo(sock: socket.socket) -> int:
    """Send everything back, then a FIN behind the peer's FIN. Returns the number of bytes."""
    count = 0
    while part := sock.recv(1 << 18):
        sock.sendall(part)
        count += len(part)
    sock.shutdown(socket.SHUT_WR)
    return count


def exchange(sock: socket.socket) -> str:
    """Send what the first bytes ask for while reading the rest; returns the SHA-256 of that."""
    size, seed = _HEADER.unpack(read_exactly(sock, _HEADER.size))
    sending = Background(_send, sock, b"", size, seed)
    digest = _digest(sock)
    sending.result()
    return digest


def ask_for_exchange(address: tuple[str, int], up: int, down: int, seed: int = 1) -> str:
    """The other side of exchange(): checks what comes down, returns the SHA-256 of what went up."""
    with socket.create_connection(address, WAIT) as sock:
        sending = Background(_send, sock, _HEADER.pack(down, seed), up, seed + 1)
        got = _digest(sock)
        sending.result()
    assert got == sha256(data(down, seed)), "what came down is not what was sent"
    return sha256(data(up, seed + 1))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def round_trip(address: tuple[str, int], text: bytes = b"are you there?") -> bool:
    """Whether an echo target answers through the forwarder at `address`."""
    try:
        with socket.create_connection(address, WAIT) as sock:
            sock.sendall(text)
            return read_exactly(sock, len(text)) == text
    except (OSError, EOFError):
        return False


def _send(sock: socket.socket, head: bytes, size: int, seed: int) -> None:
    sock.sendall(head + data(size, seed))
    sock.shutdown(socket.SHUT_WR)


def _digest(sock: socket.socket) -> str:
    digest = hashlib.sha256()
    while part := sock.recv(1 << 18):
        digest.update(part)
    return digest.hexdigest()
