"""A session whose peer sends what costs much beside one that does honest work, in one worker."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import pytest
from fastmtcp.config.limits import ServerLimits
from fastmtcp.engine.limits import OPEN_WORK, TURN_WORK
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

    def __init__(self, joined: Joined, flood: Callable[[int], bytes]) -> None:
        super().__init__(joined.loop, ServerLimits(opens_per_second=0), opener=False)
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
