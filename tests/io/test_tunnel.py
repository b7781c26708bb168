"""The conversation with a proxy on a real socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from fastmtcp.config.path import Proxy
from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import PeerError
from fastmtcp.io.loop import Loop
from fastmtcp.proxy.tunnel import Tunnel
from fastmtcp.proxy.upstream import conversation

from tests.io.net import WAIT, abort, read_exactly, run_until, tcp_pair, turn

HTTP = Proxy("http", Endpoint("proxy", 8080))
SOCKS = Proxy("socks5", Endpoint("proxy", 1080))
TARGET = Endpoint("10.0.0.1", 80)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    assert not loop._handlers, "a descriptor is still watched"
    loop.close()


class Side:
    def __init__(self, loop: Loop, proxy: Proxy, timeout: float = 20.0) -> None:
        self.loop = loop
        self.far, self.near = tcp_pair()
        self.far.settimeout(WAIT)
        self.done: list[bytes] = []
        self.errors: list[PeerError] = []
        turn(loop, 1)
        self.tunnel = Tunnel(
            loop, self.near, conversation(proxy, TARGET), timeout, self._done, self.errors.append
        )

    def _done(self, sock: socket.socket, rest: bytes) -> None:
        assert sock is self.near
        self.done.append(rest)

    def until_known(self) -> None:
        run_until(self.loop, lambda: self.done or self.errors)

    def close(self) -> None:
        self.loop.unwatch(self.near.fileno())
        self.near.close()
        self.far.close()


def test_step_by_step_with_bytes_behind(loop: Loop) -> None:
    side = Side(loop, SOCKS)
    assert read_exactly(side.far, 3) == b"\x05\x01\x00"
    side.far.sendall(b"\x05")
    turn(loop, 3)
    side.far.sendall(b"\x00")
    run_until(loop, lambda: side.far.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    assert read_exactly(side.far, 10) == b"\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50"
    side.far.sendall(b"\x05\x00\x00\x01" + bytes(6) + b"first words")
    side.until_known()
    assert side.done == [b"first words"]
    side.close()


def test_what_comes_later_stays_in_the_socket(loop: Loop) -> None:
    side = Side(loop, HTTP)
    # More than is read at once: the rest is for the socket's next owner.
    side.far.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(100_000))
    side.until_known()
    side.near.setblocking(True)
    side.near.settimeout(WAIT)
    (rest,) = side.done
    assert rest + read_exactly(side.near, 100_000 - len(rest)) == bytes(100_000)
    side.close()


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("no", "it says 403 Forbidden"),
        ("garbage", "it is no HTTP proxy"),
        ("end", "it closed the connection"),
        ("reset", "Connection reset by peer"),
        ("silence", "it does not answer"),
    ],
)
def test_every_way_to_fail(loop: Loop, how: str, problem: str) -> None:
    side = Side(loop, HTTP, 0.1 if how == "silence" else 20.0)
    read_exactly(side.far, 20)
    if how == "no":
        side.far.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
    elif how == "garbage":
        side.far.sendall(b"220 smtp\r\n")
    elif how == "end":
        side.far.shutdown(socket.SHUT_WR)
    elif how == "reset":
        abort(side.far)
    side.until_known()
    assert [str(error) for error in side.errors] == [problem]
    turn(loop)
    assert len(side.errors) == 1
    assert side.near.fileno() == -1
    side.far.close()


def test_a_socket_that_is_dead_already(loop: Loop) -> None:
    far, near = tcp_pair()
    near.close()
    errors: list[PeerError] = []
    with socket.socket() as unconnected:
        unconnected.setblocking(False)
        Tunnel(
            loop, unconnected, conversation(HTTP, TARGET), 20, lambda _s, _r: None, errors.append
        )
        # Never from within the constructor: the caller does not know the tunnel yet.
        assert not errors
        run_until(loop, lambda: errors)
    far.close()


def test_cancel_tells_nobody(loop: Loop) -> None:
    side = Side(loop, HTTP, 0.05)
    side.tunnel.cancel()
    side.tunnel.cancel()
    assert side.near.fileno() == -1
    turn(loop, 5)
    assert not side.done
    assert not side.errors
    side.far.close()
