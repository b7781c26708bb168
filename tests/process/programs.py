"""The two commands as real processes, watched closely: what they log, fork, hold and leave."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
from fastmtcp.security.link import Link

from tests.io.net import WAIT, free_port, is_reset

T = TypeVar("T")

PLAIN, QUICK_START = "plain", "quick-start"
"""How a server and its clients are set up. Plain: key, TLS and certificate are left out, and there
are as many workers and connections as the test says. Quick start: as the README has it, by
`fastmtcp init server` and its link, and the number of both is found by the programs themselves."""

IN_BOTH_SETUPS = pytest.mark.parametrize("setup", [PLAIN, QUICK_START], indirect=True)
"""For tests of what must be so however the programs are set up."""

ALL_UP = r"\b(\d+) of \1 subflows up"
"""In the log of a client, however many it has."""

SERVER_DIR, LINK = "server", "first.link"
"""What a quick start leaves in the folder of the test."""

_FATAL = re.compile(r"Traceback|crashed|internal error|AssertionError")
_SLOW = re.compile(r"hangs|does not end")


def eventually(condition: Callable[[], T], what: str) -> T:
    """Wait until `condition()` is true, and return what it returned."""
    deadline = time.monotonic() + WAIT
    while not (result := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"still not so after {WAIT:g} s: {what}")
        time.sleep(0.01)
    return result


def command(name: str) -> str:
    """The installed console script."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.fail(f"{name} is not installed beside {sys.executable}: run `pip install -e .`")
    return str(path)


class Program:
    """A running `fastmtcp-server` or `fastmtcp-client`."""

    def __init__(
        self,
        name: str,
        arguments: tuple[str, ...],
        folder: Path,
        max_files: int | None = None,
        under: Sequence[str] = (),
    ) -> None:
        """`under` is a command that replaces itself by the one behind it, such as setpriv."""
        self.name = name
        self.expects_trouble = False
        """Set by a test that kills something: exit code and log may then say so."""
        self._log = folder / f"{name}-{len(list(folder.glob('*.log')))}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FASTMTCP")}

        def limit() -> None:
            if max_files is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, max_files))

        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [*under, command(name), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**environment, "TMPDIR": str(folder)},
                start_new_session=True,
                preexec_fn=limit,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, pattern: str, count: int = 1) -> str:
        """Wait for a line in the log; returns the `count`-th that matches."""

        def look() -> list[str]:
            lines = [line for line in self.log.splitlines() if re.search(pattern, line)]
            if len(lines) < count and self.process.poll() is not None:
                pytest.fail(f"{self.name} ended before it logged {pattern!r}:\n{self.log}")
            return lines[count - 1 :]

        try:
            return eventually(look, f"{self.name} logs {pattern!r}")[0]
        except pytest.fail.Exception as error:
            pytest.fail(f"{error}; its log:\n{self.log}")

    def ready(self) -> Program:
        self.wait_for(r"\bready\b")
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens first, from the line that says `ready`."""
        found = re.search(r"listening on \[?([^,\s]+?)\]?:(\d+)[, ]", self.wait_for(r"\bready\b"))
        assert found is not None
        return found[1], int(found[2])

    @property
    def port(self) -> int:
        return self.address[1]

    def workers(self) -> list[int]:
        """Pids of the worker processes."""
        return sorted(child.pid for child in psutil.Process(self.process.pid).children())

    def connect(self, timeout: float = WAIT) -> socket.socket:
        return socket.create_connection(self.address, timeout)

    def check_resets(self, content: bytes = b"") -> None:
        """Connect as an application, and fail unless that connection is reset."""
        try:
            with self.connect() as sock:
                sock.sendall(content)
                eventually(lambda: is_reset(sock), "the application is reset")
        except (ConnectionResetError, BrokenPipeError):
            pass  # before connect() or send() had returned

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code, once it has ended."""
        try:
            return self.process.wait(WAIT)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} does not end; its log:\n{self.log}")

    def family(self) -> list[int]:
        """Every process that this one has started and that is still there, itself included."""
        found = []
        for pid in psutil.pids():
            try:
                if os.getsid(pid) == self.process.pid and psutil.Process(pid).status() != "zombie":
                    found.append(pid)
            except (ProcessLookupError, psutil.NoSuchProcess):
                pass
        return found

    def end(self) -> None:
        """Stop it as a user would, then make sure that nothing is left."""
        if self.process.poll() is None:
            # The second signal ends the wait for streams that the test has left open.
            for _ in range(2):
                self.process.send_signal(signal.SIGTERM)
                try:
                    self.process.wait(0.5)
                    break
                except subprocess.TimeoutExpired:
                    continue
            try:
                self.process.wait(WAIT)
            except subprocess.TimeoutExpired:
                self.kill()
                pytest.fail(f"{self.name} had to be killed; its log:\n{self.log}")
            if not self.expects_trouble and self.process.returncode:
                pytest.fail(f"{self.name} ended with {self.process.returncode}:\n{self.log}")
        eventually(lambda: not self.family(), f"the workers of {self.name} end")
        trouble = _FATAL.search(self.log)
        if not self.expects_trouble:
            trouble = trouble or _SLOW.search(self.log)
        if trouble:
            pytest.fail(f"{trouble[0]!r} in the log of {self.name}:\n{self.log}")

    def kill(self) -> None:
        for pid in self.family():
            os.kill(pid, signal.SIGKILL)
        self.process.wait(WAIT)


class Programs:
    """Starts programs for one test and, at its end, checks what they leave behind."""

    def __init__(self, folder: Path, setup: str = PLAIN) -> None:
        self.folder = folder
        self.is_quick_start = setup == QUICK_START
        self._public_port: int | None = None
        self._started: list[Program] = []
        self._shared_memory = _shared_memory()

    def start(
        self,
        name: str,
        *arguments: object,
        max_files: int | None = None,
        under: Sequence[str] = (),
    ) -> Program:
        """Start a command with just these arguments."""
        program = Program(name, tuple(map(str, arguments)), self.folder, max_files, under)
        self._started.append(program)
        return program

    def server(self, target: int | str, *arguments: object, port: int = 0) -> Program:
        """A server on loopback, ready."""
        target = target if isinstance(target, str) else f"127.0.0.1:{target}"
        where: tuple[object, ...] = ("--target", target)
        if self.is_quick_start:
            is_first = self._public_port is None
            public = self.init_server(port)
            where += ("--config", f"{SERVER_DIR}/server.toml")
            if not is_first and port != public:
                where += ("--listen", f"127.0.0.1:{port}")
        else:
            where += ("--listen", f"127.0.0.1:{port}")
        return self.start("fastmtcp-server", *where, *arguments).ready()

    def client(self, server: Program | int, *arguments: object, port: int = 0) -> Program:
        """A client on loopback, ready; if `arguments` do not say how many connections, a plain one
        has 4."""
        number = server.port if isinstance(server, Program) else server
        where = ("--listen", f"127.0.0.1:{port}", *self._way_to(number))
        # The last number counts.
        many = self.fixed("--connections", 4)
        return self.start("fastmtcp-client", *where, *many, *arguments).ready()

    def init_server(self, port: int = 0, target: str = "127.0.0.1:5201") -> int:
        """Run `fastmtcp init server` unless that was done; the port of its public address."""
        if self._public_port is None:
            self._public_port = port or free_port()
            address = ("--public-address", f"127.0.0.1:{self._public_port}")
            where = ("--target", target, "--dir", SERVER_DIR)
            self.keep_link(LINK, "init", "server", *address, *where)
        return self._public_port

    def keep_link(self, name: str, *line: str) -> Link:
        """Run a command that prints a link, and keep that in a file, as a user would."""
        done = self.run("fastmtcp", *line)
        assert done.returncode == 0, done.stderr
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(done.stdout)
        return Link.parse(done.stdout)

    def _way_to(self, port: int) -> tuple[object, ...]:
        """What a client must be told of the server at `port`."""
        there = ("--server", f"127.0.0.1:{port}")
        if not self.is_quick_start:
            return there
        link = ("--link-file", LINK)
        return link if port == self.init_server(port) else (*link, *there)

    def fixed(self, *arguments: object) -> tuple[object, ...]:
        """`arguments` that fix what the programs find by themselves in a quick start."""
        return () if self.is_quick_start else arguments

    def proxy(self, server: Program, *arguments: object) -> Program:
        """A client that is a proxy on loopback, ready."""
        where = ("--proxy", "127.0.0.1:0", *self._way_to(server.port))
        return self.start("fastmtcp-client", *where, "--workers", 2, *arguments).ready()

    def pair(self, target: int | str, server_workers: int = 1, client_workers: int = 1) -> Program:
        """A server and a client; returns the client."""
        server = self.server(target, *self.fixed("--workers", server_workers))
        return self.client(server, *self.fixed("--workers", client_workers))

    def run(self, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a command that is expected to end by itself."""
        return subprocess.run(
            [command(name), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
            cwd=self.folder,
        )

    def end(self) -> None:
        failures = []
        for program in self._started:
            # Shown by pytest if the test has failed.
            print(f"--- log of {program.name}:\n{program.log}")
        for program in reversed(self._started):
            try:
                program.end()
            except pytest.fail.Exception as error:
                failures.append(str(error))
                program.kill()
        sockets = [p for p in self.folder.rglob("*") if stat.S_ISSOCK(p.lstat().st_mode)]
        if sockets:
            failures.append(f"socket files are left: {sockets}")
        if new := _shared_memory() - self._shared_memory:
            failures.append(f"shared memory is left: {new}")
        if failures:
            pytest.fail("\n".join(failures))


def _shared_memory() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if "fastmtcp" in name}


def subflows_by_worker(program: Program, port: int, *, remote: bool) -> dict[int, set[int]]:
    """For each worker the ports of the far ends of its connections from local `port` (server), or
    of the near ends of those to remote `port` (client)."""
    found: dict[int, set[int]] = {}
    for pid in program.workers():
        found[pid] = set()
        for connection in psutil.Process(pid).net_connections("tcp"):
            if connection.status != psutil.CONN_ESTABLISHED:
                continue
            if remote and connection.raddr.port == port:
                found[pid].add(connection.laddr.port)
            elif not remote and connection.laddr.port == port:
                found[pid].add(connection.raddr.port)
    return found


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
