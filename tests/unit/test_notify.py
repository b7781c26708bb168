"""What the service manager is told, and that nothing else depends on it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastmtcp.config.server import ServerConfig
from fastmtcp.driver.service import Service
from fastmtcp.endpoint import Endpoint
from fastmtcp.workers import supervisor as supervisor_module
from fastmtcp.workers.notify import Notifier
from fastmtcp.workers.ports import Ports
from fastmtcp.workers.supervisor import Supervisor


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def heard(manager: socket.socket) -> list[str]:
    found = []
    try:
        while True:
            found.append(manager.recv(4096).decode())
    except BlockingIOError:
        return found


def environment(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname(), "HOME": "/", **more}


def test_lines_go_out_as_one_datagram_and_the_variables_to_nobody_else(
    manager: socket.socket,
) -> None:
    variables = environment(manager, WATCHDOG_USEC="10", WATCHDOG_PID="1")
    Notifier(variables).send("READY=1", "STATUS=listening")
    assert heard(manager) == ["READY=1\nSTATUS=listening"]
    assert variables == {"HOME": "/"}


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@nobody-listens-here", "x" * 300])
def test_nobody_to_tell_is_no_trouble(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"})
    notifier.send("READY=1")
    notifier.alive(1.0)


def test_a_manager_that_does_not_read_stops_nobody(manager: socket.socket) -> None:
    notifier = Notifier(environment(manager))
    for _ in range(2000):
        notifier.send("STATUS=" + "x" * 500)
    assert heard(manager)


def test_the_watchdog_hears_twice_in_its_time(manager: socket.socket) -> None:
    mine = str(os.getpid())
    notifier = Notifier(environment(manager, WATCHDOG_USEC="10000000", WATCHDOG_PID=mine))
    for second in range(21):
        notifier.alive(100.0 + second)
    assert heard(manager) == ["WATCHDOG=1"] * 5


@pytest.mark.parametrize(
    "variables", [{}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "10", "WATCHDOG_PID": "1"}]
)
def test_no_watchdog_for_us(manager: socket.socket, variables: dict[str, str]) -> None:
    Notifier(environment(manager, **variables)).alive(1.0)
    assert heard(manager) == []


def test_the_watchdog_hears_nothing_while_a_worker_hangs_that_we_cannot_end(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.setattr(supervisor_module, "_kill", lambda *_: None)
    config = ServerConfig(workers=2, control="off")
    ports = Ports((Endpoint("127.0.0.1", 0),), 2)
    supervisor = Supervisor("server", config, ports, _no_service)
    now = supervisor._loop.now = supervisor._loop.clock()
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            for worker in supervisor._workers:
                worker.pid = process.pid
                worker.heard_at = now
            for silent, expected in ((0, 1), (29, 1), (35, 1), (41, 0), (1000, 0)):
                supervisor._workers[1].heard_at = now - silent
                supervisor._loop.now += 0.01
                supervisor._watch_health()
                assert heard(manager) == ["WATCHDOG=1"] * expected, silent
            # A worker that has ended and waits for its successor does not hang.
            supervisor._workers[1].pid = 0
            supervisor._loop.now += 0.01
            supervisor._watch_health()
            assert heard(manager) == ["WATCHDOG=1"]
        finally:
            process.kill()
            supervisor._loop.close()
            for index in range(2):
                for sock in ports.of(index):
                    sock.close()


def _no_service(*_: object) -> Service:
    raise AssertionError
