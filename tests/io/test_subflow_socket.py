"""The socket of a subflow: what is given to it leaves, however many pieces it is in."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from fastmtcp.driver import subflow as subflow_module
from fastmtcp.driver.subflow import SubflowSocket
from fastmtcp.driver.turn import Turn
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.io.buffers import Buffer, BufferPool
from fastmtcp.io.loop import Loop
from fastmtcp.io.tcp import read_urgent_in_line

from tests.io.net import Background, data, fill, is_reset, read_exactly, run_until, tcp_pair, turn


class Calls(socket.socket):
    """Notes how many buffers each call gets; takes `most` bytes of them at a time."""

    buffers: list[int]
    most: int | None = None

    def sendmsg(self, buffers: Iterable[Any], *more: Any) -> int:
        given = list(buffers)
        self.buffers.append(len(given))
        if self.most is not None:
            given = [b"".join(given)[: self.most]]
        return super().sendmsg(given, *more)


class Sending:
    """A subflow's socket whose session only listens."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.peer, theirs = tcp_pair()
        self.sock = Calls(fileno=theirs.detach())
        self.sock.setblocking(False)
        self.sock.buffers = []
        self.lost_by: list[str] = []
        self.heard = bytearray()
        self.subflow = Subflow(0, self.loop.now)
        turn_of = Turn(self.loop)
        pool = BufferPool()
        self.socket = SubflowSocket(
            self.loop, pool, turn_of, self, self.sock, self.subflow, "peer", None
        )
        turn(self.loop)

    def received(self, _source: SubflowSocket, view: memoryview) -> None:
        self.heard += view

    def lost(self, _source: SubflowSocket, reason: str) -> None:
        self.lost_by.append(reason)

    def progress(self) -> None:
        pass


@pytest.fixture
def sending() -> Iterator[Sending]:
    sending = Sending()
    yield sending
    sending.socket.close(reset=True)
    sending.peer.close()
    sending.loop.close()


def crumbs(content: bytes, size: int) -> list[Buffer]:
    return [content[at : at + size] for at in range(0, len(content), size)]


def test_more_pieces_than_a_call_takes_are_no_full_socket(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subflow_module, "_SMALL", 0)
    content = data(90_000)
    sending.socket.send(crumbs(content, 30), len(content))
    assert sending.sock.buffers == [1000, 1000, 1000]
    assert sending.subflow.ready
    assert read_exactly(sending.peer, len(content)) == content


def test_more_pieces_than_a_call_takes_leave_when_the_socket_takes_bytes_again(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subflow_module, "_SMALL", 0)
    before = fill(sending.sock)
    content = data(90_000)
    sending.socket.send(crumbs(content, 30), len(content))
    assert not sending.subflow.ready
    reader = Background(read_exactly, sending.peer, before + len(content))
    run_until(sending.loop, lambda: sending.subflow.ready, "the socket takes the rest")
    run_until(sending.loop, lambda: reader.done)
    assert reader.result()[before:] == content


def test_a_part_of_the_pieces_of_a_call_is_a_full_socket(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subflow_module, "_SMALL", 0)
    sending.sock.most = 20_000
    content = data(90_000)
    sending.socket.send(crumbs(content, 30), len(content))
    # 667 of the first 1000: its edge is still to come, and nothing is tried before.
    assert sending.sock.buffers == [1000]
    assert not sending.subflow.ready


def test_many_small_pieces_are_joined_and_large_ones_are_not(sending: Sending) -> None:
    content = data(120_000)
    pieces = [*crumbs(content[:50_000], 20), content[50_000:90_000], *crumbs(content[90_000:], 30)]
    sending.socket.send(pieces, len(content))
    assert sending.sock.buffers == [3]
    few = crumbs(content[:600], 20)
    sending.socket.send(few, 600)
    assert sending.sock.buffers == [3, len(few)]
    assert read_exactly(sending.peer, len(content) + 600) == content + content[:600]


def test_a_goodbye_that_is_cut_is_no_clean_end(sending: Sending) -> None:
    sending.sock.most = 3
    sending.socket.goodbye(b"goodbye")
    run_until(sending.loop, lambda: is_reset(sending.peer), "the peer is reset")


def test_a_byte_that_somebody_makes_urgent_is_one_of_ours(sending: Sending) -> None:
    """Only the peer or a box on the way can, as we send none."""
    read_urgent_in_line(sending.sock)
    for _ in range(3):
        sending.heard.clear()
        sending.peer.send(b"aaa")
        sending.peer.send(b"!", socket.MSG_OOB)
        sending.peer.send(b"bbb")
        run_until(sending.loop, lambda: len(sending.heard) >= 7, "all of it arrives")
        assert sending.heard == b"aaa!bbb"
