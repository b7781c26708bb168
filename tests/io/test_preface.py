"""What comes before the bytes of a stream, on a real socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from fastmtcp.errors import PeerError
from fastmtcp.io.loop import Loop
from fastmtcp.proxy import preface as preface_module
from fastmtcp.proxy.login import Login
from fastmtcp.proxy.preface import Preface
from fastmtcp.proxy.requests import ProxyRequest

from tests.io.net import WAIT, abort, is_reset, read_all, read_exactly, run_until, tcp_pair, turn


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    assert not loop._handlers, "a descriptor is still watched"
    loop.close()


class Side:
    def __init__(self, loop: Loop, login: Login | None = None, early: bytes = b"") -> None:
        self.loop = loop
        self.far, self.near = tcp_pair()
        self.request = ProxyRequest(login)
        self.done: list[bool] = []
        self.errors: list[PeerError] = []
        turn(loop, 1)
        self.preface = Preface(loop, self.near, self.request, self._done, self.errors.append, early)

    def _done(self) -> None:
        self.done.append(True)

    def until_known(self) -> None:
        run_until(self.loop, lambda: self.done or self.errors)

    def close(self) -> None:
        self.loop.unwatch(self.near.fileno())
        self.near.close()
        self.far.close()


def test_step_by_step_and_with_bytes_behind(loop: Loop) -> None:
    side = Side(loop)
    side.far.sendall(b"\x05")
    turn(loop, 3)
    side.far.sendall(b"\x01\x00")
    run_until(loop, lambda: side.far.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    assert read_exactly(side.far, 2) == b"\x05\x00"
    side.far.sendall(b"\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50first words")
    side.until_known()
    assert side.request.rest == b"first words"
    assert str(side.request.target) == "10.0.0.1:80"
    side.close()


def test_bytes_that_were_read_before(loop: Loop) -> None:
    side = Side(loop, early=b"\x05\x01")
    side.far.sendall(b"\x00\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50")
    side.until_known()
    assert side.done
    side.close()


def test_a_refusal_is_read_before_the_connection_ends(loop: Loop) -> None:
    """Bytes that we have not read would turn the close into a reset, which eats the answer."""
    side = Side(loop)
    side.far.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(50_000))
    side.until_known()
    assert "no request to a proxy" in str(side.errors[0])
    got: list[bytes] = []
    reading = threading.Thread(target=lambda: got.append(read_all(side.far)))
    reading.start()
    run_until(loop, lambda: got)
    reading.join(WAIT)
    assert got[0].startswith(b"HTTP/1.1 400 ")
    side.far.close()
    run_until(loop, lambda: side.near.fileno() < 0)


def test_who_sends_on_after_a_refusal_is_cut_off(loop: Loop) -> None:
    side = Side(loop)
    side.far.sendall(b"\x05\x01\x02")
    side.until_known()
    sent = 0
    side.far.setblocking(False)

    def flood() -> bool:
        nonlocal sent
        try:
            sent += side.far.send(bytes(1 << 16))
        except BlockingIOError:
            pass
        except OSError:
            return True
        return side.near.fileno() < 0

    run_until(loop, flood)
    run_until(loop, lambda: side.near.fileno() < 0)
    side.far.close()


def test_who_says_nothing_after_a_refusal_has_some_time(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preface_module, "_FAREWELL", 0.05)
    side = Side(loop)
    side.far.sendall(b"\x05\x01\x02")
    side.until_known()
    run_until(loop, lambda: side.near.fileno() < 0)
    assert read_all(side.far) == b"\x05\xff"
    side.far.close()


@pytest.mark.parametrize("said", [b"", b"\x05", b"CONNECT example.com:443 HTTP/1.1\r\n"])
def test_who_says_too_little_is_reset(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(preface_module, "PREFACE_TIMEOUT", 0.05)
    side = Side(loop)
    side.far.sendall(said)
    side.until_known()
    assert "not enough" in str(side.errors[0])
    run_until(loop, lambda: is_reset(side.far))
    side.far.close()


def test_who_goes_away(loop: Loop) -> None:
    side = Side(loop)
    side.far.close()
    side.until_known()
    assert "closed the connection" in str(side.errors[0])
    side = Side(loop)
    abort(side.far)
    side.until_known()
    assert side.near.fileno() < 0


def test_a_cancelled_one_says_nothing_more(loop: Loop) -> None:
    side = Side(loop)
    side.preface.cancel()
    assert side.near.fileno() < 0
    turn(loop, 5)
    assert not side.done
    assert not side.errors
    side.far.close()
