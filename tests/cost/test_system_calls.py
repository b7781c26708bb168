"""System calls of real processes."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cost import budgets
from tests.cost.traced import ACCEPT, CONNECT, Traced, between, undisturbed
from tests.io.net import read_all, read_exactly
from tests.process.programs import Programs
from tests.process.targets import Target

MB = 1_000_000
SHORT = 60
WARM_UP = 10
SIZE = 32 * MB
TRANSFERS = 4
_BLOCK = bytes(250_000)


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    programs = Programs(tmp_path)
    yield programs
    programs.end()


def answer(sock: socket.socket) -> None:
    """One answer to one question, then the end behind the other side's end. Not so soon that the
    answer is there when the question has just been passed on."""
    read_exactly(sock, 1)
    time.sleep(0.003)
    sock.sendall(bytes(100))
    sock.recv(1)


def take_and_give(sock: socket.socket) -> None:
    """`u`: take what comes until its end; `d`: send SIZE bytes."""
    if read_exactly(sock, 1) == b"u":
        assert len(read_all(sock)) == SIZE
    else:
        give(sock)


def give(sock: socket.socket) -> None:
    for _ in range(SIZE // len(_BLOCK)):
        sock.sendall(_BLOCK)


def pair(programs: Programs, target: int) -> tuple[Traced, Traced]:
    """A client and a server on loopback."""
    to = ("--target", f"127.0.0.1:{target}")
    server = Traced(programs, "fastmtcp-server", "--listen", "127.0.0.1:0", *to)
    far = f"127.0.0.1:{server.program.port}"
    where = ("--listen", "127.0.0.1:0", "--server", far)
    return Traced(programs, "fastmtcp-client", *where, "--connections", 4), server


def test_a_short_connection(programs: Programs) -> None:
    target = Target(answer)
    client, server = pair(programs, target.port)
    for _ in range(WARM_UP + SHORT):
        with client.program.connect() as sock:
            sock.sendall(b"?")
            read_exactly(sock, 100)
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b""
    at_client = undisturbed(between(client.calls(), ACCEPT)[WARM_UP:])
    at_server = undisturbed(between(server.calls(), CONNECT)[WARM_UP:])
    target.close()
    budgets.SHORT_CLIENT.check(len(at_client), "\n".join(at_client))
    budgets.SHORT_SERVER.check(len(at_server), "\n".join(at_server))


@pytest.mark.parametrize("way", ["u", "d"])
def test_a_mb(programs: Programs, way: str) -> None:
    """The cheapest of several transfers, the first one and the last one left out."""
    target = Target(take_and_give)
    client, server = pair(programs, target.port)
    for _ in range(TRANSFERS + 2):
        with client.program.connect() as sock:
            sock.sendall(way.encode())
            if way == "u":
                give(sock)
                sock.shutdown(socket.SHUT_WR)
            size = len(read_all(sock))
            assert size == (SIZE if way == "d" else 0)
    at_client = [len(part) for part in between(client.calls(), ACCEPT)[1:]]
    at_server = [len(part) for part in between(server.calls(), CONNECT)[1:]]
    target.close()
    sending, receiving = (at_client, at_server) if way == "u" else (at_server, at_client)
    budgets.MB_SENDING.check(min(sending) * MB / SIZE)
    budgets.MB_RECEIVING.check(min(receiving) * MB / SIZE)
