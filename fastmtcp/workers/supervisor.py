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
from fastmtcp.errors import StartError
from fastmtcp.io.backoff import Backoff
from fastmtcp.io.loop import Loop, Timer
from fastmtcp.status.control_name import ControlName
from fastmtcp.workers.channel import (
    CannotStart,
    Channel,
    Drain,
    Heartbeat,
    Message,
    PoolState,
    Serving,
    StatusPart,
    pair,
)
from fastmtcp.workers.control_socket import ControlSocket, listen
from fastmtcp.workers.notify import Notifier
from fastmtcp.workers.overview import Overview
from fastmtcp.workers.ports import Ports
from fastmtcp.workers.worker import EXIT_CANNOT_START, EXIT_CLEAN, Service, Worker

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


class _Slot:
    """One worker's place: its process now, and what is known of it."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.pid = 0
        self.pidfd = -1
        self.channel: Channel | None = None
        self.serving = False
        self.pool: PoolState | None = None
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
    ) -> None:
        """The program is ready when all workers serve; with `waits_for_subflows` only when their
        subflows are up too, or have had some time for it."""
        self._name = name
        self._config = config
        self._ports = ports
        self._make_service = make_service
        self._waits_for_subflows = waits_for_subflows
        self._loop = Loop()
        self._slots = [_Slot(index) for index in range(config.worker_count())]
        self._stop_logs: Callable[[], None] = _nothing
        self._exit_code = 0
        self._stopping = False
        self._ready = False
        self._was_full = False
        self._ready_timer: Timer | None = None
        self._signal_pipe = os.pipe()
        self._control: ControlSocket | None = None
        self._service = Notifier()
        self._overview = Overview(self._loop, config.program, ports.names, self._slots, self._state)

    def run(self) -> int:
        """Returns the exit code of the program."""
        self._start_logs()
        try:
            self._watch_signals()
            self._open_control()
            for slot in self._slots:
                self._spawn(slot)
            self._loop.call_later(1.0, self._watch_health)
            self._loop.run()
            return self._exit_code
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                # The interpreter gives handlers back before it is gone, and a second signal
                # would then end an orderly exit by its default.
                signal.signal(number, signal.SIG_IGN)
            self._ports.close()
            self._stop_logs()

    # --- workers ------------------------------------------------------------------------------

    def _spawn(self, slot: _Slot) -> None:
        if self._stopping:
            return
        ours, theirs = pair()
        # A forked child has this thread only: the log thread must not hold a lock right now.
        self._stop_logs()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._become_worker(slot, theirs)
        theirs.close()
        self._start_logs()
        slot.pid = pid
        slot.pidfd = os.pidfd_open(pid)
        slot.serving = False
        slot.pool = None
        slot.aborted_at = None
        slot.started_at = slot.heard_at = self._loop.clock()
        slot.channel = Channel(
            self._loop, ours, lambda message: self._on_message(slot, message), _nothing
        )
        self._loop.watch_level(slot.pidfd, lambda _mask: self._on_exit(slot))

    def _become_worker(self, slot: _Slot, sock: socket.socket) -> None:
        """In the child; never returns."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._loop.close()
            for fd in self._signal_pipe:
                os.close(fd)
            if self._control is not None:
                self._control.close()
            # A channel's end in a sibling would hide from this one that the supervisor is gone.
            for other in self._slots:
                if other.channel is not None:
                    other.channel.close()
                if other.pidfd >= 0:
                    os.close(other.pidfd)
            self._ports.keep_only(slot.index)
            name = f"{self._name}[{slot.index}]"
            make = partial(self._make_service, slot.index)
            code = Worker(name, self._config, sock, make).run()
        except BaseException as error:
            os.write(2, f"{self._name}[{slot.index}]: {error!r}\n".encode())
        finally:
            # No clean-up of what belongs to the parent: exit handlers, buffers, threads.
            os._exit(code)

    def _on_message(self, slot: _Slot, message: Message) -> None:
        slot.heard_at = self._loop.now
        if isinstance(message, Serving):
            slot.serving = True
            self._check_ready()
        elif isinstance(message, PoolState):
            slot.pool = message
            self._check_ready()
        elif isinstance(message, CannotStart):
            log.error("%s", message.reason)
            self._exit_code = message.exit_code
            self._stop(0)
        elif isinstance(message, Heartbeat):
            pass  # hearing it was all
        elif isinstance(message, StatusPart):
            self._overview.on_part(slot, message)

    def _on_exit(self, slot: _Slot) -> None:
        # What it said last may still be in the channel.
        self._loop.call_soon(lambda: self._reap(slot))
        self._loop.unwatch(slot.pidfd)

    def _reap(self, slot: _Slot) -> None:
        pid, status = os.waitpid(slot.pid, 0)
        os.close(slot.pidfd)
        slot.pidfd = -1
        slot.pid = 0
        if slot.channel is not None:
            slot.channel.close()
            slot.channel = None
        self._ports.silence(slot.index)
        self._overview.on_gone(slot)
        code = os.waitstatus_to_exitcode(status)
        if not self._stopping and code != EXIT_CANNOT_START:
            self._restart(slot, pid, code)
        elif not any(other.pid for other in self._slots):
            self._loop.stop()

    def _restart(self, slot: _Slot, pid: int, code: int) -> None:
        now = self._loop.now
        if code == EXIT_CLEAN or now - slot.started_at >= _LASTING:
            slot.backoff.reset()
        delay = slot.backoff.next()
        slot.restarts += 1
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        log.warning("worker %d (pid %d) ended %s; next in %.1f s", slot.index, pid, how, delay)
        self._loop.call_later(delay, lambda: self._spawn(slot))

    def _watch_health(self) -> None:
        now = self._loop.now
        alive = True
        for slot in self._slots:
            if not slot.pid or now - slot.heard_at < _HUNG:
                continue
            # The service manager's watchdog ends all of us, so ours has its chance first.
            alive = alive and now - slot.heard_at < _HUNG + _KILL + _GRACE
            if slot.aborted_at is None:
                log.error("worker %d (pid %d) hangs; aborting it", slot.index, slot.pid)
                slot.aborted_at = now
                _kill(slot.pid, signal.SIGABRT)
            elif now - slot.aborted_at >= _KILL:
                _kill(slot.pid, signal.SIGKILL)
        if alive:
            self._service.alive(now)
        self._loop.call_later(1.0, self._watch_health)

    # --- status -------------------------------------------------------------------------------

    def _open_control(self) -> None:
        """Listen for `fastmtcp status`. Only a name that the user has chosen must be free."""
        chosen = self._config.control
        if chosen == CONTROL_OFF:
            return
        usual = f"{self._name}-{self._ports.first_port}"
        names = [usual, f"{usual}-{os.getpid()}"] if chosen is None else [chosen]
        try:
            sock, name = listen([ControlName(name) for name in names])
        except StartError as error:
            if chosen is not None:
                raise
            log.warning("%s; `fastmtcp status` will not find this one", error)
            return
        self._overview.control = str(name)
        self._control = ControlSocket(self._loop, sock, self._overview.ask)

    def _state(self) -> str:
        if self._stopping:
            return "stopping"
        return "ready" if self._ready else "starting"

    # --- ready --------------------------------------------------------------------------------

    def _check_ready(self) -> None:
        if self._stopping or not all(slot.serving for slot in self._slots):
            return
        if not self._waits_for_subflows:
            self._say_ready("")
            return
        pools = [slot.pool for slot in self._slots if slot.pool is not None]
        up, wanted = sum(pool.up for pool in pools), sum(pool.wanted for pool in pools)
        full = up == wanted > 0 and len(pools) == len(self._slots)
        if not self._ready and not full:
            if self._ready_timer is None:
                self._ready_timer = self._loop.call_later(_READY_WAIT, self._ready_anyway)
            return
        if not self._ready:
            self._say_ready(f", {up} of {wanted} subflows up")
        elif full and not self._was_full:
            log.info("%d of %d subflows up", up, wanted)
        self._was_full = full

    def _ready_anyway(self) -> None:
        """The server is not there yet: serve all the same, and say so."""
        pools = [slot.pool for slot in self._slots if slot.pool is not None]
        up, wanted = sum(pool.up for pool in pools), sum(pool.wanted for pool in pools)
        trouble = next((pool.trouble for pool in pools if pool.trouble), "")
        if not self._ready:
            why = f" ({trouble}; trying again)" if trouble else ""
            self._say_ready(f", {up} of {wanted} subflows up{why}")

    def _say_ready(self, more: str) -> None:
        if not self._ready:
            self._ready = True
            count = len(self._slots)
            names = ", ".join(self._ports.names)
            log.info(
                "ready: listening on %s with %d worker%s%s",
                names,
                count,
                "" if count == 1 else "s",
                more,
            )
            self._service.say("READY=1", f"STATUS=listening on {names}{more}")

    # --- the end ------------------------------------------------------------------------------

    def _watch_signals(self) -> None:
        read, write = self._signal_pipe
        for fd in self._signal_pipe:
            os.set_blocking(fd, False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _wake)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._loop.watch_level(read, self._on_signal)

    def _on_signal(self, _mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._signal_pipe[0], 64)
        if self._stopping:
            log.info("stopping now")
            self._stop(0)
        else:
            timeout = self._config.drain_timeout
            log.info("stopping: open streams have %g s (again to stop at once)", timeout)
            self._stop(timeout)

    def _stop(self, timeout: float) -> None:
        self._stopping = True
        micros = int((timeout + _GRACE + _KILL) * 1e6)
        self._service.say("STOPPING=1", f"EXTEND_TIMEOUT_USEC={micros}")
        self._ports.close()
        for slot in self._slots:
            if slot.channel is not None:
                slot.channel.send(Drain(timeout))
        self._loop.call_later(timeout + _GRACE, self._kill_all)
        if not any(slot.pid for slot in self._slots):
            self._loop.stop()

    def _kill_all(self) -> None:
        for slot in self._slots:
            if slot.pid:
                log.error("worker %d (pid %d) does not end; killing it", slot.index, slot.pid)
                _kill(slot.pid, signal.SIGKILL)

    def _start_logs(self) -> None:
        self._stop_logs = logs.start(self._name, self._config.log_level, self._config.log_format)


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _wake(_number: int, _frame: object) -> None:
    """The signal is told through the wake-up descriptor."""


def _nothing() -> None:
    pass
