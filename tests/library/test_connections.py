"""What comes back is a socket, and behaves like one of TCP."""

from __future__ import annotations

import errno
import http.client
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import fastmtcp
import pytest
from fastmtcp.api import core
from fastmtcp.config.connections import Connections
from fastmtcp.config.path import PathSpec
from fastmtcp.endpoint import Endpoint

from tests.io.net import (
    Background,
    abort,
    data,
    fill,
    is_reset,
    read_all,
    read_exactly,
    refusing_port,
    silent_port,
)
from tests.library.conftest import KEY, Pair
from tests.library.echo import serve
from tests.process.programs import eventually
from tests.process.targets import Target, echo, exchange, sha256

Pairs = Callable[[], Pair]


class TestConnecting:
    def test_create_connection_is_all_it_takes(self, echo_server: fastmtcp.Server) -> None:
        host, port = echo_server.addresses[0]
        with fastmtcp.create_connection(None, server=f"{host}:{port}", key=KEY) as sock:
            assert type(sock) is socket.socket
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b"hello"

    @pytest.mark.parametrize(
        "key", [KEY.hex(), KEY.hex().upper(), bytearray(KEY)], ids=["hex", "HEX", "bytearray"]
    )
    def test_forms_of_a_key(self, server: fastmtcp.Server, key: str) -> None:
        with fastmtcp.create_connection(None, server=server.addresses, key=key):
            server.accept(30)[0].close()

    @pytest.mark.parametrize("form", ["text", "address", "list", "path", "several"])
    def test_forms_of_a_server(self, server: fastmtcp.Server, form: str) -> None:
        host, port = server.addresses[0]
        forms: dict[str, object] = {
            "text": f"{host}:{port},connections=2",
            "address": (host, port),
            "list": [(host, port)],
            "path": PathSpec(Endpoint(host, port), connections=Connections(1, 1)),
            "several": [f"{host}:{port},connections=1", f"{host}:{port},bind={host}"],
        }
        given = forms[form]
        with fastmtcp.create_connection(None, server=given, key=KEY):  # type: ignore[arg-type]
            server.accept(30)[0].close()

    def test_the_timeout_is_the_sockets(self, server: fastmtcp.Server) -> None:
        with fastmtcp.Client(server.addresses, key=KEY) as client:
            for given, expected in ((7.5, 7.5), (None, None)):
                with client.connect(timeout=given) as sock, server.accept()[0]:
                    assert sock.gettimeout() == expected
            socket.setdefaulttimeout(11)
            try:
                with client.connect() as sock, server.accept()[0] as accepted:
                    assert sock.gettimeout() == accepted.gettimeout() == 11
            finally:
                socket.setdefaulttimeout(None)

    def test_an_address_goes_to_the_server(
        self, server: fastmtcp.Server, client: fastmtcp.Client
    ) -> None:
        with client.connect(("Example.COM", 443)), server.accept(30)[0] as far:
            assert fastmtcp.info(far).target == "example.com:443"

    def test_the_local_address_of_the_subflows(self, server: fastmtcp.Server) -> None:
        source = ("127.0.0.9", 0)
        with fastmtcp.create_connection(
            None, None, source, server=server.addresses, key=KEY
        ) as sock:
            found = fastmtcp.info(sock).session.subflows
            assert found
            assert all(subflow.local.startswith("127.0.0.9:") for subflow in found)

    def test_without_waiting_the_first_bytes_travel_with_the_opening(
        self, server: fastmtcp.Server, client: fastmtcp.Client
    ) -> None:
        with client.connect(wait=False) as near:
            near.sendall(b"GET /")
            with server.accept(30)[0] as far:
                assert read_exactly(far, 5) == b"GET /"

    def test_without_waiting_and_without_bytes(
        self, server: fastmtcp.Server, client: fastmtcp.Client
    ) -> None:
        with client.connect(wait=False) as near, server.accept(30)[0] as far:
            far.sendall(b"SSH-2.0")
            near.settimeout(30)
            assert read_exactly(near, 7) == b"SSH-2.0"


class TestFailing:
    @pytest.mark.parametrize("wait", [True, False])
    def test_no_descriptors_are_left(
        self,
        server: fastmtcp.Server,
        client: fastmtcp.Client,
        monkeypatch: pytest.MonkeyPatch,
        wait: bool,
    ) -> None:
        def fail() -> tuple[socket.socket, socket.socket]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patch:
            patch.setattr(core, "make_pair", fail)
            with pytest.raises(OSError, match="Too many open files"):
                client.connect(timeout=30, wait=wait)
        with client.connect(timeout=30) as near:
            near.sendall(b"x")
            eventually(lambda: len(server.status().sessions[0].streams) == 1, "one is left")

    def test_no_descriptors_are_left_for_a_stream_that_comes(
        self, server: fastmtcp.Server, client: fastmtcp.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail() -> tuple[socket.socket, socket.socket]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with client.connect(timeout=30) as near:
            with monkeypatch.context() as patch:
                patch.setattr(core, "make_pair", fail)
                with pytest.raises(OSError, match="Too many open files"):
                    server.accept(30)
            with pytest.raises(ConnectionResetError):
                near.recv(1)

    def test_no_server(self) -> None:
        with refusing_port() as port, pytest.raises(ConnectionRefusedError) as caught:
            fastmtcp.create_connection(None, server=("127.0.0.1", port))
        assert caught.value.errno == errno.ECONNREFUSED
        assert f"127.0.0.1:{port}" in str(caught.value)

    def test_no_answer(self) -> None:
        with silent_port() as port:
            before = time.monotonic()
            with pytest.raises(TimeoutError):
                fastmtcp.create_connection(None, 0.3, server=("127.0.0.1", port))
            assert time.monotonic() - before < 5

    def test_an_unknown_name(self) -> None:
        with pytest.raises(socket.gaierror):
            fastmtcp.create_connection(None, 30, server="no-such-host.invalid:7700")

    def test_another_key(self, server: fastmtcp.Server) -> None:
        with pytest.raises(fastmtcp.HandshakeError, match="wrong key") as caught:
            fastmtcp.create_connection(None, server=server.addresses, key=bytes(32))
        assert isinstance(caught.value, ConnectionError)
        assert isinstance(caught.value, fastmtcp.FastmtcpError)

    def test_no_fastmtcp(self) -> None:
        target = Target(echo)
        with pytest.raises(fastmtcp.HandshakeError):
            fastmtcp.create_connection(None, server=("127.0.0.1", target.port))
        target.close()

    def test_a_target_that_refuses(self) -> None:
        with (
            refusing_port() as port,
            fastmtcp.Server("127.0.0.1:0", target=("127.0.0.1", port)) as server,
            fastmtcp.Client(server.addresses) as client,
        ):
            with pytest.raises(ConnectionRefusedError, match="target refused"):
                client.connect()
            with client.connect(wait=False) as sock:
                eventually(lambda: is_reset(sock), "the socket is reset")

    def test_a_target_that_is_not_allowed(self) -> None:
        target = Target(echo)
        allowed = f"127.0.0.1:{target.port}"
        with (
            fastmtcp.Server("127.0.0.1:0", allow=allowed) as server,
            fastmtcp.Client(server.addresses) as client,
        ):
            with pytest.raises(PermissionError, match="not allow"):
                client.connect(("127.0.0.1", 9))
            with client.connect(("127.0.0.1", target.port), 30) as sock:
                sock.sendall(b"x")
                assert read_exactly(sock, 1) == b"x"
            with pytest.raises(ValueError, match="forwards"):
                server.accept()
        target.close()

    def test_a_target_that_does_not_answer(self) -> None:
        with (
            silent_port() as port,
            fastmtcp.Server(
                "127.0.0.1:0", target=("127.0.0.1", port), connect_timeout=0.3
            ) as server,
            pytest.raises(OSError, match="cannot be reached") as caught,
        ):
            fastmtcp.create_connection(None, server=server.addresses)
        assert caught.value.errno == errno.EHOSTUNREACH

    def test_a_target_with_an_unknown_name(self) -> None:
        with (
            fastmtcp.Server("127.0.0.1:0", target="no-such-host.invalid:80") as server,
            pytest.raises(socket.gaierror),
        ):
            fastmtcp.create_connection(None, server=server.addresses)

    def test_those_that_are_too_many_wait_for_an_accept(self) -> None:
        with (
            fastmtcp.Server("127.0.0.1:0", backlog=2) as server,
            fastmtcp.Client(server.addresses) as client,
        ):
            sockets = [client.connect() for _ in range(2)]
            with pytest.raises(TimeoutError):
                client.connect(timeout=0.3)
            waiting = Background(client.connect)
            sockets += [server.accept()[0] for _ in range(3)]
            sockets.append(waiting.result())
            for sock in sockets:
                sock.close()

    def test_one_that_goes_before_it_is_accepted_is_not_accepted(
        self, server: fastmtcp.Server, client: fastmtcp.Client
    ) -> None:
        abort(client.connect())
        eventually(lambda: not server.status().totals.streams, "the reset arrives")
        with pytest.raises(TimeoutError):
            server.accept(0.3)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"server": "127.0.0.1"}, "server: .*no port"),
            ({"server": []}, "server: names no server"),
            ({"server": "127.0.0.1:1", "connections": 65}, "connections: 65 must be .* 1 to 64"),
            ({"server": "127.0.0.1:1", "connect_timeout": 0}, "connect_timeout: 0"),
            ({"server": "127.0.0.1:1", "key": b"short"}, "key: must be 32 bytes"),
            ({"server": "127.0.0.1:1", "key": "g" * 64}, "key: must be 32 bytes"),
            ({"server": "127.0.0.1:1", "key_file": "/no/such/file"}, "does not exist"),
            ({"server": "127.0.0.1:1", "key": KEY, "key_file": "x"}, "exclude one another"),
            ({"server": "127.0.0.1:1", "egress": "on"}, "egress: 'on' must be one of"),
            ({"server": "127.0.0.1:1", "source_address": ("127.0.0.1", 5)}, "give port 0"),
            ({"server": "127.0.0.1:1", "source_address": ("host", 0)}, "must be an IP address"),
        ],
    )
    def test_wrong_arguments(self, arguments: dict[str, object], words: str) -> None:
        with pytest.raises(fastmtcp.ConfigError, match=words) as caught:
            fastmtcp.create_connection(None, **arguments)  # type: ignore[arg-type]
        assert isinstance(caught.value, ValueError)
        assert KEY.hex() not in str(caught.value)

    def test_a_server_without_a_key_listens_on_loopback_only(self) -> None:
        with pytest.raises(fastmtcp.ConfigError, match="without a key listens on"):
            fastmtcp.Server("0.0.0.0:0")

    def test_a_port_that_is_taken(self, server: fastmtcp.Server) -> None:
        with pytest.raises(OSError, match="in use") as caught:
            fastmtcp.Server(server.addresses[0])
        assert caught.value.errno == errno.EADDRINUSE

    @pytest.mark.parametrize("address", [("a", 0), ("*", 80), ("a b", 80), ("a",), "a:80"])
    def test_wrong_addresses(self, client: fastmtcp.Client, address: object) -> None:
        with pytest.raises(ValueError, match="address"):
            client.connect(address)  # type: ignore[arg-type]

    def test_a_negative_timeout(self, client: fastmtcp.Client) -> None:
        with pytest.raises(ValueError, match="timeout"):
            client.connect(timeout=-1)


class TestSockets:
    def test_bytes_both_ways(self) -> None:
        target = Target(exchange)
        up, down = data(30_000_000, 5), data(30_000_000, 1)
        with (
            fastmtcp.Server("127.0.0.1:0", target=("127.0.0.1", target.port)) as server,
            fastmtcp.create_connection(None, server=server.addresses) as sock,
        ):
            head = len(down).to_bytes(8, "big") + (1).to_bytes(8, "big")

            def send() -> None:
                sock.sendall(head + up)
                sock.shutdown(socket.SHUT_WR)

            sending = Background(send)
            assert read_all(sock) == down
            sending.result()
            assert target.works[0].result() == sha256(up)
        target.close()

    @pytest.mark.parametrize("way", ["up", "down"])
    def test_an_urgent_byte_is_in_its_place(self, pairs: Pairs, way: str) -> None:
        near, far = pairs()
        one, other = (near, far) if way == "up" else (far, near)
        for _ in range(3):
            one.send(b"aaa")
            one.send(b"!", socket.MSG_OOB)
            one.send(b"bbb")
            assert read_exactly(other, 7) == b"aaa!bbb"

    def test_half_close(self, pairs: Pairs) -> None:
        near, far = pairs()
        near.sendall(b"question")
        near.shutdown(socket.SHUT_WR)
        assert read_all(far) == b"question"
        far.sendall(b"answer")
        far.shutdown(socket.SHUT_WR)
        assert read_all(near) == b"answer"

    def test_a_reset_is_a_reset_at_the_other_end(self, pairs: Pairs) -> None:
        near, far = pairs()
        abort(near)
        with pytest.raises(ConnectionResetError):
            far.recv(1)
        with pytest.raises(BrokenPipeError):
            far.send(b"x")

    def test_closing_with_unread_data_resets_the_other_end(self, pairs: Pairs) -> None:
        near, far = pairs()
        far.sendall(b"never read")
        assert read_exactly(near, 1) == b"n"
        near.close()
        eventually(lambda: is_reset(far), "the other end is reset")

    def test_a_close_delivers_what_was_written(self, pairs: Pairs) -> None:
        near, far = pairs()
        content = data(5_000_000)
        reading = Background(read_all, far)
        near.sendall(content)
        near.close()
        assert reading.result() == content

    def test_a_slow_reader_holds_the_writer_back(self, pairs: Pairs) -> None:
        near, far = pairs()
        held = fill(near)
        assert held < 100_000_000
        near.settimeout(30)
        reading = Background(read_exactly, far, held)
        reading.result()

    def test_timeouts_and_non_blocking(self, pairs: Pairs) -> None:
        near, far = pairs()
        near.settimeout(0.05)
        with pytest.raises(TimeoutError):
            near.recv(1)
        near.setblocking(False)
        with pytest.raises(BlockingIOError):
            near.recv(1)
        with selectors.DefaultSelector() as selector:
            selector.register(near, selectors.EVENT_READ)
            assert not selector.select(0.05)
            far.sendall(b"x")
            assert selector.select(30)

    def test_makefile(self, pairs: Pairs) -> None:
        near, far = pairs()
        with near.makefile("rw", encoding="utf-8") as mine, far.makefile("rw") as theirs:
            mine.write("first\nsecond\n")
            mine.flush()
            assert [theirs.readline(), theirs.readline()] == ["first\n", "second\n"]

    def test_options_of_tcp_can_be_set(self, pairs: Pairs) -> None:
        near, _ = pairs()
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    def test_a_program_takes_it_for_its_standard_input(self, pairs: Pairs) -> None:
        near, far = pairs()
        program = "import sys; sys.stdout.write(sys.stdin.read().upper())"
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=near.fileno(), stdout=near.fileno()
        ) as child:
            near.close()
            far.sendall(b"hello")
            far.shutdown(socket.SHUT_WR)
            assert read_all(far) == b"HELLO"
            assert child.wait(30) == 0

    def test_http_client(self, echo_server: fastmtcp.Server) -> None:
        connection = http.client.HTTPConnection("echo.invalid", 80)
        with fastmtcp.Client(echo_server.addresses, key=KEY) as client:
            connection._create_connection = (  # type: ignore[attr-defined]
                lambda address, timeout, _source: client.connect(address, 30)
            )
            connection.request("POST", "/", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            assert connection.sock.recv(4) == b"POST"
            connection.close()

    def test_many_at_once(self, server: fastmtcp.Server) -> None:
        def answer(sock: socket.socket, _address: object) -> None:
            sock.sendall(read_exactly(sock, 4))

        with serve(server, answer), fastmtcp.Client(server.addresses, key=KEY) as client:
            sockets = [client.connect(timeout=30) for _ in range(200)]
            for number, sock in enumerate(sockets):
                sock.sendall(number.to_bytes(4, "big"))
            for number, sock in enumerate(sockets):
                assert read_all(sock) == number.to_bytes(4, "big")
                sock.close()


class TestInfo:
    def test_both_ends_know_the_session(self, pairs: Pairs) -> None:
        near, far = pairs()
        near.sendall(b"12345")
        assert read_exactly(far, 5) == b"12345"
        mine, theirs = fastmtcp.info(near), fastmtcp.info(far)
        assert (mine.is_client, theirs.is_client) == (True, False)
        assert mine.session.id == theirs.session.id
        assert mine.stream.id == theirs.stream.id
        assert mine.stream.payload_up == theirs.stream.payload_up == 5
        assert mine.target == theirs.target == ""
        eventually(lambda: len(fastmtcp.info(near).session.subflows) == 3, "all are up")
        assert fastmtcp.info(near).session.paths[0].state == "up"

    def test_a_copy_of_the_socket_is_the_same_stream(self, pairs: Pairs) -> None:
        near, _ = pairs()
        with socket.socket(fileno=os.dup(near.fileno())) as copy:
            assert fastmtcp.info(copy).stream.id == fastmtcp.info(near).stream.id

    def test_a_socket_of_somebody_else(self) -> None:
        target = Target(echo)
        with (
            socket.create_connection(("127.0.0.1", target.port)) as sock,
            pytest.raises(ValueError, match="no stream"),
        ):
            fastmtcp.info(sock)
        target.close()

    def test_a_stream_that_is_over(self, pairs: Pairs) -> None:
        near, far = pairs()
        abort(far)
        eventually(lambda: is_reset(near), "the end arrives")
        with pytest.raises((ValueError, OSError)):
            fastmtcp.info(near)

    def test_the_status_of_both(
        self, server: fastmtcp.Server, client: fastmtcp.Client, pairs: Pairs
    ) -> None:
        pairs()
        assert client.status().totals.streams == server.status().totals.streams == 1
        assert client.status().sessions[0].id == server.status().sessions[0].id


class TestServer:
    def test_iteration_ends_with_the_close(self, server: fastmtcp.Server) -> None:
        def count() -> int:
            number = 0
            for sock, _ in server:
                sock.close()
                number += 1
            return number

        seen = Background(count)
        with fastmtcp.Client(server.addresses, key=KEY) as client:
            for _ in range(3):
                with client.connect() as sock:
                    assert read_all(sock) == b""
        server.close()
        assert seen.result() == 3

    def test_accept_says_who_it_is(self, server: fastmtcp.Server, client: fastmtcp.Client) -> None:
        with client.connect() as near, server.accept()[0] as far:
            known = {subflow.local for subflow in fastmtcp.info(near).session.subflows}
            assert {s.remote for s in fastmtcp.info(far).session.subflows} & known
        with client.connect(), server.accept()[0]:
            pass

    def test_several_threads_accept(self, server: fastmtcp.Server) -> None:
        workers = [Background(server.accept, 30) for _ in range(8)]
        with fastmtcp.Client(server.addresses, key=KEY) as client:
            sockets = [client.connect() for _ in range(8)]
            accepted = [worker.result()[0] for worker in workers]
            for number, sock in enumerate(sockets):
                sock.sendall(bytes([number]))
            assert sorted(read_exactly(sock, 1) for sock in accepted) == [
                bytes([number]) for number in range(8)
            ]
            for sock in (*sockets, *accepted):
                sock.close()

    def test_a_close_ends_a_waiting_accept(self, server: fastmtcp.Server) -> None:
        waiting = Background(server.accept)
        time.sleep(0.05)
        server.close()
        with pytest.raises(OSError, match="closed") as caught:
            waiting.result()
        assert caught.value.errno == errno.EBADF
        with pytest.raises(OSError, match="closed"):
            server.accept()

    def test_a_server_with_a_target_accepts_nothing(self) -> None:
        with (
            fastmtcp.Server("127.0.0.1:0", target="127.0.0.1:1") as server,
            pytest.raises(ValueError, match="forwards"),
        ):
            server.accept()

    def test_a_handler_that_fails_resets_nothing_but_its_own(
        self, server: fastmtcp.Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failures: list[object] = []
        monkeypatch.setattr(threading, "excepthook", failures.append)

        def handler(sock: socket.socket, _address: object) -> None:
            if read_exactly(sock, 1) == b"x":
                raise RuntimeError("a fault of the handler")
            sock.sendall(b"fine")

        with (
            serve(server, handler),
            fastmtcp.Client(server.addresses, key=KEY) as client,
            client.connect(timeout=30) as bad,
            client.connect(timeout=30) as good,
        ):
            bad.sendall(b"x")
            assert read_all(bad) == b""
            good.sendall(b"y")
            assert read_all(good) == b"fine"
        assert len(failures) == 1
