"""`fastmtcp connect`: standard input and output over a stream."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import fastmtcp
import pytest
from fastmtcp.security import keys

from tests.io.net import WAIT, abort, data, is_reset, read_all, read_exactly, refusing_port
from tests.process.programs import command, eventually

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("FASTMTCP")}


@pytest.fixture
def server() -> Iterator[fastmtcp.Server]:
    with fastmtcp.Server("127.0.0.1:0", drain_timeout=1) as server:
        yield server


class Connect:
    """The running command."""

    def __init__(
        self,
        server: fastmtcp.Server,
        *arguments: str,
        stdin: int | IO[bytes] = subprocess.PIPE,
        stdout: int | IO[bytes] = subprocess.PIPE,
    ) -> None:
        host, port = server.addresses[0]
        self.process = subprocess.Popen(
            [command("fastmtcp"), "connect", "--server", f"{host}:{port}", *arguments],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
        )

    def __enter__(self) -> Connect:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def end(self) -> tuple[int, str]:
        """Exit status and standard error."""
        code = self.process.wait(2 * WAIT)
        assert self.process.stderr is not None
        return code, self.process.stderr.read().decode()


def test_question_and_answer(server: fastmtcp.Server) -> None:
    with Connect(server) as connect:
        far, _ = server.accept(WAIT)
        connect.stdin.write(b"question")
        connect.stdin.close()
        assert read_all(far) == b"question"
        far.sendall(b"answer")
        far.close()
        assert connect.stdout.read() == b"answer"
        assert connect.end() == (0, "")


def test_the_other_end_may_end_first(server: fastmtcp.Server) -> None:
    with Connect(server) as connect:
        far, _ = server.accept(WAIT)
        far.sendall(b"first")
        far.shutdown(socket.SHUT_WR)
        assert connect.stdout.read() == b"first"  # up to its end
        connect.stdin.write(b"second")
        connect.stdin.close()
        assert read_all(far) == b"second"
        far.close()
        assert connect.end() == (0, "")


def test_much_both_ways(server: fastmtcp.Server) -> None:
    up, down = data(20_000_000, 1), data(20_000_000, 2)
    with Connect(server) as connect:
        far, _ = server.accept(WAIT)

        def feed() -> None:
            connect.stdin.write(up)
            connect.stdin.close()

        def answer() -> None:
            far.sendall(down)
            far.shutdown(socket.SHUT_WR)

        threads = [threading.Thread(target=work) for work in (feed, answer)]
        for thread in threads:
            thread.start()
        got: list[bytes] = []
        reading = threading.Thread(target=lambda: got.append(read_all(far)))
        reading.start()
        assert connect.stdout.read() == down
        for thread in (*threads, reading):
            thread.join(WAIT)
        assert got == [up]
        far.close()
        assert connect.end() == (0, "")


def test_files(server: fastmtcp.Server, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(data(3_000_000))
    with (
        open(source, "rb") as stdin,
        open(copy, "wb") as stdout,
        Connect(server, stdin=stdin, stdout=stdout) as connect,
    ):
        far, _ = server.accept(WAIT)
        content = read_all(far)
        far.sendall(content)
        far.close()
        assert connect.end() == (0, "")
    assert copy.read_bytes() == source.read_bytes()


def test_a_key_and_a_target(tmp_path: Path) -> None:
    key = tmp_path / "fastmtcp.key"
    keys.generate(key)
    with (
        fastmtcp.Server("127.0.0.1:0", key_file=key) as server,
        Connect(server, "--key-file", str(key), "host.example:22") as connect,
    ):
        far, _ = server.accept(WAIT)
        assert fastmtcp.info(far).target == "host.example:22"
        far.close()
        connect.stdin.close()
        assert connect.end() == (0, "")


@pytest.mark.parametrize("when", ["at once", "behind its end"])
def test_a_reset_is_a_failure(server: fastmtcp.Server, when: str) -> None:
    with Connect(server) as connect:
        far, _ = server.accept(WAIT)
        far.sendall(b"part")
        assert connect.stdout.read(4) == b"part"
        if when == "behind its end":
            far.shutdown(socket.SHUT_WR)
            assert connect.stdout.read() == b""
        abort(far)
        code, error = connect.end()
        assert code == 1
        assert error.startswith("fastmtcp: error: the stream was cut short")
        assert error.count("\n") == 1


def test_no_server(server: fastmtcp.Server) -> None:
    with refusing_port() as port:
        done = subprocess.run(
            [command("fastmtcp"), "connect", "--server", f"127.0.0.1:{port}"],
            input=b"x", capture_output=True, timeout=60, check=False, env=ENVIRONMENT,
        )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith(f"fastmtcp: error: cannot use server 127.0.0.1:{port}: Connection")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_interrupts_it_resets_the_stream(server: fastmtcp.Server, number: int) -> None:
    with Connect(server) as connect:
        far, _ = server.accept(WAIT)
        connect.stdin.write(b"half of it")
        connect.stdin.flush()
        assert read_exactly(far, 10) == b"half of it"
        connect.process.send_signal(number)
        eventually(lambda: is_reset(far), "it does not look complete")
        code, error = connect.end()
        assert (code, error.strip()) == (1, "fastmtcp: error: interrupted")
        far.close()


def test_an_output_that_nobody_reads(server: fastmtcp.Server) -> None:
    with Connect(server) as connect:
        far, _ = server.accept(WAIT)
        connect.stdout.close()
        far.sendall(b"x" * 10_000)
        eventually(lambda: is_reset(far), "it does not look complete")
        assert connect.end() == (1, "fastmtcp: error: standard output: Broken pipe\n")
        far.close()


@pytest.mark.parametrize(
    ("redirection", "words"),
    [
        ("< /dev/null > /dev/full", "standard output: No space left on device"),
        ("<&-", "standard input is closed; use /dev/null instead"),
        ("< /dev/null >&-", "standard output is closed; use /dev/null instead"),
    ],
)
def test_standard_files_that_are_wrong(
    server: fastmtcp.Server, redirection: str, words: str
) -> None:
    host, port = server.addresses[0]
    text = f"exec {command('fastmtcp')} connect --server {host}:{port} {redirection}"
    with subprocess.Popen(["sh", "-c", text], stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        if "output: No" in words:
            far, _ = server.accept(WAIT)
            far.sendall(b"x")
            eventually(lambda: is_reset(far), "it does not look complete")
            far.close()
        assert process.wait(2 * WAIT) == 1
        assert process.stderr is not None
        assert process.stderr.read().decode() == f"fastmtcp: error: {words}\n"


def test_a_wrong_target() -> None:
    done = subprocess.run(
        [command("fastmtcp"), "connect", "nowhere"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert b"no port" in done.stderr
