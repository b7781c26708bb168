"""Every signal that can be caught ends a program in order, and one worker is not the program."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fastmtcp.io.signals import ENDING

from tests.io.net import WAIT, is_reset, read_exactly
from tests.process.programs import Program, Programs, command, eventually
from tests.process.targets import Target

IGNORED_BY_A_WORKER = [n for n in (*ENDING, signal.SIGHUP) if n != signal.SIGTERM]


def client_with_file(programs: Programs, target: Target[int], path: Path) -> Program:
    server = programs.server(target.port, "--workers", 1)
    where = f"unix:{path}:127.0.0.1:1"
    return programs.client(server, "--workers", 2, "--forward", where, "--drain-timeout", 0)


@pytest.fixture
def stream(
    programs: Programs, echo_target: Target[int], tmp_path: Path
) -> Iterator[tuple[Program, socket.socket]]:
    """A client with an open stream."""
    client = client_with_file(programs, echo_target, tmp_path / "a.sock")
    with client.connect() as sock:
        sock.sendall(b"a")
        assert read_exactly(sock, 1) == b"a"
        yield client, sock


@pytest.mark.parametrize(
    "number", [signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGRTMIN]
)
def test_it_ends_in_order(
    stream: tuple[Program, socket.socket], number: signal.Signals, tmp_path: Path
) -> None:
    client, sock = stream
    client.signal(number)
    assert client.wait() == 0
    eventually(lambda: is_reset(sock), "the application is reset")
    assert not (tmp_path / "a.sock").exists()


def test_a_closed_terminal_ends_nothing(stream: tuple[Program, socket.socket]) -> None:
    client, sock = stream
    os.killpg(client.process.pid, signal.SIGHUP)
    for _ in range(3):
        sock.sendall(b"b")
        assert read_exactly(sock, 1) == b"b"
    assert client.process.poll() is None


def test_workers_leave_signals_to_their_supervisor(stream: tuple[Program, socket.socket]) -> None:
    client, sock = stream
    workers = client.workers()
    for pid in workers:
        for number in IGNORED_BY_A_WORKER:
            os.kill(pid, number)
    for _ in range(3):
        sock.sendall(b"c")
        assert read_exactly(sock, 1) == b"c"
    assert client.workers() == workers


def test_a_child_that_nobody_waits_for_does_not_end_its_parent(
    programs: Programs, echo_target: Target[int]
) -> None:
    """A parent may have ignored SIGCHLD, and that is inherited: wait() has no child then."""
    ignoring = ("env", "--ignore-signal=CHLD")
    where = ("--listen", "127.0.0.1:0", "--target", f"127.0.0.1:{echo_target.port}")
    server = programs.start("fastmtcp-server", *where, "--workers", 1, under=ignoring).ready()
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    server.wait_for(rf"worker 0 \(pid {worker}\) ended by signal 9")
    eventually(lambda: server.workers() not in ([], [worker]), "the worker is there again")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_just_after_the_start_it_leaves_no_file(tmp_path: Path, number: signal.Signals) -> None:
    """As soon as the file is there, and some moments later."""
    path = tmp_path / "a.sock"
    for _ in range(8):
        process = subprocess.Popen(
            [
                command("fastmtcp-client"),
                *("--listen", "127.0.0.1:0", "--server", "127.0.0.1:1", "--workers", "2"),
                *("--forward", f"unix:{path}:127.0.0.1:1"),
            ],
            stderr=subprocess.DEVNULL,
        )
        is_there = False
        while not is_there and process.poll() is None:
            is_there = path.exists() and stat.S_ISSOCK(path.stat().st_mode)
        process.send_signal(number)
        family = psutil.Process(process.pid).children() if process.poll() is None else []
        assert process.wait(WAIT) == 0
        assert is_there
        assert not path.exists()
        eventually(lambda: not any(one.is_running() for one in family), "the workers end")  # noqa: B023
