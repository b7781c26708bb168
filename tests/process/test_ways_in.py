"""How applications reach the target they want: the ways in at the client, and what is allowed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.io.net import (
    WAIT,
    abort,
    data,
    free_port,
    read_all,
    read_exactly,
    refusing_port,
    silent_port,
)
from tests.process.programs import Program, Programs, eventually, open_files
from tests.process.targets import Target, ask_for_exchange, round_trip
from tests.process.test_real_programs import run, running, tool


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


class TestProxy:
    @pytest.fixture
    def web(self) -> Iterator[Target[None]]:
        """Answers every request with a page."""
        target = Target(answer)
        yield target
        target.close()

    def test_curl(self, programs: Programs, web: Target[None]) -> None:
        server = programs.server(1, "--workers", 1, "--allow", f"127.0.0.1:{web.port}")
        client = programs.proxy(server, *login_file(programs))
        for options in (*SOCKS, TUNNEL):
            result = curl(client, options, f"http://localhost:{web.port}/", "me:ge%20heim@")
            assert result.returncode == 0, result.stderr
            assert result.stdout == PAGE
        served = len(web.connections)
        for options in (*SOCKS, TUNNEL):
            for login in ("", "me:wrong@"):
                result = curl(client, options, f"http://localhost:{web.port}/", login)
                assert result.returncode in (56, 97)
        client.wait_for("refused: wrong user name or password", 3)
        client.wait_for("refused: it does not offer a user name and password", 2)
        client.wait_for("refused: no login")
        assert len(web.connections) == served
        assert "heim" not in client.log

    def test_a_refusal_in_the_words_of_the_protocol(self, programs: Programs) -> None:
        with refusing_port() as port:
            rules = ("--allow", f"127.0.0.1:{port}", "--allow", "*:80")
            client = programs.proxy(programs.server(1, "--workers", 1, *rules))
            for target, socks, http, why in (
                (f"127.0.0.1:{port}", 5, 502, "the target refused the connection"),
                ("no-such-host.invalid:80", 4, 502, "the target's name cannot be looked up"),
                ("127.0.0.1:9", 2, 403, "the server does not allow this target"),
                ("localhost:80", 2, 403, "the server does not allow this target"),
            ):
                result = curl(client, SOCKS[0], f"http://{target}/")
                assert result.returncode == 97
                assert f"({socks})" in result.stderr
                result = curl(client, (*TUNNEL, "-i"), f"http://{target}/")
                assert result.returncode == 56
                assert f"HTTP/1.1 {http} " in result.stdout
                where = r"connection from 127\.0\.0\.1:\d+ to " + re.escape(target)
                client.wait_for(f"{where} refused: {why}", 2)

    def test_curl_with_requests_in_absolute_form(
        self, programs: Programs, echo_target: Target[int]
    ) -> None:
        pages = [Target(partial(http, name)) for name in ("one", "two")]
        try:
            rules = [f"--allow=127.0.0.1:{page.port}" for page in pages]
            client = programs.proxy(programs.server(1, "--workers", 1, *rules))
            one, two = (f"http://localhost:{page.port}" for page in pages)
            # curl would use one connection for all of them.
            result = curl(client, ("--proxy", "http://PROXY", f"{one}/a?b", f"{two}/c"), f"{one}/d")
            assert result.stdout == "one GET /a?b 0\ntwo GET /c 0\none GET /d 0\n"
            big = programs.folder / "big"
            big.write_bytes(data(3_000_000))
            options = ("--proxy", "http://PROXY", "--data-binary", f"@{big}", "-H", "Expect:")
            assert curl(client, options, f"{two}/up").stdout == "two POST /up 3000000\n"
            # One that answers and leaves the connection open gets nothing that is for another.
            with client.connect() as sock:
                sock.sendall(f"GET {one}/keep HTTP/1.1\r\n\r\n".encode())
                assert read_exactly(sock, 15) == b"HTTP/1.1 200 OK"
                sock.sendall(f"GET {two}/secret HTTP/1.1\r\n\r\n".encode())
                assert b"one GET /keep" in read_all(sock)
            assert sum("secret" in work.result() for page in pages for work in page.works) == 0
            result = curl(client, ("--proxy", "http://PROXY", "-i"), "http://127.0.0.1:9/")
            assert result.stdout.startswith("HTTP/1.1 403 ")
            result = curl(client, ("-i",), f"http://127.0.0.1:{client.port}/")
            assert result.stdout.startswith("HTTP/1.1 400 ")
            assert "this is a proxy" in result.stdout
        finally:
            for page in pages:
                page.close()

    def test_success_is_told_when_the_target_is_connected_and_not_before(
        self, programs: Programs
    ) -> None:
        with silent_port() as port:
            allow = ("--allow", f"127.0.0.1:{port}")
            server = programs.server(1, "--workers", 1, "--connect-timeout", 1.5, *allow)
            client = programs.proxy(server)
            with client.connect() as sock:
                sock.sendall(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
                assert read_all(sock).startswith(b"HTTP/1.1 504 ")

    def test_bytes_that_come_with_the_request_are_the_first_of_the_stream(
        self, programs: Programs, echo_target: Target[int]
    ) -> None:
        server = programs.server(1, "--workers", 1, "--allow", f"127.0.0.1:{echo_target.port}")
        client = programs.proxy(server)
        port = echo_target.port.to_bytes(2)
        with client.connect() as sock:
            sock.sendall(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + port + b"first,")
            assert read_exactly(sock, 12) == b"\x05\x00\x05\x00\x00\x01" + bytes(6)
            sock.sendall(b"second")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b"first,second"
        # A FIN behind the request is no farewell.
        with client.connect() as sock:
            sock.sendall(f"CONNECT 127.0.0.1:{echo_target.port} HTTP/1.0\r\n\r\nall".encode())
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock).endswith(b"\r\n\r\nall")

    def test_who_goes_away_before_the_answer_leaves_nothing_behind(
        self, programs: Programs
    ) -> None:
        with silent_port() as port:
            server = programs.server(1, "--workers", 1, "--allow", f"127.0.0.1:{port}")
            client = programs.proxy(server)
            for _ in range(20):
                sock = client.connect()
                sock.sendall(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
                time.sleep(0.02)
                abort(sock)
            before = [open_files(pid) for pid in server.workers()]
            eventually(lambda: streams(programs, server) == 0, "no stream is left")
            assert [open_files(pid) for pid in server.workers()] <= before

    def test_garbage_harms_nobody(self, programs: Programs, web: Target[None]) -> None:
        server = programs.server(1, "--workers", 1, "--allow", f"127.0.0.1:{web.port}")
        client = programs.proxy(server)
        rng = random.Random(5)
        openers = [b"", b"\x05", b"\x05\x01\x00\x05\x01\x00\x03", b"CONNECT ", b"\x16\x03\x01"]
        held = []
        for number in range(300):
            sock = client.connect()
            with contextlib.suppress(OSError):
                sock.sendall(rng.choice(openers) + rng.randbytes(rng.randrange(200)))
            held.append(sock)
            if number % 2:
                held.pop().close()
        result = curl(client, SOCKS[0], f"http://127.0.0.1:{web.port}/")
        assert result.stdout == PAGE
        for sock in held:
            sock.close()

    def test_without_a_login_on_loopback_only(self, programs: Programs) -> None:
        result = programs.run("fastmtcp-client", "--proxy", "*:0")
        assert result.returncode == 2
        assert "is not loopback" in result.stderr
        assert "--proxy-login-file FILE" in result.stderr
        server = programs.server(1, "--workers", 1)
        where = ("--proxy", "*:0", "--server", f"127.0.0.1:{server.port}")
        programs.start("fastmtcp-client", *where, *login_file(programs)).ready()

    def test_a_login_file_for_everybody_is_refused(self, programs: Programs) -> None:
        options = login_file(programs)
        options[1].chmod(0o644)
        result = programs.run("fastmtcp-client", "--proxy", "127.0.0.1:0", *options)
        assert result.returncode == 2
        assert "chmod 600" in result.stderr
        assert "heim" not in result.stderr

    def test_without_a_server_it_says_so(self, programs: Programs) -> None:
        with refusing_port() as port:
            client = programs.start(
                "fastmtcp-client",
                *("--proxy", "127.0.0.1:0", "--server", f"127.0.0.1:{port}"),
                *("--connect-timeout", 0.5),
            ).ready()
            with client.connect() as sock:
                sock.sendall(b"CONNECT example.com:80 HTTP/1.1\r\n\r\n")
                assert read_all(sock).startswith(b"HTTP/1.1 504 ")


class TestProxyProtocol:
    @pytest.fixture
    def nginx(self, tmp_path: Path) -> Iterator[tuple[int, Path]]:
        """An nginx that insists on the header, and its log: one address a line."""
        port = free_port()
        (tmp_path / "www").mkdir()
        (tmp_path / "www" / "page").write_text(PAGE)
        config, log = tmp_path / "nginx.conf", tmp_path / "access.log"
        temporary = "".join(
            f"{kind}_temp_path {tmp_path}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config.write_text(
            f"""
            daemon off; master_process off; pid {tmp_path}/nginx.pid;
            {"user root;" if os.geteuid() == 0 else ""}
            error_log {tmp_path}/error.log;
            events {{ worker_connections 64; }}
            http {{
                {temporary}
                log_format source "$proxy_protocol_addr $proxy_protocol_port";
                access_log {log} source;
                server {{ listen 127.0.0.1:{port} proxy_protocol; root {tmp_path}/www; }}
            }}
            """
        )
        nginx = (tool("nginx"), "-p", tmp_path, "-e", tmp_path / "error.log", "-c", config)
        with running(tmp_path, port, *nginx):
            yield port, log

    @pytest.mark.parametrize(("version", "sent"), [("v1", "send-proxy-v2"), ("v2", "send-proxy")])
    def test_from_haproxy_to_nginx_the_first_clients_address_is_known(
        self, programs: Programs, nginx: tuple[int, Path], version: str, sent: str
    ) -> None:
        port, log = nginx
        server = programs.server(port, "--workers", 1, "--send-proxy", version)
        client = programs.client(server, "--workers", 1, "--accept-proxy")
        front = free_port()
        config = programs.folder / "haproxy.cfg"
        config.write_text(
            "defaults\n mode tcp\n timeout connect 10s\n timeout client 10s\n timeout server 10s\n"
            f"listen front\n bind 127.0.0.1:{front}\n server it 127.0.0.1:{client.port} {sent}\n"
        )
        with running(programs.folder, front, tool("haproxy"), "-db", "-f", config):
            page = fetch(f"http://127.0.0.1:{front}/page", "--interface", "127.0.0.2")
        assert page == PAGE
        assert re.fullmatch(r"127\.0\.0\.2 \d+", line(log, 1))
        client.check_resets(b"GET / HTTP/1.1\r\n\r\n")
        client.wait_for("refused: it sends no PROXY protocol header")
        # The header may be cut anywhere, and what follows it in one piece.
        with client.connect() as sock:
            sock.sendall(b"PROXY TCP4 203.0.113.9 127.0.0.1 ")
            time.sleep(0.1)
            sock.sendall(b"4000 80\r\nGET /page HTTP/1.0\r\n\r\n")
            assert PAGE.encode() in read_all(sock)
        assert line(log, 2) == "203.0.113.9 4000"
        with client.connect() as sock:
            sock.sendall(b"PROXY UNKNOWN\r\nGET /page HTTP/1.0\r\n\r\n")
            assert PAGE.encode() in read_all(sock)
        assert line(log, 3).startswith("127.0.0.1 ")

    def test_without_a_header_it_is_the_address_that_the_client_sees(
        self, programs: Programs, nginx: tuple[int, Path], tmp_path: Path
    ) -> None:
        port, log = nginx
        path = tmp_path / "in.sock"
        allow = ("--allow", f"127.0.0.1:{port}")
        server = programs.server(port, "--workers", 1, "--send-proxy", "v2", *allow)
        client = programs.client(
            server, "--workers", 1, "--forward", f"unix:{path}:127.0.0.1:{port}"
        )
        url = f"http://127.0.0.1:{client.port}/page"
        assert fetch(url, "--interface", "127.0.0.3") == PAGE
        assert re.fullmatch(r"127\.0\.0\.3 \d+", line(log, 1))
        # A target that the client has chosen gets no header, and this one misses it.
        with pytest.raises(pytest.fail.Exception):
            fetch("http://localhost/page", "--unix-socket", str(path))

    def test_in_front_of_the_proxy(self, programs: Programs, echo_target: Target[int]) -> None:
        server = programs.server(1, "--workers", 1, "--allow", f"127.0.0.1:{echo_target.port}")
        client = programs.proxy(server, "--accept-proxy")
        with client.connect() as sock:
            request = f"CONNECT 127.0.0.1:{echo_target.port} HTTP/1.1\r\n\r\n".encode()
            sock.sendall(b"PROXY TCP4 203.0.113.9 127.0.0.1 4000 80\r\n" + request + b"hello")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock).endswith(b"\r\n\r\nhello")
        with client.connect() as sock:
            sock.sendall(
                b"PROXY TCP4 203.0.113.9 127.0.0.1 4000 80\r\nCONNECT a:1 HTTP/1.1\r\n\r\n"
            )
            assert read_all(sock).startswith(b"HTTP/1.1 403 ")
        client.wait_for(r"connection from 203\.0\.113\.9:4000 to a:1 refused")


def fetch(url: str, *options: str) -> str:
    return run(tool("curl"), "-sSf", "-m", WAIT, *options, url)


def line(log: Path, number: int) -> str:
    """The address of the request of this number, from 1, which is logged after its answer."""
    lines = eventually(lambda: log.read_text().splitlines()[number - 1 :], "nginx logs a request")
    return lines[0]


PAGE = "<p>a page</p>"
SOCKS = (("--socks5-hostname", "PROXY"), ("--socks5", "PROXY"))
TUNNEL = ("--proxytunnel", "--proxy", "http://PROXY")


def answer(sock: socket.socket) -> None:
    if sock.recv(1 << 16):
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(PAGE)}\r\nConnection: close\r\n\r\n"
        sock.sendall((head + PAGE).encode())


def http(name: str, sock: socket.socket) -> str:
    """Answers one request with what it was, and a path of /keep with the connection left open.
    Returns all it has read."""
    heard = b""
    while b"\r\n\r\n" not in heard:
        if not (part := sock.recv(1 << 16)):
            return heard.decode("latin-1")
        heard += part
    head, _, body = heard.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    size = re.search(rb"Content-Length: (\d+)", head)
    body += read_exactly(sock, int(size[1]) - len(body)) if size else b""
    text = f"{name} {' '.join(head.decode().split(' ')[:2])} {len(body)}\n"
    sock.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
    if " /keep " in text:
        heard += read_all(sock)
    return heard.decode("latin-1")


def login_file(programs: Programs) -> tuple[str, Path]:
    path = programs.folder / "proxy.login"
    path.write_text("me:ge heim\n")
    path.chmod(0o600)
    return "--proxy-login-file", path


def curl(
    client: Program, options: tuple[str, ...], url: str, login: str = ""
) -> subprocess.CompletedProcess[str]:
    proxy = f"{login}127.0.0.1:{client.port}"
    return subprocess.run(
        [tool("curl"), "-sS", *(o.replace("PROXY", proxy) for o in options), url],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
        env={},
    )


def streams(programs: Programs, server: Program) -> int:
    """Streams that are open at the server."""
    report = programs.run("fastmtcp", "status", "--json", "--server")
    found = json.loads(report.stdout)["instances"]
    (one,) = (instance for instance in found if instance["pid"] == server.process.pid)
    count: int = one["totals"]["streams"]
    return count
