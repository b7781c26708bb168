"""The quick start's configuration under load: init, link, TLS, several workers on both sides."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.io.net import Background, data, read_all
from tests.process.programs import QUICK_START, Program, Programs
from tests.process.targets import Target

MB = 1_000_000
AT_ONCE = 8
FOR = 4.0
UP, DOWN = data(6 * MB, 1), data(6 * MB, 2)
"""Made once: the time is for the workers."""


def swap(sock: socket.socket, ours: bytes, theirs: bytes) -> None:
    """Send `ours` while `theirs` comes, and fail unless that is what comes."""

    def send() -> None:
        sock.sendall(ours)
        sock.shutdown(socket.SHUT_WR)

    sending = Background(send)
    assert read_all(sock) == theirs
    sending.result()


@pytest.fixture
def target() -> Iterator[Target[None]]:
    target = Target(lambda sock: swap(sock, DOWN, UP))
    yield target
    target.close()


def complaints(program: Program) -> list[str]:
    """Lines of the log about anything that is wrong, and about each subflow that died."""
    return re.findall(r".*Z (?:warning|error) .*|.* lost: .*", program.log)


@pytest.mark.parametrize("setup", [QUICK_START], indirect=True)
def test_busy_workers_beside_one_another_lose_no_subflow(
    programs: Programs, target: Target[None]
) -> None:
    """What workers share by mistake, they overwrite; and TLS authenticates every record."""
    server = programs.server(target.port, "--workers", 2)
    client = programs.client(server, "--workers", 2)
    until = time.monotonic() + FOR

    def transfers() -> int:
        count = 0
        while time.monotonic() < until:
            with client.connect() as sock:
                swap(sock, UP, DOWN)
            count += 1
        return count

    with ThreadPoolExecutor(AT_ONCE) as pool:
        counts = [work.result() for work in [pool.submit(transfers) for _ in range(AT_ONCE)]]
    assert len(target.works) == sum(counts)
    for work in target.works:
        work.result()
    assert complaints(server) == complaints(client) == []
