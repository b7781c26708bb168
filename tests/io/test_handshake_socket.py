"""Handshakes on real sockets: success, and every way to fail, cheaply and in time."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from fastmtcp.engine.subflows.role import Role
from fastmtcp.errors import PeerError
from fastmtcp.io.dialogue import Dialogue
from fastmtcp.io.loop import Loop
from fastmtcp.security import handshake_socket
from fastmtcp.security.handshake import (
    MAX_MESSAGE,
    NONCE_SIZE,
    PREAMBLE_SIZE,
    ClientHandshake,
    Hello,
    RefuseCode,
    RefusedError,
    ServerHandshake,
    clear_refusal,
    pack,
)
from fastmtcp.security.handshake_socket import (
    ClientSocketHandshake,
    SupersededError,
    refuse,
)
from fastmtcp.security.identity import UNNAMED

from tests.io.net import WAIT, abort, read_all, run_until, tcp_pair, turn
from tests.io.sides import CLIENTS, GRANT, KEY, NEW, OTHER_KEY, ClientSide, ServerSide, both


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short time-out, so that the test need not wait for the real one."""
    monkeypatch.setattr(handshake_socket, "HANDSHAKE_TIMEOUT", 0.1)


def test_both_sides_agree_and_keep_their_sockets(loop: Loop) -> None:
    client, server = both(loop)
    run_until(loop, lambda: client.known)
    assert client.granted is not None
    assert client.granted.grant == GRANT
    assert server.proved is not None
    with client.sock, server.sock:
        server.sock.send(b"on it goes")
        client.sock.settimeout(WAIT)
        assert client.sock.recv(100) == b"on it goes"


def test_first_frames_behind_the_welcome_are_kept(loop: Loop) -> None:
    near, far = tcp_pair()
    near.setblocking(False)
    client = ClientSide(loop, near)
    far.settimeout(WAIT)
    server = ServerHandshake(CLIENTS, os.urandom(NONCE_SIZE), NEW)
    far.sendall(server.feed(far.recv(4096)[PREAMBLE_SIZE:]))
    turn(loop)
    run_until(loop, lambda: far.recv(1, socket.MSG_PEEK))
    server.feed(far.recv(4096))
    far.sendall(server.welcome(GRANT) + b"early")
    run_until(loop, lambda: client.known)
    assert client.granted is not None
    assert client.granted.early == b"early"
    near.close()
    far.close()


def test_a_wrong_key_is_told_to_the_client(loop: Loop) -> None:
    client, server = both(loop, OTHER_KEY)
    run_until(loop, lambda: client.known)
    (error,) = client.errors
    assert isinstance(error, RefusedError)
    assert error.code is RefuseCode.KEY
    assert server.proved is None
    assert client.sock.fileno() == server.sock.fileno() == -1
    (refused,) = server.errors
    assert str(refused) == str(error)


def test_another_version_is_told_to_the_client(loop: Loop) -> None:
    near, far = tcp_pair()
    server = ServerSide(loop, far)
    with near:
        near.sendall(NEW.encode() + pack(Hello([99], UNNAMED, b"n" * NONCE_SIZE, b"", 0)))
        run_until(loop, lambda: server.over)
        with pytest.raises(RefusedError, match="protocol version"):
            ClientHandshake(KEY, b"n" * NONCE_SIZE, 0).feed(read_all(near))
    assert "protocol version" in str(server.errors[0])


class TestWhoeverDoesNotSpeakProperly:
    def drops(self, loop: Loop, content: bytes) -> str:
        """The server closes the connection without a word; returns the reason it has."""
        near, far = tcp_pair()
        server = ServerSide(loop, far)
        with near:
            near.sendall(content)
            run_until(loop, lambda: server.over)
            assert far.fileno() == -1
            assert server.proved is None
            with contextlib.suppress(ConnectionResetError):  # when it did not read all of it
                assert near.recv(100) == b""
            return str(server.errors[0])

    def test_garbage(self, loop: Loop) -> None:
        start = NEW.encode()
        garbage = b"\0\5\xc1\xc1\xc1\xc1\xc1"
        for content in (b"GET / HTTP/1.0\r\n\r\n" * 100, b"\0\0", garbage, start + garbage):
            self.drops(loop, content)

    def test_more_than_a_message_may_have(self, loop: Loop) -> None:
        self.drops(loop, NEW.encode() + struct.pack("!H", MAX_MESSAGE + 1))
        self.drops(loop, NEW.encode() + b"\xff" * 1_000_000)

    @pytest.mark.usefixtures("hasty")
    def test_a_silent_client_is_dropped_in_time(self, loop: Loop) -> None:
        for content in (b"", NEW.encode()[:5], NEW.encode()):
            assert self.drops(loop, content) == "no answer to the handshake"

    @pytest.mark.usefixtures("hasty")
    def test_drip_feeding_gains_no_time(self, loop: Loop) -> None:
        near, far = tcp_pair()
        server = ServerSide(loop, far)
        hello = NEW.encode() + ClientHandshake(KEY, b"n" * NONCE_SIZE, 0).hello
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


def test_one_that_says_much_lets_others_have_their_turn(loop: Loop) -> None:
    near, far = tcp_pair()
    heard: dict[float, int] = {}

    class Listener(Dialogue):
        def _take(self, data: bytes) -> None:
            heard[loop.now] = heard.get(loop.now, 0) + len(data)

    listener = Listener(loop, far, loop.clock() + WAIT)
    with near:
        near.sendall(bytes(100_000))
        run_until(loop, lambda: sum(heard.values()) == 100_000)
        assert max(heard.values()) <= 2 * 4 * 4096
        listener.cancel()


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
    refuse(loop, far, None, clear_refusal(RefusedError(RefuseCode.DRAINING, "shutting down")))
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
        loop,
        near,
        KEY,
        3,
        None,
        lambda _sock, _tls, done: granted.append(done),
        lambda _e: None,
        role,
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
    server = ServerHandshake(CLIENTS, os.urandom(NONCE_SIZE), NEW)
    greeting = server.feed(ClientHandshake(KEY, os.urandom(NONCE_SIZE), 3).hello)
    far.sendall(greeting)
    turn(loop, 5)
    count = len(greeting) if read_before is None else read_before
    early = near.recv(count) if count else b""
    near.setblocking(False)
    errors: list[PeerError] = []
    handshake = ClientSocketHandshake(
        loop, near, KEY, 3, None, lambda _sock, _tls, _done: None, errors.append, early=early
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
        lambda _sock, _tls, done: granted.append(done),
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
