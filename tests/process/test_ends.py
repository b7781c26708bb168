"""Bytes and an end that are there before the socket reaches the stream's relay."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from tests.io.net import WAIT, data, read_all
from tests.process.programs import Program, Programs
from tests.process.targets import Target

BURST = 300
SAID = b"12:00\n"


def speak_and_leave(sock: socket.socket) -> None:
    sock.sendall(SAID)


def answer_at_end(sock: socket.socket) -> None:
    """All that was said, once the other side has ended: who loses the end waits for ever."""
    sock.sendall(read_all(sock))


@pytest.fixture
def clock() -> Iterator[Target[None]]:
    target = Target(speak_and_leave)
    yield target
    target.close()


@pytest.fixture
def at_end() -> Iterator[Target[None]]:
    target = Target(answer_at_end)
    yield target
    target.close()


def burst(client: Program, request: bytes = b"") -> list[bytes]:
    """What each of many connections hears, all made at once."""

    async def one() -> bytes:
        reader, writer = await asyncio.open_connection(*client.address)
        writer.write(request)
        async with asyncio.timeout(WAIT):
            heard = await reader.read()
        writer.close()
        return heard

    async def run() -> list[bytes]:
        return await asyncio.gather(*(one() for _ in range(BURST)))

    return asyncio.run(run())


def requests(port: int, content: bytes) -> dict[str, bytes]:
    """The ways to say at the proxy where one wants to go, each with `content` behind it."""
    post = f"POST http://127.0.0.1:{port}/ HTTP/1.0\r\nContent-Length: {len(content)}\r\n\r\n"
    return {
        "CONNECT": f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode() + content,
        "SOCKS5": b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2) + content,
        "POST": post.encode() + content,
    }


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """What comes meanwhile the process finds all at once."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


REQUESTS = pytest.mark.parametrize("way", requests(0, b""))


def test_a_target_that_speaks_and_leaves(programs: Programs, clock: Target[None]) -> None:
    client = programs.pair(clock.port)
    for _ in range(2):
        assert burst(client) == [SAID] * BURST


def test_a_target_that_speaks_and_leaves_behind_the_proxy(
    programs: Programs, clock: Target[None]
) -> None:
    server = programs.server(1, "--workers", 1, "--allow", f"127.0.0.1:{clock.port}")
    client = programs.proxy(server)
    for heard in burst(client, requests(clock.port, b"")["CONNECT"]):
        assert heard.endswith(b"\r\n\r\n" + SAID)


@REQUESTS
@pytest.mark.parametrize("size", [100, 10_000])
def test_a_request_bytes_and_end_in_one_go(
    programs: Programs, at_end: Target[None], way: str, size: int
) -> None:
    server = programs.server(1, "--workers", 1, "--allow", f"127.0.0.1:{at_end.port}")
    client = programs.proxy(server)
    content = data(size)
    with client.connect() as sock:
        sock.sendall(requests(at_end.port, content)[way])
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).endswith(content)


@REQUESTS
def test_an_end_that_comes_while_the_application_waits_for_its_target(
    programs: Programs, at_end: Target[None], way: str
) -> None:
    server = programs.server(1, "--workers", 1, "--allow", f"127.0.0.1:{at_end.port}")
    client = programs.proxy(server)
    content = data(10_000)
    (worker,) = server.workers()
    with client.connect() as sock:
        with stopped(worker):
            request = requests(at_end.port, content)[way]
            sock.sendall(request[:-100])
            time.sleep(0.1)
            sock.sendall(request[-100:])
            sock.shutdown(socket.SHUT_WR)
            time.sleep(0.1)
        assert read_all(sock).endswith(content)


def test_a_proxy_header_bytes_and_end_in_one_go(programs: Programs, at_end: Target[None]) -> None:
    server = programs.server(at_end.port, "--workers", 1)
    client = programs.client(server, "--workers", 1, "--accept-proxy")
    content = data(10_000)
    (worker,) = client.workers()
    with client.connect() as sock:
        sock.sendall(b"PROXY TCP4 192.0.2.1 ")
        time.sleep(0.1)
        # One event tells the header's reader of all the rest.
        with stopped(worker):
            sock.sendall(b"192.0.2.2 1000 2000\r\n" + content)
            sock.shutdown(socket.SHUT_WR)
            time.sleep(0.1)
        assert read_all(sock) == content
