"""The supervisor when the system gives it no process or descriptor."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator

import pytest
from fastmtcp.config.server import ServerConfig
from fastmtcp.driver.service import Service
from fastmtcp.endpoint import Endpoint
from fastmtcp.security.handshake import Membership
from fastmtcp.workers import supervisor as supervisor_module
from fastmtcp.workers.channel import Channel, Left, Message, Sessions
from fastmtcp.workers.ports import Ports
from fastmtcp.workers.supervisor import Supervisor, WorkerProcess


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    config = ServerConfig(workers=2, control="off")
    ports = Ports((Endpoint("127.0.0.1", 0),), 2)
    supervisor = Supervisor("server", config, ports, _no_service)
    yield supervisor
    supervisor._stop_logs()
    supervisor._loop.close()
    ports.close()


def _no_service(*_: object) -> Service:
    raise AssertionError


def no_more(*_: object) -> None:
    raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


@pytest.mark.parametrize("fails", ["fork", "pidfd_open", "pair", "watch_level"])
def test_a_worker_that_cannot_be_started_is_tried_again_later_and_later(
    supervisor: Supervisor,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fails: str,
) -> None:
    children: list[int] = []

    def fork() -> int:
        children.append(subprocess.Popen(["sleep", "60"]).pid)
        return children[-1]

    monkeypatch.setattr(os, "fork", fork)
    owner: object = {"pair": supervisor_module, "watch_level": supervisor._loop}.get(fails, os)
    monkeypatch.setattr(owner, fails, no_more)
    worker = supervisor._workers[0]
    supervisor._start_logs()
    began = supervisor._loop.clock()
    for _ in range(3):
        supervisor._spawn(worker)
        assert (worker.pid, worker.pidfd, worker.channel) == (0, -1, None)
    # What was started and cannot be watched is not left behind.
    for child in children:
        with pytest.raises(ChildProcessError):
            os.waitpid(child, os.WNOHANG)
    times = sorted(round(when - began) for when, _, _ in supervisor._loop._timers)
    assert times == [0, 1, 2] or times == [1, 1, 2]  # 0.5, 1 and 2 s
    supervisor._stop_logs()
    log = capfd.readouterr().err
    assert "cannot start worker 0: Resource temporarily unavailable; trying again in 2.0 s" in log
    again: list[WorkerProcess] = []
    monkeypatch.setattr(supervisor, "_start", again.append)
    supervisor._loop.now = began + 3
    supervisor._loop._run_timers()
    assert again == [worker] * 3


ONE, OTHER = Membership(b"1" * 16, b"s" * 32), Membership(b"2" * 16, b"t" * 32)


class Wire(Channel):
    """A channel that remembers what is sent."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def close(self) -> None:
        pass


class TestSessionsOfADeadWorker:
    @pytest.fixture
    def wires(self, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> tuple[Wire, Wire]:
        """Two workers; the first is about to die."""
        wires = (Wire(), Wire())
        for worker, wire in zip(supervisor._workers, wires, strict=True):
            worker.channel, worker.pid, worker.serving = wire, 1, True
        supervisor._workers[0].pidfd = os.open("/dev/null", os.O_RDONLY)
        supervisor._on_message(supervisor._workers[0], Sessions([ONE]))
        supervisor._on_message(supervisor._workers[1], Sessions([OTHER]))
        monkeypatch.setattr(supervisor, "_spawn", lambda _worker: None)
        return wires

    def die(self, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
        monkeypatch.setattr(os, "waitpid", lambda pid, _options: (pid, status))
        supervisor._reap(supervisor._workers[0])

    def test_another_worker_ends_them(
        self, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, wires: tuple[Wire, Wire]
    ) -> None:
        self.die(supervisor, monkeypatch, 9)
        assert wires[1].sent == [Left([ONE])]
        # If that one dies as well, they are passed on once more.
        first, second = supervisor._workers
        assert (first.sessions, second.sessions) == ([], [OTHER, ONE])

    def test_one_that_ended_well_has_left_nothing(
        self, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, wires: tuple[Wire, Wire]
    ) -> None:
        self.die(supervisor, monkeypatch, 0)
        assert wires[1].sent == []
        assert supervisor._workers[0].sessions == []

    @pytest.mark.parametrize("other", ["starting", "dead"])
    def test_without_another_its_successor_does(
        self,
        supervisor: Supervisor,
        monkeypatch: pytest.MonkeyPatch,
        wires: tuple[Wire, Wire],
        other: str,
    ) -> None:
        first, second = supervisor._workers
        second.serving = other != "starting"
        second.pid = 0 if other == "dead" else 1
        self.die(supervisor, monkeypatch, 9)
        assert wires[1].sent == []
        child = subprocess.Popen(["sleep", "60"])
        told = Wire()
        monkeypatch.setattr(supervisor, "_fork", lambda *_: child.pid)
        monkeypatch.setattr(supervisor_module, "Channel", lambda *_: told)
        try:
            supervisor._start(first)
            assert told.sent == [Left([ONE])]
        finally:
            supervisor._loop.unwatch(first.pidfd)
            os.close(first.pidfd)
            child.kill()
            child.wait()
