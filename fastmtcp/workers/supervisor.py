"""The parent process: starts workers, keeps them alive, passes signals on, ends with them.

It never sleeps and polls: children end by pidfd, signals come by a pipe, workers speak by their
channels, and everything else is a timer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from functools import partial

from fastmtcp import logs
from fastmtcp.config.common import CONTROL_OFF, Config
from fastmtcp.driver.service import Service
from fastmtcp.errors import StartError
from fastmtcp.io.backoff import Backoff
from fastmtcp.io.loop import Loop, Timer
from fastmtcp.io.signals import ENDING, Signals, hold_back, leave_to_parent, let_through
from fastmtcp.security.handshake import Membership
from fastmtcp.status.control_name import MAX_NAME, ControlName
from fastmtcp.workers.channel import (
    CannotStart,
    Channel,
    Drain,
    Heartbeat,
    Left,
    Message,
    PoolState,
    Serving,
    Sessions,
    StatusPart,
    pair,
)
from fastmtcp.workers.control_socket import ControlSocket, listen
from fastmtcp.workers.notify import Notifier
from fastmtcp.workers.overview import Overview
from fastmtcp.workers.ports import Ports
from fastmtcp.workers.worker import EXIT_CANNOT_START, EXIT_CLEAN, Worker

log = logging.getLogger("fastmtcp.supervisor")

_FIRST_DELAY = 0.5
_MAX_DELAY = 30.0
_LASTING = 60.0
"""A worker that lived this long, in seconds, did not crash in a row."""

_HUNG = 30.0
"""Seconds without a heartbeat after which a worker is aborted; then it has _KILL to go."""

_KILL = 5.0
_GRACE = 5.0
"""Seconds beyond the drain timeout after which a worker that is still there is killed."""

_READY_WAIT = 2.0
"""A program that waits for its subflows is called ready after this many seconds also when they are
still missing."""

MakeService = Callable[[int, Loop, Channel], Service]
"""Makes the service of the worker with an index, in its process."""


class WorkerProcess:
    """One worker as the supervisor sees it: its process, or that it has none, and what is known."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.pid = 0
        self.pidfd = -1
        self.channel: Channel | None = None
        self.serving = False
        self.pool: PoolState | None = None
        self.sessions: list[Membership] = []
        """At a client: what the server keeps for this worker, and waits for if it dies."""
        self.started_at = 0.0
        self.heard_at = 0.0
        self.backoff = Backoff(_FIRST_DELAY, _MAX_DELAY)
        self.restarts = 0
        self.aborted_at: float | None = None


class Supervisor:
    """Runs `config.worker_count()` workers until a signal, or until one cannot start."""

    def __init__(
        self,
        name: str,
        config: Config,
        ports: Ports,
        make_service: MakeService,
        *,
        waits_for_subflows: bool = False,
        clients_file: str = "",
    ) -> None:
        """The program is ready when all workers serve; with `waits_for_subflows` only when their
        subflows are up too, or have had some time for it."""
        self._name = name
        self._config = config
        self._ports = ports
        self._make_service = make_service
        self._waits_for_subflows = waits_for_subflows
        try:
            self._loop = Loop()
        except OSError:
            ports.close()
            raise
        self._workers = [WorkerProcess(index) for index in range(config.worker_count())]
        self._stop_logs: Callable[[], None] = _nothing
        self._exit_code = 0
        self._stopping = False
        self._ready = False
        self._was_full = False
        self._ready_timer: Timer | None = None
        self._signals: Signals | None = None
        self._control: ControlSocket | None = None
        self._control_name = ""
        self._notifier = Notifier()
        self._overview = Overview(
            self._loop, config.program, ports.names, self._workers, self._state, clients_file
        )

    def run(self) -> int:
        """Returns the exit code of the program."""
        self._start_logs()
        try:
            self._signals = Signals(self._loop, ENDING, self._on_signal)
            let_through()
            # If whoever started us ignores it, the kernel forgets how a worker ended.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._open_control()
            for words in self._ports.left_out:
                log.warning(words)
            for worker in self._workers:
                self._spawn(worker)
            self._loop.call_later(1.0, self._watch_health)
            self._loop.run()
            return self._exit_code
        finally:
            if self._signals is not None:
                self._signals.ignore()
            self._ports.close()
            self._stop_logs()

    # --- workers ------------------------------------------------------------------------------

    def _spawn(self, worker: WorkerProcess) -> None:
        """Start a worker, or try again later: that there is no process or descriptor left right now
        must not end those that are at work."""
        if self._stopping:
            return
        try:
            self._start(worker)
        except OSError as error:
            delay = worker.backoff.next()
            log.error(
                "cannot start worker %d: %s; trying again in %.1f s",
                worker.index,
                error.strerror,
                delay,
            )
            self._loop.call_later(delay, lambda: self._spawn(worker))

    def _start(self, worker: WorkerProcess) -> None:
        """Raises OSError, and leaves nothing behind then."""
        ours, theirs = pair()
        pid, pidfd = 0, -1
        try:
            pid = self._fork(worker, ours, theirs)
            pidfd = os.pidfd_open(pid)
            channel = Channel(
                self._loop, ours, lambda message: self._on_message(worker, message), _nothing
            )
            try:
                self._loop.watch_level(pidfd, lambda _mask: self._on_exit(worker))
            except OSError:
                channel.close()
                raise
        except OSError:
            ours.close()
            if pidfd >= 0:
                os.close(pidfd)
            if pid:
                _kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            raise
        finally:
            theirs.close()
        worker.pid = pid
        worker.pidfd = pidfd
        worker.channel = channel
        worker.serving = False
        worker.pool = None
        worker.aborted_at = None
        worker.started_at = worker.heard_at = self._loop.clock()
        if worker.sessions:
            channel.send(Left(worker.sessions))

    def _fork(self, worker: WorkerProcess, ours: socket.socket, theirs: socket.socket) -> int:
        # A forked child has this thread only: the log thread must not hold a lock right now. Nor
        # must the child tell a signal of its own by our pipe, as long as it has that.
        self._stop_logs()
        hold_back()
        try:
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._become_worker(worker, theirs)
        finally:
            let_through()
            self._start_logs()
        return pid

    def _become_worker(self, worker: WorkerProcess, sock: socket.socket) -> None:
        """In the child; never returns."""
        code = 1
        try:
            if self._signals is not None:
                self._signals.forget()
            leave_to_parent()
            let_through()
            self._loop.close()
            if self._control is not None:
                self._control.close()
            # A channel's end in a sibling would hide from this one that the supervisor is gone.
            for other in self._workers:
                if other.channel is not None:
                    other.channel.close()
                if other.pidfd >= 0:
                    os.close(other.pidfd)
            self._ports.keep_only(worker.index)
            name = f"{self._name}[{worker.index}]"
            make = partial(self._make_service, worker.index)
            code = Worker(name, self._config, sock, make).run()
        except BaseException as error:
            os.write(2, f"{self._name}[{worker.index}]: {error!r}\n".encode())
        finally:
            # No clean-up of what belongs to the parent: exit handlers, buffers, threads.
            os._exit(code)

    def _on_message(self, worker: WorkerProcess, message: Message) -> None:
        worker.heard_at = self._loop.now
        if isinstance(message, Serving):
            worker.serving = True
            self._check_ready()
        elif isinstance(message, PoolState):
            worker.pool = message
            self._check_ready()
        elif isinstance(message, CannotStart):
            log.error("%s", message.reason)
            self._exit_code = message.exit_code
            self._stop(0)
        elif isinstance(message, Heartbeat):
            pass  # hearing it was all
        elif isinstance(message, StatusPart):
            self._overview.on_part(worker, message)
        elif isinstance(message, Sessions):
            worker.sessions = message.sessions

    def _on_exit(self, worker: WorkerProcess) -> None:
        # Its last messages may still be in the channel.
        self._loop.call_soon(lambda: self._reap(worker))
        self._loop.unwatch(worker.pidfd)

    def _reap(self, worker: WorkerProcess) -> None:
        pid, status = os.waitpid(worker.pid, 0)
        os.close(worker.pidfd)
        worker.pidfd = -1
        worker.pid = 0
        if worker.channel is not None:
            worker.channel.close()
            worker.channel = None
        self._ports.silence(worker.index)
        self._overview.on_gone(worker)
        code = os.waitstatus_to_exitcode(status)
        if code == EXIT_CLEAN:
            worker.sessions = []
        self._pass_on_sessions(worker)
        if not self._stopping and code != EXIT_CANNOT_START:
            self._restart(worker, pid, code)
        elif not any(other.pid for other in self._workers):
            self._loop.stop()

    def _pass_on_sessions(self, worker: WorkerProcess) -> None:
        """The server would wait for what a dead worker has left. If no other worker can end it,
        the next in its place does."""
        heir = next((other for other in self._workers if other.serving and other.pid), None)
        if worker.sessions and heir is not None and heir.channel is not None:
            heir.channel.send(Left(worker.sessions))
            heir.sessions = [*heir.sessions, *worker.sessions]
            worker.sessions = []

    def _restart(self, worker: WorkerProcess, pid: int, code: int) -> None:
        now = self._loop.now
        if code == EXIT_CLEAN or now - worker.started_at >= _LASTING:
            worker.backoff.reset()
        delay = worker.backoff.next()
        worker.restarts += 1
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        log.warning("worker %d (pid %d) ended %s; next in %.1f s", worker.index, pid, how, delay)
        self._loop.call_later(delay, lambda: self._spawn(worker))

    def _watch_health(self) -> None:
        now = self._loop.now
        alive = True
        for worker in self._workers:
            if not worker.pid or now - worker.heard_at < _HUNG:
                continue
            # The service manager's watchdog ends all of us, so ours has its chance first.
            alive = alive and now - worker.heard_at < _HUNG + _KILL + _GRACE
            if worker.aborted_at is None:
                log.error("worker %d (pid %d) hangs; aborting it", worker.index, worker.pid)
                worker.aborted_at = now
                _kill(worker.pid, signal.SIGABRT)
            elif now - worker.aborted_at >= _KILL:
                _kill(worker.pid, signal.SIGKILL)
        if alive:
            self._notifier.alive(now)
        self._loop.call_later(1.0, self._watch_health)

    # --- status -------------------------------------------------------------------------------

    def _open_control(self) -> None:
        """Listen for `fastmtcp status`. Only a name that the user has chosen must be free."""
        chosen = self._config.control
        if chosen == CONTROL_OFF:
            return
        usual = f"{self._name}-{self._ports.first_port}"
        names = [ControlName(usual), _of_this_process(usual)]
        try:
            sock, name = listen(names if chosen is None else [ControlName(chosen)])
        except StartError as error:
            if chosen is not None:
                raise
            log.warning("%s; `fastmtcp status` will not find this one", error)
            return
        self._overview.control = str(name)
        self._control_name = name.name
        self._control = ControlSocket(self._loop, sock, self._overview.ask)

    def _free_name(self) -> None:
        """Leave the name to a successor, which may start while our streams come to their end."""
        if self._control is None:
            return
        sock = None
        try:
            sock, name = listen([_of_this_process(self._control_name)])
        except StartError as error:
            log.warning("%s; `fastmtcp status` will not find this one any more", error)
        else:
            self._overview.control = str(name)
        self._control.listen_on(sock)

    def _state(self) -> str:
        if self._stopping:
            return "stopping"
        return "ready" if self._ready else "starting"

    # --- ready --------------------------------------------------------------------------------

    def _check_ready(self) -> None:
        if self._stopping or not all(worker.serving for worker in self._workers):
            return
        if not self._waits_for_subflows:
            self._announce_ready("")
            return
        pools = [worker.pool for worker in self._workers if worker.pool is not None]
        up, wanted = sum(pool.up for pool in pools), sum(pool.wanted for pool in pools)
        full = up == wanted > 0 and len(pools) == len(self._workers)
        if not self._ready and not full:
            if self._ready_timer is None:
                self._ready_timer = self._loop.call_later(_READY_WAIT, self._ready_anyway)
            return
        if not self._ready:
            self._announce_ready(f", {up} of {wanted} subflows up")
        elif full and not self._was_full:
            log.info("%d of %d subflows up", up, wanted)
        self._was_full = full

    def _ready_anyway(self) -> None:
        """The server is not there yet: serve all the same, and say so."""
        pools = [worker.pool for worker in self._workers if worker.pool is not None]
        up, wanted = sum(pool.up for pool in pools), sum(pool.wanted for pool in pools)
        trouble = next((pool.trouble for pool in pools if pool.trouble), "")
        if not self._ready:
            why = f" ({trouble}; trying again)" if trouble else ""
            self._announce_ready(f", {up} of {wanted} subflows up{why}")

    def _announce_ready(self, more: str) -> None:
        if not self._ready:
            self._ready = True
            count = len(self._workers)
            names = ", ".join(self._ports.names)
            log.info(
                "ready: listening on %s with %d worker%s%s",
                names,
                count,
                "" if count == 1 else "s",
                more,
            )
            self._notifier.send("READY=1", f"STATUS=listening on {names}{more}")

    # --- the end ------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        if self._stopping:
            log.info("stopping now")
            self._stop(0)
        else:
            timeout = self._config.drain_timeout
            log.info("stopping: open streams have %g s (again to stop at once)", timeout)
            self._stop(timeout)

    def _stop(self, timeout: float) -> None:
        again, self._stopping = self._stopping, True
        micros = int((timeout + _GRACE + _KILL) * 1e6)
        self._notifier.send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={micros}")
        for worker in self._workers:
            if worker.channel is not None:
                worker.channel.send(Drain(timeout))
        if not again:
            self._ports.close()
            self._free_name()
        self._loop.call_later(timeout + _GRACE, self._kill_all)
        if not any(worker.pid for worker in self._workers):
            self._loop.stop()

    def _kill_all(self) -> None:
        for worker in self._workers:
            if worker.pid:
                log.error("worker %d (pid %d) does not end; killing it", worker.index, worker.pid)
                _kill(worker.pid, signal.SIGKILL)

    def _start_logs(self) -> None:
        self._stop_logs = logs.start(self._name, self._config.log_level, self._config.log_format)


def _of_this_process(name: str) -> ControlName:
    """A name like `name` that no other process has."""
    number = f"-{os.getpid()}"
    return ControlName(name[: MAX_NAME - len(number)] + number)


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _nothing() -> None:
    pass
