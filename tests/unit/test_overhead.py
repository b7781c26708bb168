"""What is counted of a worker's memory is what it really takes, whatever a client does."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from fastmtcp.engine.limits import (
    MIB,
    RANGE_COST,
    RECORD_COST,
    SESSION_COST,
    SUBFLOW_COST,
    TLS_COST,
    Limits,
)
from fastmtcp.engine.quota import ClientQuota, Memory
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.send_buffer import BUFFER_COST
from fastmtcp.engine.wire.errors import RemoteError, ResetCode, SessionCode
from fastmtcp.engine.wire.frames import Ack, Data, Open, Reset

from tests.unit.wire import START, collect, events, feed, pack, sample

LIMITS = Limits(opens_per_second=0)


class Worker:
    """Sessions of one client."""

    def __init__(self, size: int, limits: Limits = LIMITS) -> None:
        self.memory = Memory(size)
        self.client = ClientQuota()
        self.limits = limits
        self.sessions: list[Session] = []

    @property
    def counted(self) -> int:
        return self.memory.size - self.memory.free

    def session(self) -> Session:
        session = Session(
            opener=False, limits=self.limits, now=START, memory=self.memory, client=self.client
        )
        session.attach(0, START).ready = True
        self.sessions.append(session)
        return session


def nothing(session: Session) -> None:
    """Not even that is for nothing."""


def subflows(session: Session) -> None:
    for number in range(1, 100):
        session.attach(number, START)


def streams(session: Session) -> None:
    feed(session, b"".join(pack(Open(n, 1, False, f"{n}" * 50, "x")) for n in range(500)))
    events(session)
    collect(session, START)


def gaps(session: Session) -> None:
    feed(session, pack(Open(0, 1, False)))
    for offset in range(1, 8000, 2):
        feed(session, pack(Data(0, offset, False), b"x"))


def skipped_ids(session: Session) -> None:
    feed(session, pack(Open(10_000, 1, False)))
    session.on_time(START + 1)


def resets_that_nobody_confirms(session: Session) -> None:
    for number in range(1000):
        feed(session, pack(Open(number, 1, False)))
        session.streams[number].reset(ResetCode.REFUSED)
        events(session)
        if number % 100 == 0:
            collect(session, START)
    session.on_time(START + 1)


def answers_that_nobody_takes(session: Session) -> None:
    feed(session, pack(Open(0, 1, False)))
    feed(session, pack(Reset(0, 0)))
    session.subflows[0].ready = False
    for number in range(1000):
        feed(session, pack(Open(number + 1, 1, False)) + pack(Reset(number + 1, 0)))
        events(session)
    session.on_time(START + 1)


def credit_in_crumbs(session: Session) -> None:
    feed(session, pack(Open(0, 0, False)) + pack(Open(1, 0, False)))
    for number in range(2):
        session.streams[number].write(bytes(10_000))
    for limit in range(1, 1000):
        for number in range(2):
            feed(session, pack(Ack(number, 0, limit)))
            collect(session, START)
    session.on_sample(session.subflows[0], sample(), START + 1)


ATTACKS: list[Callable[[Session], None]] = [
    nothing,
    subflows,
    streams,
    gaps,
    skipped_ids,
    resets_that_nobody_confirms,
    answers_that_nobody_takes,
    credit_in_crumbs,
]


@pytest.fixture
def traced() -> Iterator[Callable[[], int]]:
    def taken() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    yield taken
    tracemalloc.stop()


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_counted_is_no_less_than_what_it_takes(
    attack: Callable[[Session], None], traced: Callable[[], int]
) -> None:
    worker = Worker(1 << 40)
    attack(worker.session())
    before, counted = traced(), worker.counted
    for _ in range(3):
        attack(worker.session())
    assert traced() - before <= worker.counted - counted
    for session in worker.sessions:
        session.end(SessionCode.NORMAL, "")
    assert worker.counted == 0


@pytest.mark.parametrize("attack", [streams, gaps, skipped_ids])
def test_a_worker_holds_no_more_than_it_may(
    attack: Callable[[Session], None], traced: Callable[[], int]
) -> None:
    """However many sessions a client begins: those that are too much end, one for each read."""
    size = 4 * MIB
    alone = Worker(1 << 40)
    attack(alone.session())
    worker = Worker(size)
    before = traced()
    ended = 0
    for _ in range(16):
        attack(worker.session())
        alive = [session for session in worker.sessions if session.ended is None]
        ended += len(worker.sessions) - len(alive)
        worker.sessions = alive
        assert worker.counted <= size
        assert traced() - before <= size
    assert ended
    assert worker.sessions


def test_the_connections_of_a_client_are_counted_over_all_its_sessions() -> None:
    worker = Worker(1 << 40)
    worker.client.max_subflows = 4
    first, second = worker.session(), worker.session()
    first.attach(1, START)
    third = first.attach(2, START, cost=TLS_COST)
    assert worker.counted == 2 * SESSION_COST + 4 * SUBFLOW_COST + TLS_COST
    for session in (first, second):
        assert not session.may_attach(9)
    with pytest.raises(RemoteError) as caught:
        second.attach(9, START)
    assert caught.value.code is SessionCode.LIMIT
    first.detach(third, START)
    assert worker.counted == 2 * SESSION_COST + 3 * SUBFLOW_COST
    assert second.may_attach(9)
    stranger = Worker(1 << 40).session()
    assert stranger.may_attach(9)


def test_what_a_subflow_carries_and_has_not_sent_is_counted_with_each_sample() -> None:
    worker = Worker(1 << 40)
    session = worker.session()
    feed(session, pack(Open(0, 100, False)))
    session.streams[0].write(bytes(50))
    before = worker.counted
    collect(session, START)
    subflow = session.subflows[0]
    subflow.unsent = 1000
    session.on_sample(subflow, sample(), START)
    assert worker.counted == before + RANGE_COST + 1000
    subflow.unsent = 0
    feed(session, pack(Ack(0, 50, 100)))
    subflow.inflight.has_unacked()
    session.on_sample(subflow, sample(), START)
    assert worker.counted == before - 50 - BUFFER_COST


def test_what_is_remembered_of_streams_is_counted_once_a_second_and_in_a_flood() -> None:
    worker = Worker(1 << 40)
    session = worker.session()
    feed(session, pack(Open(100, 1, False)))
    before = worker.counted
    session.on_time(START + 1)
    # Those that were skipped; the ACK is no record.
    assert worker.counted == before + 100 * RECORD_COST
    wire = b"".join(pack(Reset(number, 0)) for number in range(10))
    session.receive(session.subflows[0], memoryview(wire), START + 1, work=10)
    assert worker.counted == before + (90 + 10) * RECORD_COST
    session.end(SessionCode.NORMAL, "")
    assert worker.counted == 0
