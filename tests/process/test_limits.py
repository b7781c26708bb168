"""Running out of file descriptors, and never leaking any."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.io.net import WAIT, free_port, read_all, read_exactly
from tests.process.programs import Program, Programs, eventually, open_files
from tests.process.targets import Target, round_trip

EXHAUSTED = r"cannot accept connections: Too many open files"


def talk(sock: socket.socket, text: bytes = b"are you there?") -> bool:
    """Whether an echo target answers."""
    try:
        sock.sendall(text)
        return read_exactly(sock, len(text)) == text
    except (OSError, EOFError):
        return False


class TestDescriptorsExhausted:
    def test_at_the_client_accepting_pauses_and_resumes(
        self, programs: Programs, echo_target: Target[int]
    ) -> None:
        server = programs.server(echo_target.port, "--workers", 2)
        client = programs.start(
            "fastmtcp-client",
            *("--listen", "127.0.0.1:0", "--server", f"127.0.0.1:{server.port}"),
            *("--workers", 1, "--connections", 4),
            max_files=64,
        ).ready()
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(client.connect()) for _ in range(100)]
            client.wait_for(EXHAUSTED)
            assert talk(socks[0])
            for sock in socks:
                sock.sendall(b"x")
            # Whoever leaves makes room for somebody who waits: in the end all are served.
            for sock in socks:
                assert sock.recv(1) == b"x"
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b""
        assert round_trip(client.address)
        assert len(re.findall(EXHAUSTED, client.log)) == 1
        assert "4 of 4 subflows up" in client.wait_for("ready")
        assert "lost" not in client.log

    def test_a_connection_that_comes_back_in_a_circle_ends_with_its_application(
        self, programs: Programs
    ) -> None:
        """Its other end waits at the client until it is accepted, which never happens."""
        port = free_port()
        server = programs.server(port, "--workers", 1)
        client = programs.start(
            "fastmtcp-client",
            *("--listen", f"127.0.0.1:{port}", "--server", f"127.0.0.1:{server.port}"),
            *("--workers", 1, "--connections", 2),
            max_files=64,
        ).ready()
        workers = [*server.workers(), *client.workers()]
        before = max(open_files(pid) for pid in workers)
        with client.connect():
            client.wait_for(EXHAUSTED)
        eventually(lambda: all(open_files(pid) <= before + 5 for pid in workers), "all is over")

    def test_at_the_server_streams_are_refused_and_the_others_go_on(
        self, programs: Programs, echo_target: Target[int]
    ) -> None:
        server = programs.start(
            "fastmtcp-server",
            *("--listen", "127.0.0.1:0", "--target", f"127.0.0.1:{echo_target.port}"),
            *("--workers", 1),
            max_files=64,
        ).ready()
        client = programs.client(server, "--workers", 1)
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(client.connect()) for _ in range(100)]
            served = [sock for sock in socks if talk(sock)]
            assert 20 < len(served) < 60
            server.wait_for("cannot connect to target .*: Too many open files")
            client.wait_for("reset: too many streams or open files")
            assert all(talk(sock) for sock in served)
            for sock in served:
                sock.shutdown(socket.SHUT_WR)
                assert read_all(sock) == b""
        eventually(lambda: round_trip(client.address), "new streams are served again")

    def test_strangers_at_the_server_cannot_hurt_who_is_there(
        self, programs: Programs, echo_target: Target[int]
    ) -> None:
        server = programs.start(
            "fastmtcp-server",
            *("--listen", "127.0.0.1:0", "--target", f"127.0.0.1:{echo_target.port}"),
            *("--workers", 1),
            max_files=64,
        ).ready()
        client = programs.client(server, "--workers", 1)
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(client.connect())
            assert talk(sock)
            for _ in range(100):
                stack.enter_context(socket.create_connection(server.address, WAIT))
            server.wait_for(EXHAUSTED)
            assert all(talk(sock) for _ in range(20))
        # When they have gone, or their time is up, the next client gets in.
        late = programs.client(server, "--workers", 1)
        late.wait_for("4 of 4 subflows up")
        assert round_trip(late.address)
        assert round_trip(client.address)


def connect_many(client: Program, count: int) -> None:
    """Short connections, some of them rude."""

    def one(number: int) -> None:
        with client.connect() as sock:
            sock.sendall(b"x" * (1 + number % 3000))
            if number % 10 == 0:
                return  # leaves without reading: a reset
            sock.shutdown(socket.SHUT_WR)
            assert len(read_all(sock)) == 1 + number % 3000

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(count)))


@pytest.fixture
def family(programs: Programs, echo_target: Target[int]) -> tuple[Program, Program]:
    server = programs.server(echo_target.port, "--workers", 2)
    return server, programs.client(server, "--workers", 2)


def test_short_connections_leave_no_descriptors_behind(family: tuple[Program, Program]) -> None:
    pids = [pid for program in family for pid in (program.process.pid, *program.workers())]
    connect_many(family[1], 50)
    before: dict[int, int] = {}
    since = 0.0

    def is_quiet() -> bool:
        nonlocal since
        now = {pid: open_files(pid) for pid in pids}
        if now != before:
            before.update(now)
            since = time.monotonic()
        return time.monotonic() - since > 1

    eventually(is_quiet, "the first connections are over and all subflows are up")
    connect_many(family[1], 1000)
    eventually(
        lambda: all(open_files(pid) <= before[pid] for pid in pids),
        f"every process has as many files open as before: {before}",
    )


def unshared_memory(pid: int) -> int:
    """Bytes that belong to this process alone."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(kib) for kib in re.findall(r"Private_(?:Clean|Dirty): +(\d+) kB", text))


def test_short_connections_leave_no_memory_behind(family: tuple[Program, Program]) -> None:
    pids = [pid for program in family for pid in program.workers()]
    # Pools, caches and the allocator fill up first.
    connect_many(family[1], 1500)
    before = {pid: unshared_memory(pid) for pid in pids}
    connect_many(family[1], 1500)
    # A leak of 4 KiB for each connection would be 3 MB in each of two workers.
    eventually(
        lambda: all(unshared_memory(pid) - before[pid] < 2 << 20 for pid in pids),
        "memory does not grow with the number of connections that there have been",
    )
