"""Runs tests that know nothing of fastmtcp with its sockets in place of TCP connections.

Between socket.connect() and accept() of this process every IPv4 connection is replaced by a pair
of ours, the library at both ends. A real connection is made as well: it refuses, waits in the
listener's queue and makes it readable as ever; accept() then exchanges it.

    python -m tests.library.everywhere test.test_socket BasicTCPTest ...

prints a JSON document: how many tests were run and the names of those that failed, with their
last lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import unittest
from collections.abc import Iterator
from typing import Any

import fastmtcp

from tests.io.net import WAIT

Raw = tuple[socket.socket, socket.socket]


class Everywhere:
    """Patches socket.socket while it is entered."""

    def __init__(self) -> None:
        self._server = fastmtcp.Server("127.0.0.1:0")
        self._client = fastmtcp.Client(self._server.addresses, connections=2)
        self._inside = threading.local()
        self._lock = threading.Lock()
        self._waiting: dict[object, Raw] = {}
        self._news = threading.Condition()
        self._real_connect = socket.socket.connect
        self._real_accept = socket.socket.accept
        self.replaced = 0

    def __enter__(self) -> Everywhere:
        box = self

        def connect(sock: socket.socket, address: Any) -> None:
            if box._is_ours(sock):
                box._real_connect(sock, address)
            else:
                box._connect(sock, address)

        def connect_ex(sock: socket.socket, address: Any) -> int:
            try:
                connect(sock, address)
            except TimeoutError:
                raise
            except OSError as error:
                return error.errno or 1
            return 0

        def accept(sock: socket.socket) -> tuple[socket.socket, Any]:
            found, peer = box._real_accept(sock)
            return (found, peer) if box._is_ours(sock) else box._exchange(found, peer)

        self._names = {"connect": connect, "connect_ex": connect_ex, "accept": accept}
        for name, function in self._names.items():
            setattr(socket.socket, name, function)
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("connect", "connect_ex"):
            delattr(socket.socket, name)
        socket.socket.accept = self._real_accept  # type: ignore[method-assign]
        for raw, far in self._waiting.values():
            raw.close()
            far.close()
        self._client.close()
        self._server.close()

    def _is_ours(self, sock: socket.socket) -> bool:
        """A socket of the library itself, or none that it could replace."""
        if threading.current_thread().name == "fastmtcp" or getattr(self._inside, "on", False):
            return True
        return sock.family != socket.AF_INET or not sock.type & socket.SOCK_STREAM

    @contextlib.contextmanager
    def _as_ourselves(self) -> Iterator[None]:
        self._inside.on = True
        try:
            yield
        finally:
            self._inside.on = False

    def _connect(self, sock: socket.socket, address: Any) -> None:
        raw = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            raw.settimeout(sock.gettimeout() or WAIT)
            self._real_connect(raw, address)
            with self._as_ourselves(), self._lock:
                near = self._client.connect(timeout=WAIT)
                far, _ = self._server.accept(timeout=WAIT)
        except BaseException:
            raw.close()
            raise
        os.dup2(near.fileno(), sock.fileno(), inheritable=False)
        near.close()
        sock.settimeout(sock.gettimeout())  # its flags are those of the other descriptor now
        with self._news:
            self.replaced += 1
            self._waiting[raw.getsockname()] = (raw, far)
            self._news.notify_all()

    def _exchange(self, found: socket.socket, peer: Any) -> tuple[socket.socket, Any]:
        deadline = time.monotonic() + WAIT
        with self._news:
            while peer not in self._waiting:
                if not self._news.wait(deadline - time.monotonic()):
                    return found, peer
            raw, far = self._waiting.pop(peer)
        found.close()
        raw.close()
        far.settimeout(socket.getdefaulttimeout())
        return far, peer


def _cases(names: list[str]) -> unittest.TestSuite:
    module, *classes = names
    loader = unittest.defaultTestLoader
    if not classes:
        return loader.loadTestsFromName(module)
    return loader.loadTestsFromNames([f"{module}.{name}" for name in classes])


def main(names: list[str]) -> None:
    suite = _cases(names)
    result = unittest.TestResult()
    with Everywhere() as box:
        suite.run(result)
        replaced = box.replaced
    failed = {
        case.id().removeprefix(f"{names[0]}."): text.strip().splitlines()[-1]
        for case, text in (*result.failures, *result.errors)
    }
    report = {"run": result.testsRun, "failed": failed, "replaced": replaced}
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
