"""A session whose peer sends what costs much beside one that does honest work, in one worker."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from functools import partial

import pytest
from fastmtcp.config.limits import ServerLimits
from fastmtcp.driver.turn import Turn
from fastmtcp.engine.limits import OPEN_WORK, TURN_CHUNKS, TURN_WORK, Limits
from fastmtcp.engine.streams.send_buffer import Buffer
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.errors import SessionCode
from fastmtcp.engine.wire.frames import Ack, Blocked, Data, Gone, Open, Ping, Reset

from tests.io.joined import Joined, Side
from tests.io.net import Background, data, read_exactly, tcp_pair
from tests.unit.wire import pack

FLOODS: dict[str, Callable[[int], bytes]] = {
    "PING": lambda number: pack(Ping(number)),
    "single bytes": lambda number: pack(Data(0, number, False), b"x"),
    "the same byte": lambda _number: pack(Data(0, 0, False), b"x"),
    "ACK": lambda _number: pack(Ack(0, 0, 1 << 20)),
    "BLOCKED": lambda number: pack(Blocked(0, number)),
    "RESET": lambda number: pack(Reset(number, 0)),
    "GONE": lambda _number: pack(Gone(99)),
    "OPEN and RESET": lambda n: pack(Open(n, 0, False)) + pack(Reset(n, 0)),
}


class Hostile(Side):
    """The server's end of a session with three subflows, each with a thread that floods it."""

    def __init__(
        self, joined: Joined, flood: Callable[[int], bytes], turn: Turn | None = None
    ) -> None:
        super().__init__(joined.loop, ServerLimits(opens_per_second=0), opener=False, turn=turn)
        self.work: dict[float, int] = {}
        """What was done in each turn of the loop."""
        self.handled = [0, 0, 0]
        self._receive = self.session.receive
        self.session.receive = self._count  # type: ignore[method-assign]
        self.on_opened = lambda _stream: None
        self._near = []
        for number in range(3):
            near, far = tcp_pair()
            self._near.append(near)
            self.attach(far, number)
        wires = [b"".join(map(flood, range(n, 60_000, 3))) for n in range(3)]
        self.size = max(map(len, wires))
        self.floods = [Background(self._flood, *one) for one in zip(self._near, wires, strict=True)]
        self.drains = [Background(self._drain, near) for near in self._near]

    def close(self) -> None:
        self.driver.end(SessionCode.NORMAL, "the test is over")
        for work in (*self.floods, *self.drains):
            work.result()
        for near in self._near:
            near.close()

    def _count(self, subflow: Subflow, view: memoryview, now: float, work: int = 0) -> int:
        taken = self._receive(subflow, view, now, work)
        self.work[now] = self.work.get(now, 0) + work - self.session.work_left
        self.handled[subflow.subflow_id] += taken
        return taken

    def _flood(self, near: socket.socket, wire: bytes) -> None:
        with contextlib.suppress(OSError):
            near.sendall(wire)

    def _drain(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while near.recv(65536):
                pass


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_gets_its_share_of_a_turn_and_no_more(flood: Callable[[int], bytes]) -> None:
    content = data(200_000)
    with Joined() as joined:
        hostile = Hostile(joined, flood)
        application, target = joined.pair()

        def work() -> None:
            for _ in range(5):
                application.sendall(content)
                assert read_exactly(target, len(content)) == content

        joined.run(Background(work))
        joined.until(
            lambda: hostile.ended or sum(hostile.handled) > 2 * hostile.size,
            "most of the flood is handled",
        )
        # The last frame of a turn may be one that costs more.
        assert max(hostile.work.values()) <= TURN_WORK + OPEN_WORK
        if not hostile.ended:
            assert min(hostile.handled) * 4 > max(hostile.handled)
        hostile.close()
        assert not joined.server.ended


def test_many_sessions_of_a_client_get_one_share_of_a_turn() -> None:
    content = data(200_000)
    with Joined() as joined:
        turn = Turn(joined.loop)
        crowd = [Hostile(joined, FLOODS["PING"], turn) for _ in range(4)]
        application, target = joined.pair()

        def work() -> None:
            for _ in range(5):
                application.sendall(content)
                assert read_exactly(target, len(content)) == content

        joined.run(Background(work))
        joined.until(
            lambda: all(sum(one.handled) > 2 * one.size for one in crowd),
            "most of the floods is handled",
        )
        together: dict[float, int] = {}
        for one in crowd:
            for now, count in one.work.items():
                together[now] = together.get(now, 0) + count
        assert max(together.values()) <= TURN_WORK
        # Nor does what was read and waits grow with their number.
        sockets = [sock for one in crowd for sock in one.driver.sockets.values()]
        waiting = [len(sock.rest) for sock in sockets if sock.rest is not None]
        assert turn.rests == len(waiting)
        for one in crowd:
            one.close()
        assert turn.rests == 0
        assert not joined.server.ended


def test_what_was_read_and_waits_is_little_and_is_counted() -> None:
    with Joined() as joined:
        hostile = Hostile(joined, FLOODS["PING"])
        most = 0

        def look() -> bool:
            sockets = hostile.driver.sockets.values()
            rests = sorted(len(sock.rest) for sock in sockets if sock.rest is not None)
            unread = sum(subflow.unread for subflow in hostile.session.subflows.values())
            assert sum(rests) == unread
            # The first one read before it was known that it is a flood.
            assert sum(rests[:-1]) <= 2 * 16 * 1024
            nonlocal most
            most = max(most, len(rests))
            return sum(hostile.handled) > 2 * hostile.size

        joined.until(look, "most of the flood is handled")
        assert most > 1
        hostile.close()


def test_what_goes_out_to_many_sessions_is_one_share_of_a_turn() -> None:
    """A client that downloads in all of them must not keep the worker from everybody else."""
    with Joined(subflows=0) as joined:
        turn = Turn(joined.loop)
        sides = [Side(joined.loop, Limits(), opener=False, turn=turn) for _ in range(3)]
        sent: dict[float, list[int]] = {}
        drains = []
        for number, side in enumerate(sides):
            near, far = tcp_pair()
            near.sendall(b"".join(pack(Open(n, 64 * 1024, False)) for n in range(100)))
            side.attach(far, 0)
            pull = side.session.pull

            def count(
                subflow: Subflow, now: float, number: int = number, pull: Pull = pull
            ) -> tuple[list[Buffer], int]:
                buffers, size = pull(subflow, now)
                sent.setdefault(now, []).append(number)
                return buffers, size

            side.session.pull = count  # type: ignore[method-assign]
            joined.until(partial(_has_all, side))
            drains.append((near, Background(_read, near)))
        for side in sides:
            for stream in side.opened:
                stream.write(bytes(64 * 1024))
            side.driver.progress()
        joined.until(lambda: all(_is_sent(side) for side in sides), "all of it is sent")
        assert max(map(len, sent.values())) <= TURN_CHUNKS
        assert {number for numbers in sent.values() for number in numbers} == {0, 1, 2}
        for side in sides:
            side.driver.end(SessionCode.NORMAL, "the test is over")
        for near, drain in drains:
            drain.result()
            near.close()


Pull = Callable[[Subflow, float], tuple[list[Buffer], int]]


def _read(near: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while near.recv(1 << 16):
            pass


def _has_all(side: Side) -> bool:
    return len(side.opened) == 100


def _is_sent(side: Side) -> bool:
    return all(stream.send.backlog == 0 for stream in side.opened)
