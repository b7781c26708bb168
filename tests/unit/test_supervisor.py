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
from fastmtcp.workers import supervisor as supervisor_module
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
