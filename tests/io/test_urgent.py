"""Urgent data (MSG_OOB): one byte more, in its place, and what lies behind it does not wait."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest
from fastmtcp.endpoint import Endpoint
from fastmtcp.io.dialer import Dial
from fastmtcp.io.listener import Listener
from fastmtcp.io.loop import Loop
from fastmtcp.io.resolver import Resolver

from tests.io.joined import Joined
from tests.io.net import WAIT, run_until, turn

SAID = b"aaa!bbb"


def shout(sock: socket.socket) -> None:
    """Something urgent in the middle."""
    sock.send(b"aaa")
    sock.send(b"!", socket.MSG_OOB)
    sock.send(b"bbb")


Ends = tuple[socket.socket, socket.socket]


def accepted(loop: Loop, family: socket.AddressFamily, where: Path) -> Ends:
    """The two ends of a connection that a Listener has accepted, ours first."""
    listening = socket.socket(family)
    listening.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(where))
    listening.setblocking(False)
    found: list[socket.socket] = []
    listener = Listener(loop, listening, lambda sock, _: found.append(sock))
    ours = socket.socket(family)
    ours.settimeout(WAIT)
    ours.connect(listening.getsockname())
    run_until(loop, lambda: found)
    listener.close()
    return ours, found[0]


def dialed(loop: Loop) -> Ends:
    """The two ends of a connection that a Dial has made, ours first."""
    resolver = Resolver(loop)
    found: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        where = Endpoint("127.0.0.1", listening.getsockname()[1])
        Dial(loop, resolver, where, WAIT, found.append, lambda *_: None)
        run_until(loop, lambda: found)
        ours, _ = listening.accept()
    ours.settimeout(WAIT)
    resolver.close()
    return ours, found[0]


def hear(loop: Loop, sock: socket.socket, size: int) -> bytes:
    heard = bytearray()
    sock.setblocking(False)

    def look() -> bool:
        with contextlib.suppress(BlockingIOError):
            heard.extend(sock.recv(100))
        return len(heard) >= size

    run_until(loop, look, f"what lies behind {bytes(heard)!r} arrives")
    return bytes(heard)


@pytest.mark.parametrize("how", ["accepted", "dialed", "unix"])
def test_an_application_or_a_target_that_is_urgent(how: str, tmp_path: Path) -> None:
    with Joined() as joined:
        loop = joined.loop
        if how == "dialed":
            ours, theirs = dialed(loop)
        else:
            family = socket.AF_UNIX if how == "unix" else socket.AF_INET
            ours, theirs = accepted(loop, family, tmp_path / "socket")
        with ours:
            stream = joined.client.session.open(loop.now)
            joined.client.driver.add_relay(theirs, stream)
            stream.announce()
            joined.client.driver.progress()
            target = joined.target()
            turn(loop, 5)
            for _ in range(3):
                try:
                    shout(ours)
                except OSError:
                    assert how == "unix"
                    return  # a kernel without MSG_OOB there
                assert hear(loop, target, len(SAID)) == SAID
