"""Which stream sends next, and which subflow."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import (
    BULK_TURN,
    FIRST_BYTES,
    IDLE_AFTER,
    KIB,
    MAX_CHUNK,
    MAX_LOWAT,
    MIB,
    MIN_CHUNK,
    MIN_LOWAT,
    SMALL_STREAM,
    Limits,
)
from fastmtcp.engine.scheduling.lanes import Lanes
from fastmtcp.engine.scheduling.scheduler import Scheduler
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import NO_SUBFLOW, HeldUp, Stream
from fastmtcp.engine.subflows.rate import Sample
from fastmtcp.engine.subflows.subflow import Subflow

from tests.unit.wire import collect

NOW = 1_000_000.0


class Streams:
    def __init__(self) -> None:
        self.session = Session(opener=True, limits=Limits(), now=NOW, peer_floor=8 * MIB)
        self.scheduler = Scheduler()

    def stream(self, *, bulk: bool = False, size: int = 1 * MIB) -> Stream:
        """A stream with bytes to send, in the scheduler's queue."""
        stream = self.session.open(NOW)
        stream.send.pull(1)
        stream.send.write(bytes(size))
        if bulk:
            stream.count_sent(SMALL_STREAM, NOW)
        self.scheduler.add(stream, NOW)
        return stream

    def turn(self, now: float = NOW) -> Stream | None:
        """One chunk of whoever is next."""
        stream = self.scheduler.next()
        if stream is not None:
            stream.send.pull(1 * KIB)
            self.scheduler.add(stream, now)
        return stream


def sample(
    rate: float, *, rtt: float = 0.02, not_sent: int = 0, app_limited: bool = False
) -> Sample:
    return Sample(
        rtt=rtt,
        delivery_rate=rate,
        app_limited=app_limited,
        not_sent=not_sent,
        unacked=0,
        bytes_acked=0,
    )


def test_bulk_streams_take_turns() -> None:
    streams = Streams()
    bulk = [streams.stream(bulk=True) for _ in range(3)]
    assert [streams.turn() for _ in range(6)] == bulk + bulk


def test_small_streams_go_before_bulk() -> None:
    streams = Streams()
    streams.stream(bulk=True)
    small = [streams.stream(), streams.stream()]
    assert [streams.turn() for _ in range(4)] == small + small


def test_small_streams_do_not_starve_bulk() -> None:
    streams = Streams()
    bulk = [streams.stream(bulk=True), streams.stream(bulk=True)]
    for _ in range(3):
        streams.stream()
    turns = [streams.turn() for _ in range(6 * (BULK_TURN + 1))]
    assert [turn for turn in turns if turn in bulk] == bulk * 3


def test_first_bytes_go_before_those_of_small_streams_and_do_not_starve_them() -> None:
    streams = Streams()
    small = streams.stream()
    streams.turn()
    small.queue = None
    scheduler = streams.scheduler = Scheduler()
    small.count_sent(FIRST_BYTES, NOW)
    scheduler.add(small, NOW)
    first = [streams.stream() for _ in range(2)]
    turns = [streams.turn() for _ in range(2 * (BULK_TURN + 1))]
    assert turns == 2 * [*first * (BULK_TURN // 2), small]


def test_a_subflow_that_is_too_slow_for_small_streams_gets_none_along_with_bulk() -> None:
    streams = Streams()
    bulk = streams.stream(bulk=True)
    small = streams.stream()
    assert streams.scheduler.next(small=False) is bulk
    assert streams.scheduler.next(small=False) is None
    assert streams.scheduler.next(bulk=False) is small


def test_small_streams_have_small_turns_while_others_wait() -> None:
    session = Session(opener=True, limits=Limits(), now=NOW, peer_floor=8 * MIB)
    subflow = session.attach(0, NOW)
    subflow.on_sample(sample(100e6), NOW)
    first, second = session.open(NOW), session.open(NOW)
    for stream in (first, second):
        stream.write(bytes(1 * MIB))
    session.pull(subflow, NOW)
    assert [(stream, stop - start) for stream, start, stop in subflow.inflight][:2] == [
        (first, FIRST_BYTES),
        (second, FIRST_BYTES),
    ]


def far_and_near() -> tuple[Session, Subflow, Subflow]:
    """A session with a far subflow that is ready and a near one that is not."""
    session = Session(opener=True, limits=Limits(), now=NOW, peer_floor=256 * KIB)
    far, near = session.attach(0, NOW), session.attach(1, NOW)
    for subflow, rtt in ((far, 0.6), (near, 0.02)):
        for round_ in range(5):  # its rate is settled
            subflow.on_sample(sample(4e6, rtt=rtt), NOW + round_)
    near.progress_at = NOW + 5
    far.ready = True
    session.retire(session.attach(2, NOW))  # sorts the lanes anew
    return session, far, near


def test_a_small_stream_does_not_ride_along_on_a_subflow_that_was_refused_for_it() -> None:
    session, far, near = far_and_near()
    session.open(NOW).write(bytes(1000))
    now = NOW + 5
    assert session.pick(now) is None
    assert session.pull(far, now) == ([], 0)
    near.ready = True
    assert session.pick(now) is near
    assert session.pull(near, now)[1] > 1000


def test_a_lost_range_keeps_off_the_subflow_that_holds_it_and_off_no_other_range() -> None:
    session, far, near = far_and_near()
    now = NOW + 5
    near.ready = True
    stream = session.open(NOW)
    stream.write(bytes(200_000))
    stream.send.pull(1)
    stream.send.pull(100_000)
    stream.count_sent(SMALL_STREAM, now)
    lanes = Lanes()
    lanes.refresh([far, near])
    stream.send.on_lost(0, 50_000)
    assert lanes.pick_bulk(stream, 1, now) is near
    # Nothing but the far one is left for it, which the gate refuses otherwise.
    stream.held_up = HeldUp(0, 50_000, near.subflow_id)
    assert stream.avoid == near.subflow_id
    assert lanes.pick_bulk(stream, 1, now) is far
    # A part of the range still keeps off, anything more does not.
    stream.send.lost.take(20_000)
    assert stream.avoid == near.subflow_id
    stream.send.on_lost(60_000, 70_000)
    stream.send.lost.take(30_000)
    assert stream.avoid == NO_SUBFLOW
    stream.send.lost.take(10_000)
    assert stream.avoid == NO_SUBFLOW


class TestWhatKeepsOffASubflow:
    """The range is on its way there already, and late: a copy on the same one brings nothing."""

    def lost(self, count: int) -> tuple[Session, list[Stream]]:
        """Streams whose bytes were lost. Those of the last one are held up on subflow 1."""
        session = Session(opener=True, limits=Limits(), now=NOW, peer_floor=8 * MIB)
        for number in range(3):
            session.attach(number, NOW).ready = True
        streams = [session.open(NOW) for _ in range(count)]
        for stream in streams:
            stream.write(bytes(1000))
        session.pull(session.subflows[0], NOW)
        session.detach(session.subflows[0], NOW)
        collect(session, NOW + 1)  # what is said again, too
        session.subflows[1].inflight.clear()
        session.subflows[2].inflight.clear()
        for stream in streams:
            stream.send.on_lost(0, 1000)
            session._scheduler.promote(stream)
        streams[-1].held_up = HeldUp(0, 1000, 1)
        return session, streams

    def carried(self, session: Session, number: int) -> list[Stream]:
        subflow = session.subflows[number]
        subflow.inflight.clear()
        session.pull(subflow, NOW + 1)
        return [stream for stream, _, _ in subflow.inflight]

    def test_is_left_out_of_a_batch_of_others(self) -> None:
        session, (first, last) = self.lost(2)
        assert self.carried(session, 1) == [first]
        assert session.pick(NOW + 1) is session.subflows[2]
        assert self.carried(session, 2) == [last]

    def test_is_left_out_where_the_subflow_sends_for_another_reason(self) -> None:
        session, (last,) = self.lost(1)
        small = session.open(NOW)
        small.write(b"abc")
        bulk = session.open(NOW)
        bulk.count_sent(SMALL_STREAM, NOW + 1)
        bulk.write(bytes(1000))
        # Bulk data does not overtake it: the other subflow would take both.
        assert self.carried(session, 1) == [small]
        assert self.carried(session, 2) == [last, bulk]

    def test_goes_there_all_the_same_if_there_is_no_other(self) -> None:
        session, (last,) = self.lost(1)
        session.detach(session.subflows[2], NOW + 1)
        assert last.avoid == 1
        assert session.pick(NOW + 1) is session.subflows[1]
        assert self.carried(session, 1) == [last]


def test_what_was_to_be_avoided_is_forgotten_when_a_subflow_is_lost() -> None:
    session = Session(opener=True, limits=Limits(), now=NOW, peer_floor=8 * MIB)
    first, second = session.attach(0, NOW), session.attach(1, NOW)
    stream = session.open(NOW)
    stream.write(bytes(50_000))
    session.pull(first, NOW)
    stream.held_up = HeldUp(0, 50_000, second.subflow_id)
    session.detach(first, NOW)
    assert stream.send.lost
    assert stream.avoid == NO_SUBFLOW


def test_lost_ranges_go_first() -> None:
    streams = Streams()
    bulk = streams.stream(bulk=True)
    small = streams.stream()
    assert streams.turn() is small
    bulk.send.pull(10)
    bulk.send.on_lost(0, 10)
    streams.scheduler.promote(bulk)
    streams.scheduler.promote(bulk)
    assert streams.turn() is bulk
    assert not bulk.send.lost
    assert streams.turn() is small


def test_a_stream_waits_in_one_queue_once() -> None:
    streams = Streams()
    stream = streams.stream(size=10)
    for _ in range(3):
        streams.scheduler.add(stream, NOW)
    assert streams.turn() is stream
    assert streams.turn() is None
    assert not streams.scheduler


def test_a_stream_that_was_dropped_or_has_nothing_left_is_passed_over() -> None:
    streams = Streams()
    gone, empty, last = (streams.stream(size=10) for _ in range(3))
    gone.send.drop()
    empty.send.pull(10)
    assert streams.turn() is last
    assert streams.turn() is None
    streams.scheduler.add(empty, NOW)
    streams.scheduler.add(gone, NOW)
    assert not gone.send.on_lost(0, 10)
    assert not streams.scheduler


def test_a_stream_is_small_until_it_sent_much_and_again_after_a_rest() -> None:
    stream = Streams().stream()
    stream.count_sent(SMALL_STREAM - 1, NOW)
    assert stream.is_small(NOW)
    stream.count_sent(1, NOW)
    assert not stream.is_small(NOW)
    assert not stream.is_small(NOW + IDLE_AFTER)
    assert stream.is_small(NOW + IDLE_AFTER + 0.01)
    stream.count_sent(SMALL_STREAM, NOW + 1)
    assert not stream.is_small(NOW + 1)
    stream.count_sent(1, NOW + 3)
    assert stream.is_small(NOW + 3)


@pytest.mark.parametrize(
    ("rate", "chunk", "lowat"),
    [
        (1.0, MIN_CHUNK, MIN_LOWAT),
        (20e6, 200_000, 300_000),
        (10e9, MAX_CHUNK, MAX_LOWAT),
    ],
)
def test_chunk_and_low_water_mark_follow_the_rate(rate: float, chunk: int, lowat: int) -> None:
    subflow = Subflow(0, NOW)
    subflow.on_sample(sample(rate), NOW)
    assert (subflow.speed.rate, subflow.speed.chunk, subflow.speed.lowat) == (rate, chunk, lowat)


def test_the_rate_is_the_largest_of_the_last_second() -> None:
    subflow = Subflow(0, NOW)
    for after, rate, seen in ((0, 9e6, 9e6), (0.2, 5e6, 9e6), (0.9, 4e6, 9e6), (1.1, 3e6, 5e6)):
        subflow.on_sample(sample(rate), NOW + after)
        assert subflow.speed.rate == seen


def test_application_limited_samples_count_only_if_they_are_higher() -> None:
    subflow = Subflow(0, NOW)
    subflow.on_sample(sample(9e6), NOW)
    subflow.on_sample(sample(1e6, app_limited=True), NOW + 2)
    assert subflow.speed.rate == 9e6
    subflow.on_sample(sample(10e6, app_limited=True), NOW + 2)
    assert subflow.speed.rate == 10e6


def test_pick_takes_the_subflow_with_the_earliest_arrival() -> None:
    session = Session(opener=True, limits=Limits(), now=NOW, peer_floor=8 * MIB)
    near, far, closed = (session.attach(number, NOW) for number in range(3))
    near.on_sample(sample(1e6, rtt=0.01), NOW)
    far.on_sample(sample(10e6, rtt=0.05), NOW)
    closed.on_sample(sample(100e6, rtt=0.001), NOW)
    near.ready = far.ready = True
    stream = session.open(NOW)
    stream.write(bytes(1 * MIB))
    assert session.pick(NOW) is near
    # What is queued delays what comes after it, until it has drained at the path's rate.
    session.pull(near, NOW)
    session.pull(near, NOW)
    assert near.speed.eta(NOW) == pytest.approx(0.005 + near.bytes_sent / 1e6)
    assert session.pick(NOW) is far
    assert session.pick(NOW + 1) is near
    near.ready = far.ready = False
    assert session.pick(NOW) is None


def test_bytes_that_the_kernel_holds_delay_an_arrival() -> None:
    subflow = Subflow(0, NOW)
    subflow.on_sample(sample(1e6, rtt=0.04, not_sent=100_000), NOW)
    assert subflow.speed.eta(NOW) == pytest.approx(0.02 + 0.1)
    assert subflow.speed.eta(NOW + 0.05) == pytest.approx(0.02 + 0.05)
    assert subflow.speed.eta(NOW + 5) == pytest.approx(0.02)


def test_carrying_forgets_what_is_acknowledged() -> None:
    streams = Streams()
    stream = streams.stream()
    subflow = Subflow(0, NOW)
    assert not subflow.inflight.has_unacked()
    for start in range(0, 50, 10):
        stream.send.pull(10)
        subflow.inflight.add(stream, start, start + 10)
    stream.send.on_ack(40, 0)
    assert subflow.inflight.has_unacked()
    assert len(subflow.inflight) == 1
    stream.send.on_ack(50, 0)
    assert not subflow.inflight.has_unacked()
    assert not subflow.inflight
