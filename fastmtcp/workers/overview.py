"""The supervisor's answer to `fastmtcp status`: asks every worker and puts the answers together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from fastmtcp._version import __version__
from fastmtcp.io.loop import Loop
from fastmtcp.status import document
from fastmtcp.status.document import InstanceStatus, TotalsStatus, WorkerReport, WorkerStatus
from fastmtcp.workers.channel import Channel, StatusPart, StatusRequest

WAIT = 2.0
"""Seconds that a worker may take to answer. One that hangs is shown as silent."""

FRESH = 0.2
"""An answer younger than this, in seconds, is given again: asking without end costs little."""

MAX_REPORT = 16 << 20

_encode = msgspec.json.Encoder().encode
_decode = msgspec.msgpack.Decoder(WorkerReport).decode


class WorkerInfo(Protocol):
    """What the supervisor knows of one worker."""

    index: int
    pid: int
    channel: Channel | None
    serving: bool
    started_at: float
    restarts: int


class Overview:
    """Answers questions. Those that come while one is being answered get the same answer."""

    def __init__(
        self,
        loop: Loop,
        program: str,
        listening: Sequence[str],
        workers: Sequence[WorkerInfo],
        state: Callable[[], str],
        clients_file: str = "",
    ) -> None:
        self._clients_file = clients_file
        self._loop = loop
        self._program = program
        self._listening = list(listening)
        self._workers = workers
        self._state = state
        self._began = loop.now
        self.control = ""
        """Where the questions come from."""
        self._round: _Round | None = None
        self._token = 0
        self._waiting: list[Callable[[bytes], None]] = []
        self._last = b""
        self._last_at = float("-inf")

    def ask(self, done: Callable[[bytes], None]) -> None:
        """Call `done` with the document, now or within WAIT seconds."""
        if self._loop.now - self._last_at < FRESH:
            done(self._last)
            return
        self._waiting.append(done)
        if self._round is None:
            self._token += 1
            self._round = _Round(self._loop, self._token, self._workers, self._finish)
            self._round.start()

    def on_part(self, worker: WorkerInfo, part: StatusPart) -> None:
        """A worker has sent a piece of its answer."""
        if self._round is not None:
            self._round.on_part(worker, part)

    def on_gone(self, worker: WorkerInfo) -> None:
        """A worker has ended."""
        if self._round is not None:
            self._round.on_gone(worker)

    def _finish(self, reports: dict[int, WorkerReport]) -> None:
        self._round = None
        workers = [self._status(worker, reports.get(worker.index)) for worker in self._workers]
        totals = TotalsStatus()
        for one in workers:
            totals.add(one.totals)
        whole = InstanceStatus(
            format=document.FORMAT,
            program=self._program,
            version=__version__,
            pid=os.getpid(),
            uptime=round(self._loop.now - self._began, 3),
            state=self._state(),
            control=self.control,
            listening=self._listening,
            clients_file=self._clients_file,
            totals=totals,
            workers=workers,
        )
        self._last = _encode(whole) + b"\n"
        self._last_at = self._loop.clock()
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done(self._last)

    def _status(self, worker: WorkerInfo, report: WorkerReport | None) -> WorkerStatus:
        if not worker.pid:
            state = "down"
        elif not worker.serving:
            state = "starting"
        else:
            state = "serving" if report is not None else "silent"
        uptime = self._loop.now - worker.started_at if worker.pid else 0.0
        return WorkerStatus(
            index=worker.index,
            pid=worker.pid or None,
            state=state,
            uptime=round(uptime, 3),
            restarts=worker.restarts,
            memory=proportional_set_size(worker.pid) if worker.pid else None,
            totals=report.totals if report is not None else TotalsStatus(),
            sessions=report.sessions if report is not None else [],
            clients=report.clients if report is not None else "",
        )


class _Round:
    """One question to all workers, fetched piece by piece from each."""

    def __init__(
        self,
        loop: Loop,
        token: int,
        workers: Sequence[WorkerInfo],
        done: Callable[[dict[int, WorkerReport]], None],
    ) -> None:
        self._token = token
        self._done = done
        self._asked = [
            worker for worker in workers if worker.channel is not None and worker.serving
        ]
        self._left = {worker.index for worker in self._asked}
        self._parts: dict[int, bytearray] = {index: bytearray() for index in self._left}
        self._reports: dict[int, WorkerReport] = {}
        self._timer = loop.call_later(WAIT, self._finish)

    def start(self) -> None:
        for worker in self._asked:
            self._fetch(worker)
        if not self._left:
            self._finish()

    def on_part(self, worker: WorkerInfo, part: StatusPart) -> None:
        parts = self._parts.get(worker.index)
        if part.token != self._token or parts is None or worker.index not in self._left:
            return
        if part.offset != len(parts) or part.total > MAX_REPORT or not part.data:
            self._drop(worker)
            return
        parts += part.data
        if len(parts) < part.total:
            self._fetch(worker)
            return
        with contextlib.suppress(msgspec.MsgspecError):
            self._reports[worker.index] = _decode(parts)
        self._drop(worker)

    def on_gone(self, worker: WorkerInfo) -> None:
        if worker.index in self._left:
            self._drop(worker)

    def _fetch(self, worker: WorkerInfo) -> None:
        if worker.channel is not None:
            worker.channel.send(StatusRequest(self._token, len(self._parts[worker.index])))

    def _drop(self, worker: WorkerInfo) -> None:
        """Nothing more is to come from this one."""
        self._left.discard(worker.index)
        if not self._left:
            self._finish()

    def _finish(self) -> None:
        self._timer.cancel()
        self._left = set()
        self._done(self._reports)


def proportional_set_size(pid: int) -> int | None:
    """Bytes of memory of a process, what it shares counted in part (proc_pid_smaps(5)). After
    `--user` the kernel does not let even us look so closely: then only what it does not share."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            _, resident, shared, *_ = map(int, file.read().split())
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
