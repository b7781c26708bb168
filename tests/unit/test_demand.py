"""Data that waits for subflows: who notices, and who is told."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import KIB
from fastmtcp.engine.scheduling.demand import PERIOD, Demand
from fastmtcp.engine.scheduling.watch import SAMPLE_EVERY
from fastmtcp.engine.session import Session
from fastmtcp.engine.wire.frames import Busy

from tests.unit.wire import START, Pair, collect, feed, frames_of, pack


def looks(demand: Demand, pattern: list[bool], start: float = START) -> list[float]:
    """When it says that there is demand, with a sample every SAMPLE_EVERY seconds."""
    return [
        start + n * SAMPLE_EVERY
        for n, waits in enumerate(pattern)
        if demand.sample(waits, start + n * SAMPLE_EVERY)
    ]


def test_data_that_always_waits_is_said_once_in_a_period() -> None:
    demand = Demand()
    said = looks(demand, [True] * 101)
    assert 6 <= len(said) <= 2.0 / PERIOD
    assert said[0] - START <= PERIOD + 2 * SAMPLE_EVERY
    assert demand.at == said[-1]


@pytest.mark.parametrize(
    "pattern", [[False], [True, False], [True] * 2 + [False] * 3], ids=["never", "half", "bursts"]
)
def test_data_that_waits_now_and_then_is_no_demand(pattern: list[bool]) -> None:
    demand = Demand()
    assert looks(demand, pattern * (100 // len(pattern))) == []
    assert demand.at < 0


def test_a_pause_is_no_demand() -> None:
    demand = Demand()
    looks(demand, [True] * 10)
    assert not demand.sample(True, START + 60)
    assert looks(demand, [True] * 20, START + 60)


def saturate(pair: Pair, session: Session, *, waits: bool) -> list[Busy]:
    """Half a second in which bulk is there, and the subflows are full or not; what was said."""
    ours, theirs = pair.open(b"x")
    stream = ours if session is pair.client else theirs
    stream.write(bytes(200 * KIB))
    pair.exchange()
    pair.take(theirs if session is pair.client else ours)
    pair.exchange()
    assert not stream.is_small(pair.now)
    for subflow in session.subflows.values():
        subflow.ready = not waits
    stream.write(bytes(30 * KIB))
    if not waits:
        pair.flush(session)
    for n in range(int(2 * PERIOD / SAMPLE_EVERY) + 2):
        session.watch_demand(pair.now + n * SAMPLE_EVERY)
    for subflow in session.subflows.values():
        subflow.ready = True
    frames = frames_of(collect(session, pair.now + 2 * PERIOD))
    return [frame for frame, _ in frames if isinstance(frame, Busy)]


def test_the_server_says_that_it_is_busy() -> None:
    pair = Pair()
    # However often it is so until a subflow takes it, it is one frame.
    assert saturate(pair, pair.server, waits=True) == [Busy()]


def test_the_client_knows_and_says_nothing() -> None:
    pair = Pair()
    assert saturate(pair, pair.client, waits=True) == []
    assert pair.client.demand.at > START


@pytest.mark.parametrize("side", ["client", "server"])
def test_nobody_is_busy_whose_subflows_take_all(side: str) -> None:
    pair = Pair()
    session = pair.client if side == "client" else pair.server
    assert saturate(pair, session, waits=False) == []
    assert session.demand.at < 0


def test_the_client_hears_of_it_and_the_server_does_not_mind() -> None:
    pair = Pair()
    assert pair.client.peer.demand_at < 0
    feed(pair.client, pack(Busy()), START + 3)
    assert pair.client.peer.demand_at == START + 3
    feed(pair.server, pack(Busy()), START + 3)
    assert pair.server.ended is None
