"""Processes of a benchmark: started, waited for, measured, and ended with their children."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import psutil
from fastmtcp.errors import FastmtcpError

START_TIMEOUT = 20.0
STOP_TIMEOUT = 5.0
SAMPLE_EVERY = 0.2
_LISTEN = "0A"


class BenchmarkError(FastmtcpError):
    """The benchmark cannot be run here, or a program in it failed."""


def need(*programs: str) -> None:
    """Raise BenchmarkError for the first program that is not installed, naming its package."""
    packages = {"ip": "iproute2", "tc": "iproute2", "ss": "iproute2", "nft": "nftables",
                "nginx": "nginx-light"}  # fmt: skip
    for program in programs:
        if shutil.which(program) is None:
            package = packages.get(program, program)
            raise BenchmarkError(f"{program} is not installed; try `apt-get install {package}`")


class Process:
    """A running program. It ends with us, even if we are killed.

    `stdin` gives it a pipe to read from, `stdout` keeps what it prints for `output`, `log` is a
    file for what it writes to standard error.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        stdin: bool = False,
        stdout: bool = False,
        log: Path | None = None,
    ) -> None:
        self.name = name
        self._file = log
        self._log: deque[str] = deque(maxlen=20)
        self._ready = threading.Event()
        self._is_ready = False
        # A session of its own: Ctrl-C then reaches only us, and we end things in order.
        self.popen = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *command],
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            # Never a pipe that nobody reads: it fills up, and the program stops in a write.
            stdout=subprocess.PIPE if stdout else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.popen.pid

    def wait_ready(self) -> None:
        """Wait for a line with `ready` on its standard error. Raises BenchmarkError."""
        self._ready.wait(START_TIMEOUT)
        if not self._is_ready:
            raise BenchmarkError(f"{self.name} did not start: {self.last_words()}")

    def wait_listening(self, port: int) -> None:
        """Wait until somebody listens on `port` where the process runs. Raises BenchmarkError.

        Looks into /proc/net (proc_net(5)) rather than connecting, which a program that serves
        one connection would count.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self.popen.poll() is None:
            for table in ("tcp", "tcp6"):
                for line in Path(f"/proc/{self.pid}/net/{table}").read_text().splitlines()[1:]:
                    address, state = line.split()[1:4:2]
                    if state == _LISTEN and int(address.rpartition(":")[2], 16) == port:
                        return
            time.sleep(0.02)
        raise BenchmarkError(f"{self.name} does not listen on port {port}: {self.last_words()}")

    def output(self, timeout: float) -> str:
        """Its standard output, once it has ended by itself with exit code 0.

        Raises BenchmarkError if it fails or takes longer than `timeout` seconds.
        """
        assert self.popen.stdout is not None
        timer = threading.Timer(timeout, self.popen.kill)
        timer.start()
        try:
            text = self.popen.stdout.read()
            code = self.popen.wait()
        finally:
            timer.cancel()
        if code < 0:
            raise BenchmarkError(f"{self.name} was not done after {timeout:g} s")
        if code:
            self._reader.join(1)
            raise BenchmarkError(f"{self.name} failed: {self.last_words() or text[-500:]}")
        return text

    def last_words(self) -> str:
        return self._log[-1] if self._log else f"exit code {self.popen.poll()}"

    def stop(self) -> None:
        """End it and all its children: first by SIGTERM, then by SIGKILL."""
        family = _family([self.pid])
        self.popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(STOP_TIMEOUT)
        for process in family:
            # is_running compares the start time: a number that was used again is spared.
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.pid != self.pid:
                    process.kill()
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self._reader.join(1)

    def _read_log(self) -> None:
        assert self.popen.stderr is not None
        with open(self._file or os.devnull, "w", buffering=1) as file:
            for line in self.popen.stderr:
                file.write(line)
                if line.strip():
                    self._log.append(line.strip())
                if "ready" in line:
                    self._is_ready = True
                    self._ready.set()
        self._ready.set()


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str],
    *,
    ready: bool = True,
    stdin: bool = False,
    stdout: bool = False,
    log: Path | None = None,
) -> Iterator[Process]:
    """A Process for the time of the `with` block; `ready` waits for its ready line."""
    process = Process(name, command, stdin=stdin, stdout=stdout, log=log)
    try:
        if ready:
            process.wait_ready()
        yield process
    finally:
        process.stop()


def _family(pids: Sequence[int]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            found += [root, *root.children(recursive=True)]
    return found


def pss_of(pid: int) -> int:
    """Proportional set size of one process in bytes (smaps_rollup, proc(5)); 0 if it is gone."""
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0


class Memory(NamedTuple):
    """Of a process and all its children together, in bytes."""

    pss: int
    own: int
    """What only they have: PSS changes with whoever else runs the same Python."""


def memory_of(root: int) -> Memory:
    """What a process and its children have now."""
    pss = own = 0
    for process in _family([root]):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found = process.memory_full_info()
            pss += found.pss
            own += found.uss
    return Memory(pss, own)


def children_of(root: int) -> set[int]:
    """The numbers of a process' children and theirs."""
    return {process.pid for process in _family([root])} - {root}


class Meter:
    """CPU time and peak memory of processes and all their children, for a `with` block.

    `cpu` is user and system time in seconds; `peak_pss` and `peak_rss` are the largest sums seen
    in bytes, sampled every SAMPLE_EVERY seconds.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = list(pids)
        self._end = threading.Event()
        self.cpu = 0.0
        self.seconds = 0.0
        self.peak_pss = 0
        self.peak_rss = 0

    def __enter__(self) -> Meter:
        self._before = self._cpu_now()
        self._start = time.monotonic()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.seconds = time.monotonic() - self._start
        self.cpu = self._cpu_now() - self._before
        self._end.set()
        self._thread.join()

    def _cpu_now(self) -> float:
        total = 0.0
        for process in _family(self._pids):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                # The children's part is of those that have ended and were waited for.
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def _sample(self) -> None:
        while True:
            pss = rss = 0
            for process in _family(self._pids):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    memory = process.memory_full_info()
                    pss += memory.pss
                    rss += memory.rss
            self.peak_pss = max(self.peak_pss, pss)
            self.peak_rss = max(self.peak_rss, rss)
            if self._end.wait(SAMPLE_EVERY):
                return


def stop_on_signals() -> None:
    """Make SIGTERM and SIGHUP an exception like Ctrl-C, so that everything is cleaned up.

    SIGINT too: shells start background jobs with it ignored.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
