"""How applications reach the target they want: the ways in at the client, and what is allowed."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
from pathlib import Path

from tests.io.net import WAIT, read_exactly
from tests.process.programs import Program, Programs, eventually
from tests.process.targets import Target, ask_for_exchange, round_trip


class TestTargets:
    def test_a_client_chooses_what_is_allowed(
        self, programs: Programs, echo_target: Target[int], exchange_target: Target[str]
    ) -> None:
        other = f"127.0.0.1:{exchange_target.port}"
        server = programs.server(echo_target.port, "--allow", other, "--workers", 1)
        plain = programs.client(server, "--workers", 1)
        chosen = programs.client(server, "--workers", 1, "--target", other)
        up = ask_for_exchange(chosen.address, 300_000, 200_000)
        assert exchange_target.works[0].result() == up
        assert round_trip(plain.address)

    def test_a_refusal_is_logged_at_both_ends_and_resets_the_application(
        self, programs: Programs, echo_target: Target[int]
    ) -> None:
        server = programs.server(echo_target.port, "--allow", "*:*", "--workers", 1)
        client = programs.client(
            server, "--workers", 1, "--target", f"localhost:{echo_target.port}"
        )
        client.check_resets()
        server.wait_for(
            rf"client 127\.0\.0\.1: target localhost:{echo_target.port} is not allowed: "
            r"its address is (127\.0\.0\.1|::1)"
        )
        client.wait_for("reset: the server does not allow this target")
        assert echo_target.connections == []


def addresses(program: Program) -> list[tuple[str, int]]:
    """Every TCP address it listens on, in the order of its ways in."""
    line = program.wait_for(r"\bready\b").partition("listening on ")[2].partition(" with ")[0]
    return [(host, int(port)) for host, port in re.findall(r"([\d.]+):(\d+)", line)]


class TestForwards:
    def test_each_has_its_target(
        self, programs: Programs, echo_target: Target[int], exchange_target: Target[str]
    ) -> None:
        ports = (echo_target.port, exchange_target.port)
        server = programs.server(1, "--workers", 1, *(f"--allow=127.0.0.1:{p}" for p in ports))
        client = programs.start(
            "fastmtcp-client",
            *("--server", f"127.0.0.1:{server.port}", "--workers", 2),
            *(f"--forward=0:127.0.0.1:{port}" for port in ports),
        ).ready()
        echoing, exchanging = addresses(client)
        assert round_trip(echoing)
        up = ask_for_exchange(exchanging, 300_000, 200_000)
        assert exchange_target.works[0].result() == up

    def test_a_unix_socket(
        self, programs: Programs, echo_target: Target[int], tmp_path: Path
    ) -> None:
        path = tmp_path / "in.sock"
        target = f"127.0.0.1:{echo_target.port}"
        server = programs.server(1, "--workers", 1, "--allow", target)
        arguments = (
            *("--server", f"127.0.0.1:{server.port}", "--workers", 2),
            *("--forward", f"unix:{path}:{target}"),
        )
        client = programs.start("fastmtcp-client", *arguments)
        assert f"listening on unix:{path} with" in client.wait_for(r"\bready\b")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for _ in range(4):
            self.check_echo(path)
        second = programs.run("fastmtcp-client", *arguments)
        assert second.returncode == 1
        assert "it is in use; choose another" in second.stderr
        client.kill()
        client.expects_trouble = True
        assert path.exists()
        again = programs.start("fastmtcp-client", *arguments).ready()
        self.check_echo(path)
        again.signal(signal.SIGTERM)
        assert again.wait() == 0
        assert not path.exists()

    def test_a_worker_that_is_restarted_listens_there_again(
        self, programs: Programs, echo_target: Target[int], tmp_path: Path
    ) -> None:
        path = tmp_path / "in.sock"
        client = programs.client(
            programs.server(echo_target.port, "--workers", 1),
            *("--workers", 1, "--forward", f"unix:{path}:127.0.0.1:1"),
        )
        client.expects_trouble = True
        (worker,) = client.workers()
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: client.workers() not in ([], [worker]), "another worker")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(WAIT)
            sock.connect(str(path))
            assert sock.recv(1) == b""  # nobody allows that target

    def check_echo(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(WAIT)
            sock.connect(str(path))
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            assert read_exactly(sock, 5) == b"hello"
            assert sock.recv(1) == b""
