"""What a TLS connection keeps: OpenSSL's memory grows with what it once held, and stays."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path

import pytest
from fastmtcp.io.buffers import KIB, BufferPool
from fastmtcp.security.certificates import ClientTls
from fastmtcp.security.tls import Tls

from tests.cost.budgets import TLS_CONNECTION
from tests.io import certificates
from tests.io.net import tcp_pair

PAIRS = 50
CHUNK = bytes(256 * KIB)


def private() -> int:
    """Bytes that only this process has."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(int(kib) for kib in re.findall(r"Private_(?:Clean|Dirty): +(\d+) kB", text))


def shake(client: Tls, server: Tls) -> None:
    to_server = client.feed(b"")[1]
    while not (client.is_up and server.is_up):
        _, to_client = server.feed(to_server)
        _, to_server = client.feed(to_client) if to_client else (b"", b"")


def carry(
    source: Tls, near: socket.socket, sink: Tls, far: socket.socket, pool: BufferPool
) -> None:
    """A chunk, as SubflowSocket sends and reads it."""
    buffers, _ = source.seal([b"h" * 20, CHUNK])
    sealed = memoryview(b"".join(buffers))
    count = 0
    while sealed or count < len(CHUNK):
        with contextlib.suppress(BlockingIOError):
            sealed = sealed[near.send(sealed) :]
        with contextlib.suppress(BlockingIOError):
            count += sink.recv_into(far, pool.reserve(), pool.scratch)


def test_memory_of_a_tls_connection_that_has_carried_bulk(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    files = certificates.make(tmp_path_factory.mktemp("certificates"))
    to, of, pool = ClientTls((files.fingerprint,)), files.server(), BufferPool()
    near, far = tcp_pair()
    kept = []
    with near, far:
        before = 0
        # The first ones are for what all of them share.
        for number in range(PAIRS + 10):
            if number == 10:
                before = private()
            client, server = to.connect(""), of.accept()
            kept.append((client, server))
            shake(client, server)
            carry(client, near, server, far, pool)
            carry(server, far, client, near, pool)
        TLS_CONNECTION.check((private() - before) / KIB / (2 * PAIRS))
