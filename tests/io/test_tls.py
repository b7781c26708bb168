"""TLS of subflows: who is let in by which certificate, and bytes that come through whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import select
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastmtcp.driver.subflow import SubflowSocket
from fastmtcp.driver.turn import Turn
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.errors import ConfigError, StartError
from fastmtcp.io.buffers import BufferPool
from fastmtcp.io.loop import Loop
from fastmtcp.security import handshake_socket, tls
from fastmtcp.security.certificates import ClientTls, ServerTls
from fastmtcp.security.handshake import (
    MAX_CLIENT_BYTES,
    Preamble,
    RefuseCode,
    RefusedError,
    clear_refusal,
)
from fastmtcp.security.handshake_socket import PreambleReader
from fastmtcp.security.tls import Tls
from fastmtcp.server.reception import Reception
from perf.key_updates import KeyUpdater

from tests.io import certificates
from tests.io.certificates import Files
from tests.io.net import WAIT, Background, data, read_exactly, run_until, tcp_pair, turn
from tests.io.sides import GRANT, KEY, NEW, OTHER_KEY, ClientSide, ServerSide, both
from tests.io.test_pool import World, shrink_under_load

SCRATCH = BufferPool().scratch
TLS_PREAMBLE = NEW.encode()[:9] + b"\1" + NEW.encode()[10:]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return certificates.make(tmp_path_factory.mktemp("certificates"), "other")


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def shake(
    loop: Loop, client_tls: ClientTls | None, server_tls: ServerTls | None, **more: str
) -> tuple[ClientSide, ServerSide]:
    client, server = both(loop, KEY, client_tls, server_tls, **more)
    run_until(loop, lambda: client.known and server.over, "both sides know")
    return client, server


def peek(sock: socket.socket, size: int) -> bytes:
    """What has arrived; empty if nothing has."""
    try:
        return sock.recv(size, socket.MSG_PEEK)
    except BlockingIOError:
        return b""


def joined(files: Files) -> tuple[Tls, Tls]:
    """Both ends of a connection that is up."""
    client = ClientTls((files.fingerprint,)).connect("")
    server = files.server().accept()
    to_server = client.feed(b"")[1]
    while not (client.is_up and server.is_up):
        _, to_client = server.feed(to_server)
        _, to_server = client.feed(to_client) if to_client else (b"", b"")
    return client, server


class Middle:
    """Somebody between the two who has the server's certificate and its key."""

    def __init__(self, files: Files, client: socket.socket, server: socket.socket) -> None:
        self._client = client
        self._server = server
        self._towards_client = files.server().accept()
        self._towards_server = ClientTls((files.fingerprint,)).connect("")
        self._preamble = b""
        self.seen: list[bytes] = []
        server.sendall(TLS_PREAMBLE + self._towards_server.feed(b"")[1])

    def pass_on(self) -> None:
        """What has come, read and told on."""
        heard = peek(self._client, 4096)
        if heard and len(self._preamble) < len(TLS_PREAMBLE):
            self._preamble = self._client.recv(len(TLS_PREAMBLE))
            heard = peek(self._client, 4096)
        self._tell(self._client, self._towards_client, self._server, self._towards_server)
        self._tell(self._server, self._towards_server, self._client, self._towards_client)

    def _tell(self, source: socket.socket, opened: Tls, to: socket.socket, sealed: Tls) -> None:
        if not sealed.is_up and opened.is_up:
            return  # the other side is not ready to be told
        try:
            heard = source.recv(4096)
        except BlockingIOError:
            return
        if not heard:
            to.shutdown(socket.SHUT_WR)
            return
        words, answer = opened.feed(heard)
        if answer:
            source.sendall(answer)
        if words:
            self.seen.append(words)
            to.sendmsg(sealed.seal([words])[0])


class TestCertificates:
    def test_pinned(self, loop: Loop, files: Files, other: Files) -> None:
        pins = (other.fingerprint, files.fingerprint)
        client, server = shake(loop, ClientTls(pins), files.server())
        assert client.granted is not None
        assert client.granted.grant == GRANT
        assert client.tls is not None
        assert server.tls is not None
        with client.sock, server.sock:
            words: bytes = b"on it goes"
            server.sock.sendmsg(server.tls.seal([words])[0])
            run_until(loop, lambda: peek(client.sock, 1))
            space = memoryview(bytearray(100))
            assert client.tls.recv_into(client.sock, space, SCRATCH) == len(words)
            assert space[: len(words)] == words

    def test_another_fingerprint(self, loop: Loop, files: Files, other: Files) -> None:
        client, server = shake(loop, ClientTls((other.fingerprint,)), files.server())
        (error,) = client.errors
        assert "this may be a false server" in str(error)
        assert files.fingerprint.hex(":").upper() in str(error)
        assert server.proved is None

    def test_by_authority_and_name(self, loop: Loop, files: Files) -> None:
        client, server = shake(loop, ClientTls(ca_file=files.certificate), files.server())
        assert client.granted is not None
        client.sock.close()
        server.sock.close()

    @pytest.mark.parametrize("how", ["host", "host without a form in ASCII", "server_name"])
    def test_another_name(self, loop: Loop, files: Files, how: str) -> None:
        name = "example.com" if how == "server_name" else None
        client_tls = ClientTls(ca_file=files.certificate, server_name=name)
        host = {"host": "127.0.0.2", "server_name": "127.0.0.1"}.get(how, "stra\u00dfe.example")
        client, server = shake(loop, client_tls, files.server(), host=host)
        (error,) = client.errors
        assert "certificate is not accepted" in str(error)
        assert "mismatch" in str(error)
        assert server.proved is None

    @pytest.mark.parametrize("ca_file", ["other", "system"])
    def test_another_authority(self, loop: Loop, files: Files, other: Files, ca_file: str) -> None:
        client_tls = ClientTls(ca_file=other.certificate if ca_file == "other" else None)
        client, server = shake(loop, client_tls, files.server())
        assert "certificate is not accepted" in str(client.errors[0])
        assert server.proved is None

    def test_a_client_with_a_certificate(self, loop: Loop, files: Files, other: Files) -> None:
        certificates = files.server(client_ca_file=other.certificate)
        client_tls = ClientTls((files.fingerprint,), None, None, other.certificate, other.key)
        client, server = shake(loop, client_tls, certificates)
        assert server.proved is not None
        client.sock.close()
        server.sock.close()

    @pytest.mark.parametrize("has_one", [True, False])
    def test_a_client_without_the_right_one(
        self, loop: Loop, files: Files, other: Files, has_one: bool
    ) -> None:
        certificates = files.server(client_ca_file=other.certificate)
        own = (files.certificate, files.key) if has_one else (None, None)
        client, server = shake(
            loop, ClientTls((files.fingerprint,), None, None, *own), certificates
        )
        assert server.proved is None
        assert client.granted is None
        assert str(client.errors[0]).startswith("TLS: ")

    @pytest.mark.parametrize("client_has", [True, False])
    def test_tls_on_one_side_only(self, loop: Loop, files: Files, client_has: bool) -> None:
        client_tls = ClientTls((files.fingerprint,)) if client_has else None
        client, server = shake(loop, client_tls, None if client_has else files.server())
        (error,) = client.errors
        assert isinstance(error, RefusedError)
        assert error.code is RefuseCode.TLS
        assert str(error) == str(server.errors[0]) == handshake_socket.TLS_DIFFERS[client_has]

    def test_a_wrong_key_is_told_inside(self, loop: Loop, files: Files) -> None:
        client_tls = ClientTls((files.fingerprint,))
        client, server = both(loop, OTHER_KEY, client_tls, files.server())
        run_until(loop, lambda: client.known)
        (error,) = client.errors
        assert isinstance(error, RefusedError)
        assert error.code is RefuseCode.KEY
        assert server.proved is None

    def test_who_is_in_the_middle_with_the_key_of_the_certificate(
        self, loop: Loop, files: Files
    ) -> None:
        """It passes the pin, and what the two say on; but their proofs are about two connections,
        so that it gets neither a session nor a byte of one."""
        near, middle_far = tcp_pair()
        near.setblocking(False)
        middle_near, far = tcp_pair()
        middle_near.setblocking(False)
        client = ClientSide(loop, near, certificates=ClientTls((files.fingerprint,)))
        server = ServerSide(loop, far, files.server())
        middle = Middle(files, middle_far, middle_near)
        with middle_far, middle_near:

            def told() -> bool:
                middle.pass_on()
                return client.known and server.over

            run_until(loop, told)
        assert (client.granted, server.proved) == (None, None)
        for error in (*client.errors, *server.errors):
            assert isinstance(error, RefusedError)
            assert error.code is RefuseCode.KEY
        # It has seen the HELLO, a PROOF of no use, and the refusal.
        assert len(middle.seen) == 4

    def test_who_has_the_key_of_the_certificate_ends_no_session(
        self, loop: Loop, files: Files
    ) -> None:
        near, far = tcp_pair()
        near.setblocking(False)
        client = ClientSide(loop, near, certificates=ClientTls((files.fingerprint,)))
        context = files.server()
        far.setblocking(False)
        tls = context.accept()
        said = clear_refusal(RefusedError(RefuseCode.UNKNOWN_SESSION, "unknown session"))
        skipped = b""

        def talk() -> bool:
            nonlocal skipped
            with contextlib.suppress(BlockingIOError):
                heard = far.recv(4096)
                rest = heard[max(0, 12 - len(skipped)) :]
                skipped += heard
                words, answer = tls.feed(rest)
                far.sendall(answer)
                if words:
                    far.sendmsg(tls.seal([said])[0])
            return client.known

        with far:
            run_until(loop, talk)
        (error,) = client.errors
        assert not isinstance(error, RefusedError)

    def test_an_older_tls_is_refused(self, loop: Loop, files: Files) -> None:
        near, far = tcp_pair()
        server = ServerSide(loop, far, files.server())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with near:
            old = Tls(context)
            near.sendall(TLS_PREAMBLE + old.feed(b"")[1])
            run_until(loop, lambda: server.over)
            assert str(server.errors[0]) == "TLS: the other side does not speak TLS 1.3"


class TestWhoeverDoesNotSpeakTls:
    """At a server with TLS; what other servers say to a client is in the last tests."""

    def drops(self, loop: Loop, files: Files, content: bytes) -> str:
        near, far = tcp_pair()
        server = ServerSide(loop, far, files.server())
        with near:
            near.sendall(content)
            run_until(loop, lambda: server.over)
            assert far.fileno() == -1
            assert server.proved is None
            return str(server.errors[0])

    def test_garbage(self, loop: Loop, files: Files) -> None:
        for garbage in (b"GET / HTTP/1.0\r\n\r\n", b"\0\5\xc1\xc1\xc1\xc1\xc1", bytes(2000)):
            assert self.drops(loop, files, TLS_PREAMBLE + garbage).startswith("TLS: ")

    def test_garbage_inside(self, loop: Loop, files: Files) -> None:
        near, far = tcp_pair()
        server = ServerSide(loop, far, files.server())
        client = ClientTls((files.fingerprint,)).connect("")
        near.sendall(TLS_PREAMBLE + client.feed(b"")[1])
        near.setblocking(False)
        with near:

            def talk() -> bool:
                with contextlib.suppress(BlockingIOError):
                    near.sendall(client.feed(near.recv(4096))[1])
                return client.is_up

            run_until(loop, talk)
            near.sendmsg(client.seal([b"\xff" * 100])[0])
            run_until(loop, lambda: server.over)
            assert str(server.errors[0]) == "the peer does not speak fastmtcp"

    def test_silence_at_any_point(
        self, loop: Loop, files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(handshake_socket, "HANDSHAKE_TIMEOUT", 0.1)
        hello = ClientTls((files.fingerprint,)).connect("").feed(b"")[1]
        for content in (TLS_PREAMBLE, TLS_PREAMBLE + hello[:100], TLS_PREAMBLE + hello):
            assert self.drops(loop, files, content) == "no answer to the handshake"

    def test_byte_by_byte_is_as_good(self, loop: Loop, files: Files) -> None:
        near, far = tcp_pair()
        server = ServerSide(loop, far, files.server())
        hello = ClientTls((files.fingerprint,)).connect("").feed(b"")[1]
        with near:
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in TLS_PREAMBLE + hello:
                near.send(bytes([byte]))
                turn(loop, 1)
            near.setblocking(False)
            run_until(loop, lambda: peek(near, 3) == b"\x16\x03\x03")
            server.handshake.cancel()

    def test_a_server_that_is_another(self, loop: Loop, files: Files) -> None:
        for said in (b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 9000):
            near, far = tcp_pair()
            near.setblocking(False)
            client = ClientSide(loop, near, certificates=ClientTls((files.fingerprint,)))
            with far:
                far.sendall(said)
                run_until(loop, lambda: client.known)  # noqa: B023
            assert str(client.errors[0]).startswith("TLS: ")
            assert near.fileno() == -1

    @pytest.mark.parametrize("code", RefuseCode)
    def test_who_refuses_in_its_place(self, loop: Loop, files: Files, code: RefuseCode) -> None:
        """Anybody on the path can; only that there is no TLS is heard, and in our words."""
        near, far = tcp_pair()
        near.setblocking(False)
        client = ClientSide(loop, near, certificates=ClientTls((files.fingerprint,)))
        with far:
            far.sendall(clear_refusal(RefusedError(code, "believe me")))
            run_until(loop, lambda: client.known)
        (error,) = client.errors
        is_heard = isinstance(error, RefusedError)
        assert is_heard is (code is RefuseCode.TLS)
        assert "believe me" not in str(error)


class TestBytes:
    @pytest.mark.parametrize("seed", range(3))
    def test_all_come_through_in_order_and_none_is_hidden(self, files: Files, seed: int) -> None:
        rng = random.Random(seed)
        client, server = joined(files)
        near, far = tcp_pair()
        far.setblocking(False)
        with near, far:
            for source, sink in ((client, server), (server, client)):
                content = data(700_000, seed)
                view, pieces, at = memoryview(content), [], 0
                while at < len(content):
                    size = rng.choice((1, 20, 1000, 5000, 16384, 16385, 100_000, 300_000))
                    pieces.append(view[at : at + size])
                    at += size
                wire, size = source.seal(pieces)
                sealed = b"".join(wire)
                assert len(sealed) == size
                got = bytearray()
                while sealed or len(got) < len(content):
                    count = rng.randrange(1, 60_000)
                    near.sendall(sealed[:count])
                    sealed = sealed[count:]
                    space = memoryview(bytearray(rng.choice((100, 20_000, 200_000))))
                    while True:
                        try:
                            count = sink.recv_into(far, space, SCRATCH)
                        except BlockingIOError:
                            break
                        assert count
                        got += space[:count]
                        if count < len(space):
                            # That says that nothing is left, as on a plain socket.
                            with pytest.raises(BlockingIOError):
                                sink.recv_into(far, space, SCRATCH)
                            break
                assert got == content

    def test_the_end_of_the_connection(self, files: Files) -> None:
        _, server = joined(files)
        near, far = tcp_pair()
        with far:
            near.close()
            assert server.recv_into(far, memoryview(bytearray(100)), SCRATCH) == 0

    def test_a_changed_byte_is_noticed(self, files: Files) -> None:
        client, server = joined(files)
        near, far = tcp_pair()
        with near, far:
            wire = bytearray(b"".join(client.seal([b"x" * 1000])[0]))
            wire[500] ^= 1
            near.sendall(wire)
            with pytest.raises(OSError, match="TLS: ") as caught:
                server.recv_into(far, memoryview(bytearray(5000)), SCRATCH)
            assert caught.value.errno == errno.EPROTO

    def test_it_costs_little_more_than_the_bytes(self, files: Files) -> None:
        client, _ = joined(files)
        _, size = client.seal([b"h" * 20, b"x" * 262_144, *[b"ack" * 5] * 50])
        assert size < (262_144 + 20 + 750) * 1.01


class TestKeysWithoutEnd:
    """Each change of keys costs the receiver as much as 16 KiB of data, and its sender 27 bytes."""

    def test_before_a_proof_few_are_heard(
        self, loop: Loop, files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        heard = 0
        feed = Tls.feed

        def count(self: Tls, content: bytes) -> tuple[bytes, bytes]:
            nonlocal heard
            heard += len(content) if self.is_up else 0
            return feed(self, content)

        near, far = tcp_pair()
        server = ServerSide(loop, far, files.server())
        updater = KeyUpdater()
        near.sendall(TLS_PREAMBLE + updater.tls.feed(b"")[1])
        while not updater.tls.is_up:
            run_until(loop, lambda: peek_in_time(near))
            near.sendall(updater.tls.feed(near.recv(1 << 16))[1])
        run_until(loop, lambda: server.is_secure)
        monkeypatch.setattr(Tls, "feed", count)
        with near:
            near.sendall(b"".join(updater.records(2000)))
            run_until(loop, lambda: server.over)
            assert str(server.errors[0]) == "the peer does not come to the end of its handshake"
            assert heard <= MAX_CLIENT_BYTES

    def test_before_tls_is_up_there_is_an_end(self, loop: Loop, files: Files) -> None:
        near, far = tcp_pair()
        server = ServerSide(loop, far, files.server())
        # A ClientHello of 100,000 bytes, which OpenSSL would take.
        record = b"\x16\3\1" + (4096).to_bytes(2)
        parts = [b"\1" + (100_000).to_bytes(3) + bytes(4092), *[bytes(4096)] * 20]
        with near:
            near.sendall(TLS_PREAMBLE + b"".join(record + part for part in parts))
            run_until(loop, lambda: server.over)
        assert str(server.errors[0]) == "the peer does not come to the end of its handshake"

    def test_of_a_subflow_they_end_it(self, files: Files) -> None:
        server, updater = updated(files)
        near, far = tcp_pair()
        near.settimeout(WAIT)
        sending = Background(near.sendall, b"".join(updater.records(10_000)))
        space = memoryview(bytearray(100_000))

        def read_all() -> None:
            while True:
                with contextlib.suppress(BlockingIOError):
                    server.recv_into(far, space, SCRATCH)

        with pytest.raises(OSError, match="records without content") as caught:
            read_all()
        assert caught.value.errno == errno.EPROTO
        assert server._received <= tls.MAX_EMPTY + len(SCRATCH)
        far.close()
        with contextlib.suppress(ConnectionError):
            sending.result()
        near.close()

    def test_bytes_among_them_do_not_help(self, files: Files) -> None:
        server, updater = updated(files)
        near, far = tcp_pair()
        space = memoryview(bytearray(100_000))
        lasted = 0

        def go_on() -> None:
            nonlocal lasted
            for record in updater.records(3000, content=b"x" * 1000):
                near.sendall(record)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        server.recv_into(far, space, SCRATCH)
                lasted += 1

        with near, far, pytest.raises(OSError, match="records without content"):
            go_on()
        # Now and then is no fault.
        assert lasted == tls.MAX_EMPTY // 27

    def test_records_of_one_byte_do_not_keep_the_loop(self, files: Files) -> None:
        """And none of them is forgotten, though no poller knows of it."""
        client, server = joined(files)
        near, far = tcp_pair()
        wire = b"".join(b"".join(client.seal([b"x"])[0]) for _ in range(1000))
        near.sendall(wire)
        space = memoryview(bytearray(100_000))
        got = 0
        with near, far:
            while got < 1000:
                count = server.recv_into(far, space, SCRATCH)
                assert 0 < count <= 64
                got += count
                assert server.has_more is (got < 1000)

    def test_a_subflow_reads_on_what_is_left(self, loop: Loop, files: Files) -> None:
        client, server = joined(files)
        near, far = tcp_pair()
        got = []

        class Session:
            def received(self, source: SubflowSocket, view: memoryview) -> None:
                got.append(bytes(view))

            def lost(self, source: SubflowSocket, reason: str) -> None: ...
            def progress(self) -> None: ...

        near.sendall(b"".join(b"".join(client.seal([b"x"])[0]) for _ in range(70)))
        turn_of = Turn(loop)
        subflow = Subflow(0, loop.now)
        sock = SubflowSocket(loop, BufferPool(), turn_of, Session(), far, subflow, "", None, server)
        run_until(loop, lambda: sum(map(len, got)) == 70)
        sock.close(reset=True)
        near.close()


def updated(files: Files) -> tuple[Tls, KeyUpdater]:
    """The server's end of a connection that is up, and a client that changes its keys."""
    server, updater = files.server().accept(), KeyUpdater()
    to_server = updater.tls.feed(b"")[1]
    while to_server:
        _, to_client = server.feed(to_server)
        _, to_server = updater.tls.feed(to_client) if to_client else (b"", b"")
    return server, updater


def peek_in_time(sock: socket.socket) -> bool:
    """Whether something has arrived at a socket that waits."""
    return bool(select.select([sock], [], [], 0)[0])


def test_a_subflow_knows_what_is_on_the_wire(files: Files) -> None:
    """Or its PINGs seem to have passed what they wait behind."""
    client, _ = joined(files)
    loop = Loop()
    ours, theirs = tcp_pair()
    subflow = Subflow(0, loop.now)

    class Nobody:
        def received(self, source: SubflowSocket, view: memoryview) -> None: ...
        def lost(self, source: SubflowSocket, reason: str) -> None: ...
        def progress(self) -> None: ...

    turn_of = Turn(loop)
    sock = SubflowSocket(loop, BufferPool(), turn_of, Nobody(), theirs, subflow, "", None, client)
    with ours:
        sock.send([bytes(50_000), bytes(10)], 50_010)
        read_exactly(ours, 50_010 + subflow.overhead)
        ours.setblocking(False)
        assert peek(ours, 1) == b""
        assert 4 * 17 < subflow.overhead < 4 * 40
        sock.close(reset=True)
    loop.close()


class TestSessions:
    @pytest.fixture
    def world(self, files: Files) -> Iterator[World]:
        world = World(files)
        yield world
        world.close()

    @pytest.mark.parametrize("worn_out", [False, True])
    def test_bytes_both_ways_at_once(
        self, world: World, worn_out: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also if each connection is given up after two megabytes."""
        if worn_out:
            monkeypatch.setattr(tls, "MAX_BYTES", 2_000_000)
        _, (port,) = world.server()
        client = world.client(port, connections=3)
        client.until_up(3)
        near, far = client.stream()
        works = [
            Background(exchange, sock, data(20_000_000, sent), sha256(data(20_000_000, got)))
            for sock, sent, got in ((near, 1, 2), (far, 2, 1))
        ]
        world.until(lambda: all(work.done for work in works), "the bytes are there")
        for work in works:
            work.result()
        assert bool(client.pool.paths[0].reconnects) is worn_out

    def test_a_refusal_in_the_clear_ends_no_session(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, (port,) = world.server()
        client = world.client(port, connections=1, express=False)
        client.until_up(1)
        near, far = client.stream()
        lies: list[Preamble] = []

        def lie(
            server: Reception, arrival: PreambleReader, sock: socket.socket, preamble: Preamble
        ) -> None:
            """Of somebody on the path, to whoever comes."""
            lies.append(preamble)
            sock.send(clear_refusal(RefusedError(RefuseCode.UNKNOWN_SESSION, "unknown session")))
            server._leave(server._arrivals.pop(arrival), accepted=True)
            world.loop.unwatch(sock.fileno())
            sock.close()

        with monkeypatch.context() as patch:
            patch.setattr(Reception, "_on_arrived", lie)
            for subflow in list(client.session.driver.sockets.values()):
                client.session.driver.lost(subflow, "the test")
            world.until(lambda: len(lies) == 2 or world.ended, "two attempts have been lied to")
        assert world.ended == []
        assert lies[0].worker == 0
        client.until_up(1)
        near.sendall(b"still here")
        received = Background(read_exactly, far, 10)
        world.until(lambda: received.done)
        assert received.result() == b"still here"

    @pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
    def test_retiring_sends_nothing_twice(
        self, world: World, up: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shrink_under_load(world, up, monkeypatch)


def exchange(sock: socket.socket, content: bytes, digest: str) -> None:
    """Send, and check what comes."""
    sock.settimeout(WAIT)
    sending = Background(sock.sendall, content)
    assert sha256(read_exactly(sock, len(content))) == digest
    sending.result()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_workers_that_have_one_context_draw_different_keys(files: Files) -> None:
    """Each is forked from the process that has read the certificates, with all its state."""
    client = ClientTls((files.fingerprint,))
    client.connect("localhost").feed(b"")
    hellos = [_in_a_fork(lambda: client.connect("localhost").feed(b"")[1]) for _ in range(2)]
    # Random bytes and a key of which the other half stays here.
    assert hellos[0][11:43] != hellos[1][11:43]
    assert hellos[0][-32:] != hellos[1][-32:]


def _in_a_fork(make: Callable[[], bytes]) -> bytes:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, make())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        made = pipe.read()
    os.waitpid(pid, 0)
    return made


class TestFiles:
    def test_what_cannot_be_used_is_named(self, files: Files, other: Files, tmp_path: Path) -> None:
        broken = tmp_path / "broken.pem"
        broken.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
        missing = str(tmp_path / "missing.pem")
        for certificate, key, problem in (
            (missing, files.key, "missing.pem|No such file"),
            (files.certificate, missing, "No such file"),
            (files.certificate, other.key, "key values mismatch"),
            (str(broken), files.key, "cannot be used"),
        ):
            with pytest.raises(ConfigError, match=problem):
                ServerTls(certificate, key)
        with pytest.raises(ConfigError, match=r"broken\.pem cannot be used"):
            ClientTls(ca_file=str(broken))

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
    def test_a_key_that_others_have_access_to(
        self, tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files = certificates.make(tmp_path)
        Path(files.key).chmod(mode)
        for use in (files.server, lambda: ClientTls((b"",), None, None, *files)):
            with pytest.raises(ConfigError, match=rf"server\.key is open .*{mode:04o}.*chmod 600 "):
                use()
        # systemd's own directory: the group's bits show an ACL for the service.
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        Path(files.key).chmod(0o440)
        files.server()

    def test_a_library_that_does_not_tell_connections_apart(
        self, files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = files.server()
        monkeypatch.setattr(Tls, "_finished", lambda _self: None)
        with pytest.raises(StartError, match="does not tell connections"):
            files.server()
        # A client without a certificate finds out when it connects, and goes no further.
        loop = Loop()
        client, found = shake(loop, ClientTls((files.fingerprint,)), server)
        assert "does not tell connections" in str(client.errors[0])
        assert found.proved is None
        loop.close()
