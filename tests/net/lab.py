"""Networks of real namespaces: hosts, lines between them, and real programs on the hosts.

A host is a process in a network namespace without a name (unshare(1), nsenter(1)): when it ends,
namespace and lines go with it, whatever has happened to the test. As root it is a network
namespace only; else all hosts of a lab share one user namespace in which the test is root.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from socket import AF_INET, SO_REUSEADDR, SOL_SOCKET, AddressFamily, recv_fds, socketpair
from socket import socket as Socket  # noqa: N812 (Host has a method of that name)
from typing import TypeVar

import pytest

from tests.io.net import WAIT

T = TypeVar("T")

_HOLDER = Path(__file__).with_name("holder.py")
_ROOT = Path(__file__).parents[2]
_FATAL = re.compile(r"Traceback|crashed|internal error|AssertionError|hangs|does not end")


def eventually(condition: Callable[[], T], what: str, within: float = WAIT) -> T:
    """Wait until `condition()` is true, and return what it returned."""
    deadline = time.monotonic() + within
    while not (result := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"still not so after {within:g} s: {what}")
        time.sleep(0.02)
    return result


def tool(name: str) -> str:
    """The path of a program that the tests need."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        pytest.fail(f"{name} is not installed: run scripts/test, which installs it")
    return path


class Running:
    """A program on a host. Its output goes to a file."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, log: Path) -> None:
        self.process = process
        self.name = name
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def lines(self, pattern: str) -> list[str]:
        return [line for line in self.log.splitlines() if re.search(pattern, line)]

    def wait_for(self, pattern: str, count: int = 1) -> str:
        """Wait for a line; returns the `count`-th that matches."""

        def look() -> list[str]:
            found = self.lines(pattern)
            if len(found) < count and self.process.poll() is not None:
                pytest.fail(f"{self.name} ended before it said {pattern!r}:\n{self.log}")
            return found[count - 1 :]

        try:
            return eventually(look, f"{self.name} says {pattern!r}")[0]
        except pytest.fail.Exception as error:
            pytest.fail(f"{error}\n{self.log}")

    def stop(self) -> None:
        """End it as a user would."""
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(3)


class Host:
    """A machine of its own, as far as the network goes."""

    def __init__(
        self, lab: Lab, name: str, inside: tuple[str, ...], unshare: tuple[str, ...]
    ) -> None:
        self.lab = lab
        self.name = name
        ours, theirs = socketpair()
        with theirs:
            self._holder = subprocess.Popen(
                [*inside, *unshare, sys.executable, str(_HOLDER)],
                stdin=theirs.fileno(),
                stderr=subprocess.PIPE,
            )
        self._control = ours
        ours.settimeout(WAIT)
        if ours.recv(1) != b".":
            assert self._holder.stderr is not None
            said = self._holder.stderr.read().decode()
            pytest.fail(
                "network namespaces cannot be made here; run the tests as root, or allow user "
                f"namespaces: {said}"
            )
        self.ip("link", "set", "lo", "up")

    @property
    def pid(self) -> int:
        return self._holder.pid

    @property
    def enter(self) -> tuple[str, ...]:
        """The beginning of a command that runs on this host."""
        user = () if self.lab.is_root else ("--user", "--preserve-credentials")
        return (tool("nsenter"), "--target", str(self._holder.pid), "--net", *user, "--")

    def run(self, *command: object) -> str:
        """Run a command to its end and return its output; it must succeed."""
        done = subprocess.run(
            [*self.enter, tool(str(command[0])), *map(str, command[1:])],
            capture_output=True,
            text=True,
            timeout=WAIT,
        )
        if done.returncode:
            pytest.fail(f"{self.name}: {' '.join(map(str, command))}: {done.stderr}")
        return done.stdout

    def ip(self, *arguments: object) -> str:
        return self.run("ip", *arguments)

    def nft(self, *rules: str) -> None:
        for rule in rules:
            self.run("nft", *rule.split())

    def start(self, *command: object) -> Running:
        """Start a program."""
        log = self.lab.folder / f"{self.name}-{len(self.lab.started)}.log"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [*self.enter, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=self.lab.folder,
                env={
                    **{k: v for k, v in os.environ.items() if not k.startswith("FASTMTCP")},
                    "PYTHONPATH": str(_ROOT),
                },
                start_new_session=True,
            )
        running = Running(process, Path(str(command[0])).name, log)
        self.lab.started.append(running)
        return running

    def socket(self, family: AddressFamily = AF_INET) -> Socket:
        """A TCP socket of this host, for the test itself."""
        self._control.sendall(bytes([family]))
        _, fds, _, _ = recv_fds(self._control, 1, 1)
        sock = Socket(fileno=fds[0])
        sock.settimeout(WAIT)
        return sock

    def connect(self, port: int) -> Socket:
        """An application's connection to `port` on this host's loopback."""
        sock = self.socket()
        sock.connect(("127.0.0.1", port))
        return sock

    def listen(self, port: int) -> Socket:
        """A target's listener on this host's loopback."""
        sock = self.socket()
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen()
        return sock

    def subflows(self, *conditions: str) -> list[str]:
        """The TCP connections that are established and meet the conditions (ss(8)), a line each."""
        lines = self.run("ss", "-Htnoi", "state", "established", *conditions).splitlines()
        # Each connection has a second line, indented, with what the kernel knows of it.
        return [f"{one} {two}" for one, two in zip(lines[::2], lines[1::2], strict=True)]

    def end(self) -> None:
        self._control.close()
        try:
            self._holder.wait(WAIT)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()


class Lab:
    """The hosts of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_root = os.geteuid() == 0
        self.started: list[Running] = []
        self._hosts: list[Host] = []
        self._lines = 0

    def host(self, name: str) -> Host:
        """A host without any line yet."""
        inside = self._hosts[0].enter if self._hosts else ()
        makes_user = not self.is_root and not self._hosts
        unshare = (tool("unshare"), "--net", *(("--user", "--map-root-user") if makes_user else ()))
        host = Host(self, name, inside, unshare)
        self._hosts.append(host)
        return host

    def line(self, a: Host, b: Host, name_a: str, name_b: str, *addresses: str) -> None:
        """Join two hosts by a cable. `addresses` are pairs for `a` and `b`, with their prefix."""
        a.ip("link", "add", name_a, "type", "veth", "peer", "name", name_b, "netns", b.pid)
        for host, device in ((a, name_a), (b, name_b)):
            host.ip("link", "set", device, "up")
        for address_a, address_b in zip(addresses[::2], addresses[1::2], strict=True):
            for host, device, address in ((a, name_a, address_a), (b, name_b, address_b)):
                # Without `nodad` an IPv6 address could not be used for a second or two.
                nodad = ("nodad",) if ":" in address else ()
                host.ip("address", "add", address, "dev", device, *nodad)

    def server(self, host: Host, *arguments: object) -> Running:
        """A server with the target at its port 5201."""
        command = (*_program("server"), "--target", "127.0.0.1:5201", "--workers", 1, *arguments)
        running = host.start(*command)
        running.wait_for(r"\bready\b")
        return running

    def client(self, host: Host, *arguments: object) -> Running:
        """A client that listens on port 7701 of loopback."""
        command = (*_program("client"), "--listen", "127.0.0.1:7701", "--workers", 1, *arguments)
        running = host.start(*command)
        running.wait_for(r"\bready\b")
        return running

    def end(self) -> None:
        """Stop everything; fail if a program of ours said that something is wrong with it."""
        for running in reversed(self.started):
            running.stop()
        for host in reversed(self._hosts):
            host.end()
        for running in self.started:
            if _FATAL.search(running.log):
                pytest.fail(f"trouble in the log of {running.name}:\n{running.log}")


def _program(name: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"from fastmtcp.cli.{name} import main; raise SystemExit(main())")
