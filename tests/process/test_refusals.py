"""What the commands refuse, in one line that says what to change; and who is not let in."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import stat
from pathlib import Path

import pytest

from tests.io.net import WAIT, data, refusing_port
from tests.process.programs import Program, Programs, eventually
from tests.process.targets import Target, ask_for_exchange, round_trip

KEY = "0123456789abcdef" * 4


def key_file(folder: Path, name: str, content: str = KEY, mode: int = 0o600) -> Path:
    path = folder / name
    path.write_text(content + "\n")
    path.chmod(mode)
    return path


class TestPortInUse:
    @pytest.mark.parametrize("command", ["fastmtcp-server", "fastmtcp-client"])
    def test_by_anybody(self, programs: Programs, command: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            where = f"127.0.0.1:{other.getsockname()[1]}"
            result = programs.run(command, "--listen", where, "--workers", 3)
        assert result.returncode == 1
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line == (
            f"{command}: error: cannot listen on {where}: the port is in use; "
            "choose another --listen"
        )

    def test_by_another_one_of_us(self, programs: Programs, echo_target: Target[int]) -> None:
        """SO_REUSEPORT would let it take a share of the other's connections."""
        server = programs.server(echo_target.port, "--workers", 2)
        client = programs.client(server)
        for name, port in (("fastmtcp-server", server.port), ("fastmtcp-client", client.port)):
            result = programs.run(name, "--listen", f"127.0.0.1:{port}")
            assert result.returncode == 1
            (line,) = result.stderr.splitlines()
            assert f"cannot listen on 127.0.0.1:{port}: the port is in use" in line
        assert all(round_trip(client.address) for _ in range(20))

    def test_by_one_that_is_bound_but_does_not_listen_yet(self, programs: Programs) -> None:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(("127.0.0.1", 0))
            result = programs.run("fastmtcp-server", "--listen", f"127.0.0.1:{port_of(other)}")
        assert result.returncode == 1
        assert "the port is in use" in result.stderr


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


def test_an_address_of_another_machine(programs: Programs) -> None:
    path = key_file(programs.folder, "k.key")
    result = programs.run("fastmtcp-server", "--listen", "192.0.2.1:7700", "--key-file", path)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "cannot listen on 192.0.2.1:7700: " in line


@pytest.mark.parametrize("where", ["0.0.0.0:0", "[::]:0", "*:0", "192.0.2.1:0"])
def test_without_a_key_a_server_listens_on_loopback_only(programs: Programs, where: str) -> None:
    result = programs.run("fastmtcp-server", "--listen", where)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "not loopback" in line
    assert "fastmtcp keygen" in line


class TestKeyFiles:
    @pytest.mark.parametrize("command", ["fastmtcp-server", "fastmtcp-client"])
    @pytest.mark.parametrize(
        ("content", "mode", "complaint"),
        [
            (KEY, 0o644, "chmod 600"),
            (KEY, 0o660, "chmod 600"),
            (KEY[:-1], 0o600, "64 hexadecimal digits"),
            ("x" * 64, 0o600, "64 hexadecimal digits"),
        ],
    )
    def test_a_bad_one_is_wrong_configuration(
        self, programs: Programs, command: str, content: str, mode: int, complaint: str
    ) -> None:
        path = key_file(programs.folder, "bad.key", content, mode)
        result = programs.run(command, "--listen", "127.0.0.1:0", "--key-file", path)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert complaint in line
        assert content[:32] not in line

    def test_a_missing_one(self, programs: Programs) -> None:
        result = programs.run("fastmtcp-server", "--key-file", "nowhere.key")
        assert result.returncode == 2
        assert "fastmtcp keygen" in result.stderr

    def test_from_keygen_to_a_stream_on_all_addresses(
        self, programs: Programs, exchange_target: Target[str]
    ) -> None:
        assert programs.run("fastmtcp", "keygen", "made.key").returncode == 0
        path = programs.folder / "made.key"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        server = programs.start(
            "fastmtcp-server",
            *("--listen", "0.0.0.0:0"),
            *("--target", f"127.0.0.1:{exchange_target.port}"),
            *("--workers", 2, "--key-file", path),
        ).ready()
        client = programs.client(server, "--workers", 2, "--key-file", path)
        up = ask_for_exchange(client.address, 2_000_000, 2_000_000)
        assert exchange_target.works[0].result() == up
        key = path.read_text().strip()
        for program in (server, client):
            assert key not in program.log
            for pid in (program.process.pid, *program.workers()):
                assert key not in Path(f"/proc/{pid}/cmdline").read_text()
                assert key not in Path(f"/proc/{pid}/environ").read_text()


class TestWrongKey:
    SERVER_LINE = r"connection from 127\.0\.0\.1:\d+ refused: wrong key"

    def check_nothing_passes(self, client: Program, target: Target[int]) -> None:
        client.check_resets(b"let me in")
        assert target.connections == []

    @pytest.mark.parametrize("has_key", ["both", "server", "client"])
    def test_both_sides_say_so_and_nothing_is_forwarded(
        self, programs: Programs, echo_target: Target[int], has_key: str
    ) -> None:
        one = ("--key-file", key_file(programs.folder, "one.key"))
        two = ("--key-file", key_file(programs.folder, "two.key", KEY[::-1]))
        server = programs.server(
            echo_target.port, "--workers", 2, *(one if has_key != "client" else ())
        )
        client = programs.client(
            server,
            *("--workers", 1, "--connect-timeout", 0.5),
            *(two if has_key != "server" else ()),
        )
        server.wait_for(self.SERVER_LINE)
        client.wait_for(
            f"cannot use server 127.0.0.1:{server.port}: wrong key, or a client that this server "
            r"does not know \(any more\)"
        )
        self.check_nothing_passes(client, echo_target)
        # Once by the worker and once with `ready`, but not with every attempt.
        server.wait_for(self.SERVER_LINE, 2)
        assert client.log.count("wrong key") <= 2
        for program in (server, client):
            assert KEY not in program.log
            assert KEY[::-1] not in program.log

    def test_a_false_server_gets_nothing_out_of_a_client(self, programs: Programs) -> None:
        """Somebody who took the server's address and has no key."""
        heard: list[bytes] = []

        def pretend(sock: socket.socket) -> None:
            heard.append(sock.recv(4096))
            sock.sendall(b"\x00\x04garb")

        impostor = Target(pretend)
        try:
            path = key_file(programs.folder, "k.key")
            client = programs.client(
                impostor.port, "--key-file", path, "--connect-timeout", 0.5, "--workers", 1
            )
            client.wait_for("the peer does not speak fastmtcp; trying again")
            client.check_resets(b"a secret of the application")
            assert heard
            assert not any(b"secret" in said or bytes.fromhex(KEY) in said for said in heard)
        finally:
            impostor.close()


def test_garbage_at_the_servers_port_harms_nobody(
    programs: Programs, exchange_target: Target[str]
) -> None:
    server = programs.server(exchange_target.port, "--workers", 2)
    client = programs.client(server, "--workers", 2)
    before = server.workers()
    rng = random.Random(3)
    openers = [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00\x00",
        b"\xff\xff" + bytes(5000),
        # A HELLO with a magic that is no text, and one nested too deep.
        b"\x00\x0e\x96\x01\xa8fast\xff\xfe\xe6p\x91\x01\xc4",
        b"\x03\xf0\x97\x01\xa8fastmtcp\x91\x01\xc4\x00\xc4\x00\x00" + b"\x91" * 1100,
    ]
    held = []
    for number in range(300):
        sock = socket.create_connection(server.address, WAIT)
        sock.settimeout(WAIT)
        garbage = rng.choice(openers)
        with contextlib.suppress(OSError):  # it may have had enough already
            sock.sendall(garbage + (rng.randbytes(rng.randrange(3000)) if number % 2 else b""))
        if number % 3:
            sock.close()
        else:
            held.append(sock)
    up = ask_for_exchange(client.address, 3_000_000, 3_000_000)
    assert exchange_target.works[0].result() == up
    # Those that have said nothing wrong yet are given a few seconds, not more.
    for sock in held:
        eventually(lambda: is_closed(sock), "the connection is closed")  # noqa: B023
        sock.close()
    assert server.workers() == before


def is_closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(4096) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_an_unknown_version_is_answered(programs: Programs, echo_target: Target[int]) -> None:
    """Written out by hand, as docs/SPEC.md has it: this must stay true for all versions."""
    server = programs.server(echo_target.port)
    nonce = os.urandom(32)
    hello = b"\x96\x01\x91\x63\xa0\xc4\x20" + nonce + b"\xc4\x00\x00"
    with socket.create_connection(server.address, WAIT) as sock:
        sock.sendall(b"fastmtcp\x01\x00\xff\xff" + len(hello).to_bytes(2) + hello)
        answer = b""
        while part := sock.recv(4096):
            answer += part
    # REFUSE, code VERSION, a text, and no proof: the two may have no MAC in common.
    assert answer[2:5] == b"\x94\x05\x01"
    assert b"protocol version 1" in answer
    assert answer[-2:] == b"\xc4\x00"
    server.wait_for("refused: this server speaks protocol version 1")


def test_for_a_stranger_the_target_is_not_even_connected_to(
    programs: Programs, echo_target: Target[int]
) -> None:
    server = programs.server(echo_target.port, "--key-file", key_file(programs.folder, "k.key"))
    with socket.create_connection(server.address, WAIT) as sock:
        sock.sendall(data(2000))
        eventually(lambda: is_closed(sock), "the connection is closed")
    assert echo_target.connections == []


class TestRepeatedLines:
    """Whoever is let in, and the applications, can cause them as often as they like."""

    COUNT = 200

    def test_of_a_target_that_is_down_are_counted_at_both_sides(self, programs: Programs) -> None:
        with refusing_port() as down:
            server = programs.server(down, "--workers", 1)
            client = programs.client(server, "--workers", 1)
            for _ in range(self.COUNT):
                client.check_resets(b"anybody?")
        for program in (client, server):
            program.end()
            warnings = [line for line in program.log.splitlines() if " warning " in line]
            summed = [line for line in warnings if "more lines like this" in line]
            # Ten of each window and their sum; it may have taken several windows.
            assert 0 < len(summed) <= len(warnings) / 10
            counted = sum(int(line.split(" more lines")[0].split()[-1]) for line in summed)
            assert counted + len(warnings) - len(summed) == self.COUNT
        assert "more lines like this in 10 s: cannot connect to target" in server.log

    def test_a_balancer_that_looks_at_the_proxy_causes_none(
        self, programs: Programs, echo_target: Target[int]
    ) -> None:
        server = programs.server(echo_target.port, "--workers", 1)
        proxy = programs.proxy(server)
        for _ in range(self.COUNT):
            proxy.connect().close()
        with proxy.connect() as sock:
            sock.sendall(b"nonsense\r\n\r\n")
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
        proxy.end()
        warnings = [line for line in proxy.log.splitlines() if " warning " in line]
        assert len(warnings) == 1
        assert " refused: " in warnings[0]
