"""Handshakes on real sockets: success, and every way to fail, cheaply and in time."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from fastmtcp.auth import (
    MAX_MESSAGE,
    NONCE_SIZE,
    SESSION_ID_SIZE,
    ClientHandshake,
    Grant,
    Hello,
    RefuseCode,
    RefusedError,
    ServerHandshake,
    pack,
)
from fastmtcp.engine.role import Role
from fastmtcp.errors import PeerError
from fastmtcp.io import handshakes
from fastmtcp.io.handshakes import (
    ClientSocketHandshake,
    ServerSocketHandshake,
    SupersededError,
    refuse,
)
from fastmtcp.io.loop import Loop

from tests.io.net import WAIT, abort, read_all, run_until, tcp_pair, turn

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
GRANT = Grant(b"s" * SESSION_ID_SIZE, 65536, 100)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short time-out, so that the test need not wait for the real one."""
    monkeypatch.setattr(handshakes, "HANDSHAKE_TIMEOUT", 0.1)


class ServerSide:
    """A handshake as the server runs it."""

    def __init__(self, loop: Loop, sock: socket.socket, key: bytes = KEY) -> None:
        self.loop = loop
        self.sock = sock
        self.proved: ServerHandshake | None = None
        self.over = 0
        turn(loop, 1)  # so that loop.now is now
        self.handshake = ServerSocketHandshake(
            loop, sock, "the-peer", key, self._on_proved, self._on_over
        )

    def _on_proved(self, sock: socket.socket, handshake: ServerHandshake, peer: str) -> None:
        assert peer == "the-peer"
        assert self.over == 1
        self.proved = handshake
        sock.send(handshake.welcome(GRANT))

    def _on_over(self, handshake: ServerSocketHandshake) -> None:
        assert handshake is self.handshake
        self.over += 1


class ClientSide:
    """A handshake as the client runs it."""

    def __init__(self, loop: Loop, sock: socket.socket, key: bytes = KEY) -> None:
        self.sock = sock
        self.granted: ClientHandshake | None = None
        self.errors: list[PeerError] = []
        turn(loop, 1)
        self.handshake = ClientSocketHandshake(
            loop, sock, key, 3, None, self._on_done, self.errors.append
        )

    def _on_done(self, sock: socket.socket, handshake: ClientHandshake) -> None:
        assert sock is self.sock
        self.granted = handshake

    @property
    def known(self) -> bool:
        return bool(self.granted or self.errors)


def both(loop: Loop, client_key: bytes = KEY) -> tuple[ClientSide, ServerSide]:
    near, far = tcp_pair()
    near.setblocking(False)
    return ClientSide(loop, near, client_key), ServerSide(loop, far)


def test_both_sides_agree_and_keep_their_sockets(loop: Loop) -> None:
    client, server = both(loop)
    run_until(loop, lambda: client.known)
    assert client.granted is not None
    assert client.granted.grant == GRANT
    assert server.proved is not None
    assert server.over == 1
    with client.sock, server.sock:
        server.sock.send(b"on it goes")
        client.sock.settimeout(WAIT)
        assert client.sock.recv(100) == b"on it goes"


def test_first_frames_behind_the_welcome_are_kept(loop: Loop) -> None:
    near, far = tcp_pair()
    near.setblocking(False)
    client = ClientSide(loop, near)
    far.settimeout(WAIT)
    server = ServerHandshake(KEY, os.urandom(NONCE_SIZE))
    far.sendall(server.feed(far.recv(4096)))
    turn(loop)
    run_until(loop, lambda: far.recv(1, socket.MSG_PEEK))
    server.feed(far.recv(4096))
    far.sendall(server.welcome(GRANT) + b"early")
    run_until(loop, lambda: client.known)
    assert client.granted is not None
    assert client.granted.early == b"early"
    near.close()
    far.close()


def test_a_wrong_key_is_told_to_the_client_and_logged(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    client, server = both(loop, OTHER_KEY)
    run_until(loop, lambda: client.known)
    (error,) = client.errors
    assert isinstance(error, RefusedError)
    assert error.code is RefuseCode.KEY
    assert server.proved is None
    assert server.over == 1
    assert client.sock.fileno() == server.sock.fileno() == -1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "connection from the-peer refused: the keys differ; use the same key file on both sides"
    )


def test_another_version_is_told_to_the_client(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    near, far = tcp_pair()
    server = ServerSide(loop, far)
    with near:
        near.sendall(pack(Hello("fastmtcp", [99], b"n" * NONCE_SIZE, b"", 0)))
        run_until(loop, lambda: server.over)
        with pytest.raises(RefusedError, match="protocol version"):
            ClientHandshake(KEY, b"n" * NONCE_SIZE, 0).feed(read_all(near))
    assert "protocol version" in caplog.text


class TestWhoeverDoesNotSpeakProperly:
    def drops(self, loop: Loop, content: bytes) -> None:
        """The server closes the connection without a word."""
        near, far = tcp_pair()
        server = ServerSide(loop, far)
        with near:
            near.sendall(content)
            run_until(loop, lambda: server.over)
            assert far.fileno() == -1
            assert server.proved is None
            with contextlib.suppress(ConnectionResetError):  # when it did not read all of it
                assert near.recv(100) == b""

    def test_garbage(self, loop: Loop) -> None:
        for content in (b"GET / HTTP/1.0\r\n\r\n" * 100, b"\0\0", b"\0\5\xc1\xc1\xc1\xc1\xc1"):
            self.drops(loop, content)

    def test_more_than_a_message_may_have(self, loop: Loop) -> None:
        self.drops(loop, struct.pack("!H", MAX_MESSAGE + 1))
        self.drops(loop, b"\xff" * 1_000_000)

    @pytest.mark.usefixtures("hasty")
    def test_a_silent_client_is_dropped_in_time(
        self, loop: Loop, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "fastmtcp")
        self.drops(loop, b"")
        assert "connection from the-peer dropped: no answer to the handshake" in caplog.text

    @pytest.mark.usefixtures("hasty")
    def test_drip_feeding_gains_no_time(self, loop: Loop) -> None:
        near, far = tcp_pair()
        server = ServerSide(loop, far)
        hello = ClientHandshake(KEY, b"n" * NONCE_SIZE, 0).hello
        with near:
            fed = iter(hello)

            def drip() -> None:
                if server.over:
                    return
                near.send(bytes([next(fed)]))
                loop.call_later(0.02, drip)

            drip()
            run_until(loop, lambda: server.over)
            assert server.proved is None
            assert far.fileno() == -1
            assert next(fed, None) is not None

    def test_a_client_that_goes_away(self, loop: Loop) -> None:
        for end in (socket.socket.close, abort):
            near, far = tcp_pair()
            server = ServerSide(loop, far)
            near.send(b"\0")
            end(near)
            run_until(loop, lambda: server.over)  # noqa: B023
            assert far.fileno() == -1


class TestServersThatAreNone:
    def fails(self, loop: Loop, content: bytes, *, close: bool = False) -> str:
        near, far = tcp_pair()
        far.setblocking(False)
        near.setblocking(False)
        client = ClientSide(loop, near)
        with far:
            far.send(content)
            if close:
                far.shutdown(socket.SHUT_RDWR)
            run_until(loop, lambda: client.known)
        assert client.granted is None
        assert near.fileno() == -1
        assert len(client.errors) == 1
        return str(client.errors[0])

    def test_garbage(self, loop: Loop) -> None:
        for content in (
            b"SSH-2.0-OpenSSH\r\n",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"\xff" * 9000,
        ):
            assert self.fails(loop, content) == "the peer does not speak fastmtcp"

    @pytest.mark.usefixtures("hasty")
    def test_a_silent_server(self, loop: Loop) -> None:
        assert self.fails(loop, b"") == "no answer to the handshake"

    def test_a_server_that_hangs_up(self, loop: Loop) -> None:
        text = "the peer closed the connection during the handshake"
        assert self.fails(loop, b"", close=True) == text

    def test_a_connection_that_is_dead_already(self, loop: Loop) -> None:
        near, far = tcp_pair()
        near.setblocking(False)
        abort(far)
        client = ClientSide(loop, near)
        run_until(loop, lambda: client.known)
        turn(loop)
        assert len(client.errors) == 1
        assert near.fileno() == -1


def test_cancel_tells_nobody(loop: Loop) -> None:
    client, server = both(loop)
    client.handshake.cancel()
    client.handshake.cancel()
    server.handshake.cancel()
    # Whoever gets the descriptor's number next must get events.
    assert not loop._handlers
    turn(loop, 5)
    assert not client.known
    assert not server.over
    assert client.sock.fileno() == server.sock.fileno() == -1


def test_refuse_says_why_and_closes(loop: Loop) -> None:
    near, far = tcp_pair()
    loop.watch(far.fileno(), lambda mask: None)
    refuse(loop, far, RefusedError(RefuseCode.DRAINING, "shutting down"))
    assert far.fileno() == -1
    with near, pytest.raises(RefusedError, match="shutting down") as caught:
        ClientHandshake(KEY, b"n" * NONCE_SIZE, 0).feed(read_all(near))
    assert caught.value.code is RefuseCode.DRAINING


def test_the_role_is_in_the_first_message(loop: Loop) -> None:
    near, far = tcp_pair()
    near.setblocking(False)
    server = ServerSide(loop, far)
    granted: list[ClientHandshake] = []
    role = Role.UP | Role.BACKUP
    ClientSocketHandshake(
        loop, near, KEY, 3, None, lambda _sock, done: granted.append(done), lambda _e: None, role
    )
    run_until(loop, lambda: granted)
    assert server.proved is not None
    assert server.proved.request is not None
    assert server.proved.request.role == int(role) == int(granted[0].role)
    near.close()
    far.close()


@pytest.mark.parametrize("read_before", [0, 1, 40, None])
def test_bytes_that_were_there_before_count(loop: Loop, read_before: int | None) -> None:
    """Whoever had the socket before may have read some, or have been told of them."""
    near, far = tcp_pair()
    loop.watch(near.fileno(), lambda _mask: None)
    server = ServerHandshake(KEY, os.urandom(NONCE_SIZE))
    greeting = server.feed(ClientHandshake(KEY, os.urandom(NONCE_SIZE), 3).hello)
    far.sendall(greeting)
    turn(loop, 5)
    count = len(greeting) if read_before is None else read_before
    early = near.recv(count) if count else b""
    near.setblocking(False)
    errors: list[PeerError] = []
    handshake = ClientSocketHandshake(
        loop, near, KEY, 3, None, lambda _sock, _done: None, errors.append, early=early
    )
    turn(loop, 5)
    # Both the HELLO and the answer to the greeting have been sent.
    far.settimeout(WAIT)
    said = far.recv(4096)
    assert len(said) > len(ClientHandshake(KEY, os.urandom(NONCE_SIZE), 3).hello)
    assert not errors
    handshake.cancel()
    far.close()


@pytest.mark.parametrize("may", [True, False])
def test_it_is_asked_once_before_the_proof(loop: Loop, may: bool) -> None:
    near, far = tcp_pair()
    near.setblocking(False)
    server = ServerSide(loop, far)
    asked: list[bool] = []
    granted: list[ClientHandshake] = []
    errors: list[PeerError] = []

    def may_go_on() -> bool:
        asked.append(server.proved is None)
        return may

    ClientSocketHandshake(
        loop,
        near,
        KEY,
        3,
        None,
        lambda _sock, done: granted.append(done),
        errors.append,
        may_go_on=may_go_on,
    )
    run_until(loop, lambda: granted or errors)
    assert asked == [True]
    assert bool(granted) is may
    if not may:
        assert isinstance(errors[0], SupersededError)
        run_until(loop, lambda: server.over)
        assert server.proved is None
    near.close()
    far.close()
