"""What makes a subflow suspect and what does not, what is replaced, and what is sent twice."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import KIB, Limits
from fastmtcp.engine.scheduling import watch
from fastmtcp.engine.scheduling.lanes import Lanes
from fastmtcp.engine.scheduling.watch import REPLACE_AFTER, STALL, UNDELIVERED
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.guard import PERIOD
from fastmtcp.engine.subflows.subflow import Cause, Subflow

from tests.unit.wire import START, collect, frames_of, sample

NOW = START


def idle(number: int = 1) -> Subflow:
    """One with nothing on its way."""
    return Subflow(number, NOW)


def silent(rtt: float = 0.25) -> Subflow:
    """One whose bytes nobody has acknowledged since NOW."""
    made = Subflow(0, NOW)
    made.speed.rtt = rtt
    made.count_sent(100, NOW)
    return made


def busy(progress_at: float) -> Subflow:
    """One with bytes on their way, of which some were acknowledged at that time."""
    made = Subflow(1, NOW)
    made.count_sent(100, progress_at)
    return made


def suspect(cause: Cause = Cause.KERNEL, since: float = NOW) -> Subflow:
    made = Subflow(2, NOW)
    made.become_suspect(cause, since)
    return made


def stalled(one: Subflow, *others: Subflow, at: float) -> bool:
    return watch.is_stalled(one, [one, *others], NOW + at)


def test_the_numbers_are_those_of_the_documents() -> None:
    assert (STALL, UNDELIVERED, REPLACE_AFTER, watch.SAMPLE_EVERY) == (0.2, 0.4, 3.0, 0.02)


class TestStalled:
    @pytest.mark.parametrize(
        ("rtt", "at", "expected"),
        [
            (0.25, 0.74, False),
            (0.25, 0.75, True),
            (0.01, 0.19, False),
            (0.01, 0.21, True),
        ],
    )
    def test_after_three_round_trips_or_a_moment(
        self, rtt: float, at: float, expected: bool
    ) -> None:
        assert stalled(silent(rtt), idle(), at=at) is expected

    def test_one_with_nothing_on_its_way_is_not(self) -> None:
        assert not stalled(idle(0), idle(), at=100)

    @pytest.mark.parametrize(("window", "expected"), [(0, False), (1, True), (-1, True)])
    def test_a_closed_window_is_no_fault_of_the_path(self, window: int, expected: bool) -> None:
        one = silent()
        one.peer_window = window
        assert stalled(one, idle(), at=1) is expected

    def test_alone_there_is_nothing_better(self) -> None:
        assert not stalled(silent(), at=100)
        waiting = silent()
        waiting.progress_at = NOW + 1
        assert not stalled(waiting, silent(), at=1)

    def test_another_that_makes_progress_works(self) -> None:
        assert stalled(silent(), busy(NOW + 0.86), at=1)
        assert not stalled(silent(), busy(NOW + 0.84), at=1)
        assert not stalled(silent(), busy(NOW + 0.875), at=1.025)

    def test_a_witness_far_away_is_heard_once_in_a_round_trip(self) -> None:
        for at, expected in ((0.41, True), (0.39, False)):
            far = busy(NOW + at)
            far.speed.rtt = 0.6
            assert stalled(silent(), far, at=1) is expected

    def test_one_that_is_suspect_itself_is_no_witness(self) -> None:
        assert not stalled(silent(), suspect(), at=1)
        gone = idle()
        gone.end()
        assert not stalled(silent(), gone, at=1)

    def test_one_that_retires_is(self) -> None:
        leaving = idle()
        leaving.retire()
        assert stalled(silent(), leaving, at=1)

    def test_when_all_are_silent_none_is_suspect(self) -> None:
        """The peer is busy, or everything is down: nothing is given up."""
        everyone = [Subflow(number, NOW) for number in range(4)]
        for one in everyone:
            one.count_sent(100, NOW)
        assert not any(watch.is_stalled(one, everyone, NOW + 60) for one in everyone)


def unread(rtt: float = 0.01, *, usual: float = 0.01, at: float = NOW) -> Subflow:
    """One of which the peer has read nothing since `at`; reports take `usual`."""
    made = Subflow(0, NOW)
    made.speed.rtt = rtt
    made.delivery.rtt = usual
    made.delivery.sent(100, at)
    return made


def undelivered(one: Subflow, *others: Subflow, at: float) -> bool:
    return watch.is_undelivered(one, [one, *others], NOW + at)


class TestUndelivered:
    @pytest.mark.parametrize(
        ("rtt", "usual", "at"), [(0.01, 0.01, 0.4), (0.25, 0.01, 0.75), (0.01, 0.25, 0.65)]
    )
    def test_after_what_is_usual(self, rtt: float, usual: float, at: float) -> None:
        for late, expected in ((-0.01, False), (0.01, True)):
            read = unread(at=NOW + at - 0.1)
            assert undelivered(unread(rtt, usual=usual), read, at=at + late) is expected

    def test_to_the_moment(self) -> None:
        assert undelivered(unread(0.25), unread(at=NOW + 0.75), at=0.75)

    def test_one_that_is_read_is_not(self) -> None:
        assert not undelivered(idle(0), unread(at=NOW + 10), at=10)

    def test_the_peer_must_read_from_another(self) -> None:
        assert not undelivered(unread(), at=1)
        assert not undelivered(unread(), idle(), at=1)
        assert undelivered(unread(), unread(at=NOW + 0.86), at=1)
        assert not undelivered(unread(), unread(at=NOW + 0.84), at=1)
        assert not undelivered(unread(), unread(at=NOW + 0.875), at=1.025)
        quiet = Subflow(1, NOW + 1)
        assert not undelivered(unread(), quiet, at=1)


class TestUpdate:
    def test_nothing_is_suspected_that_gets_on(self) -> None:
        one, other = Subflow(0, NOW), Subflow(1, NOW)
        for step in range(1, 200):
            at = NOW + step * 0.25
            one.count_sent(1000, at)
            assert not watch.update(one, sample(unacked=10, acked=step), [one, other], at)
        assert one.stalls == 0
        assert not one.suspect

    def test_silence_makes_suspect_and_progress_clears(self) -> None:
        one, other = silent(), idle()
        both = [one, other]
        assert not watch.update(one, sample(unacked=100), both, NOW + 0.5)
        assert watch.update(one, sample(unacked=100), both, NOW + 1)
        assert (one.suspect, one.cause, one.suspect_since) == (True, Cause.KERNEL, NOW + 1)
        assert not watch.update(one, sample(unacked=100), both, NOW + 2)
        assert watch.update(one, sample(unacked=50, acked=50), both, NOW + 3)
        assert not one.suspect

    def test_what_nobody_reads_makes_suspect(self) -> None:
        one = unread()
        other = unread(at=NOW + 0.9)
        assert watch.update(one, sample(), [one, other], NOW + 1)
        assert (one.suspect, one.cause) == (True, Cause.DELIVERY)

    def test_a_closed_window_makes_none_suspect(self) -> None:
        one = silent()
        blocked = sample(unacked=100, peer_window=0)
        assert not watch.update(one, blocked, [one, idle()], NOW + 60)
        assert not one.suspect


class TestReplaced:
    def replaced(self, one: Subflow, *others: Subflow, at: float = 10) -> bool:
        return watch.is_to_be_replaced(one, [one, *others], NOW + at)

    def test_after_a_while(self) -> None:
        assert not self.replaced(suspect(), idle(), at=2.99)
        assert self.replaced(suspect(), idle(), at=3)
        assert self.replaced(suspect(Cause.DELIVERY), idle())

    def test_not_one_that_works(self) -> None:
        assert not self.replaced(idle(0), idle())

    def test_not_one_that_only_the_peer_suspects(self) -> None:
        assert not self.replaced(suspect(Cause.PEER), idle())

    def test_not_all_at_once(self) -> None:
        assert not self.replaced(suspect(), suspect())


class TestJudge:
    def lanes(self, *rates: float) -> tuple[Lanes, list[Subflow]]:
        everyone = [Subflow(number, NOW) for number in range(len(rates))]
        for one, rate in zip(everyone, rates, strict=True):
            one.speed.rate = rate
        lanes = Lanes()
        lanes.refresh(everyone)
        return lanes, everyone

    @pytest.mark.parametrize(("brought", "aside"), [(749_999, True), (750_001, False)])
    def test_its_cost_is_what_the_others_could_have_carried(
        self, brought: int, aside: bool
    ) -> None:
        lanes, (one, *others) = self.lanes(5e6, 2e6, 1e6)
        one.guard.blame(0.5)
        one.through = brought
        assert watch.judge(lanes, [one, *others], NOW + PERIOD) is aside
        assert one.guard.aside is aside
        assert not any(other.guard.aside for other in others)

    def test_one_that_is_aside_is_no_part_of_the_rate(self) -> None:
        lanes, (one, other) = self.lanes(5e6, 1e6)
        one.guard.aside = True
        one.guard.until = NOW + PERIOD
        lanes.refresh([one, other])
        assert lanes.bulk == [other]
        assert watch.judge(lanes, [one, other], NOW + PERIOD)
        assert not one.guard.aside


class HeldUp:
    """A stream that can send nothing new until the range on `holder` is acknowledged."""

    def __init__(self, size: int = 56 * KIB) -> None:
        self.session = Session(opener=True, limits=Limits(), now=NOW, peer_floor=64 * KIB)
        self.holder = self.session.attach(0, NOW)
        self.other = self.session.attach(1, NOW)
        self.lanes = self.session._lanes
        self.stream: Stream = self.session.open(NOW)
        self.stream.write(bytes(size))
        self.session.pull(self.holder, NOW)
        self.stream.send.on_ack(0, 64 * KIB)
        for one, rtt in ((self.holder, 0.25), (self.other, 0.5)):
            one.speed.rtt = rtt
            one.speed.rate = 64.0 * KIB
            one.speed.sent_since = 0
        self.other.speed.chunk = 16 * KIB
        self.other.ready = True

    def rescue(self, at: float, elapsed: float = 0.02) -> list[tuple[Subflow, Stream, int, int]]:
        return watch.rescue(self.lanes, elapsed, NOW + at)


class TestRescue:
    def test_goes_where_it_is_clearly_sooner(self) -> None:
        """There it takes 0.25 s to arrive behind what is queued and 0.25 s to be sent; here as
        long as it has taken already."""
        held = HeldUp()
        assert held.rescue(0.71) == []
        assert held.rescue(0.72) == [(held.holder, held.stream, 0, 16 * KIB)]

    def test_at_most_once_in_a_round_trip(self) -> None:
        held = HeldUp()
        assert held.rescue(1)
        assert held.rescue(1.49) == []
        assert held.rescue(1.5)
        held.other.speed.rtt = 0.001
        assert held.rescue(1.515) == []
        assert held.rescue(1.525)

    def test_no_more_than_the_range(self) -> None:
        held = HeldUp()
        held.other.speed.chunk = 256 * KIB
        held.other.speed.rate = 1e9
        ((_, _, start, stop),) = held.rescue(3)
        assert (start, stop) == (0, 56 * KIB)

    @pytest.mark.parametrize(("rate", "at"), [(64.0 * KIB, 0.714), (0.0, 0.38)])
    def test_a_rate_that_nobody_knows_is_taken_for_the_holders(
        self, rate: float, at: float
    ) -> None:
        held = HeldUp()
        held.other.speed.rate = 0.0
        held.holder.speed.rate = rate
        assert held.rescue(at - 0.005) == []
        assert held.rescue(at + 0.005)

    def test_the_rate_of_the_one_it_goes_to_counts(self) -> None:
        held = HeldUp()
        held.other.speed.rate = 1e9
        assert held.rescue(0.35) == []
        assert held.rescue(0.37)

    def test_only_the_lowest_range(self) -> None:
        held = HeldUp()
        held.stream.send.acked = -1
        held.holder.inflight.clear()
        held.holder.inflight.add(held.stream, 100, 200)
        assert held.rescue(9) == []
        held.stream.send.on_ack(100, 64 * KIB)
        ((_, _, start, stop),) = held.rescue(9)
        assert (start, stop) == (100, 200)

    def test_nothing_while_there_is_new_to_send(self) -> None:
        held = HeldUp()
        held.stream.write(b"new")
        assert held.rescue(9) == []

    def test_nothing_when_all_is_acknowledged(self) -> None:
        held = HeldUp()
        held.stream.send.on_ack(56 * KIB, 64 * KIB)
        assert held.rescue(9) == []

    def test_nothing_without_another_that_is_ready(self) -> None:
        held = HeldUp()
        held.other.ready = False
        held.holder.ready = True
        assert held.rescue(9) == []

    def test_who_blocks_a_stream_is_blamed(self) -> None:
        held = HeldUp()
        held.rescue(0.1, 0.03)
        held.rescue(0.2, 0.04)
        assert held.holder.guard._blocked == pytest.approx(0.07)
        assert held.other.guard._blocked == 0

    def test_the_end_of_a_stream_is_nobodys_fault(self) -> None:
        held = HeldUp(20 * KIB)
        assert held.rescue(9)
        assert held.holder.guard._blocked == 0

    def test_one_that_carries_nothing_does_not_hide_the_next(self) -> None:
        held = HeldUp()
        free = held.session.attach(2, NOW)
        held.session.subflows.pop(0)
        held.session.subflows[0] = held.holder
        held.lanes.refresh([held.other, free, held.holder])
        assert held.rescue(9)
        first = HeldUp()
        second = first.session.open(NOW)
        second.write(bytes(60 * KIB))
        first.session.pull(first.other, NOW)
        first.other.inflight.clear()
        first.session.pull(first.holder, NOW)
        first.lanes.refresh([first.other, first.holder])
        assert first.rescue(9)


def test_the_guard_is_asked_in_every_round() -> None:
    """A session sets aside what costs more than it brings, and takes it back."""
    session = Session(opener=True, limits=Limits(), now=NOW)
    one, other = session.attach(0, NOW), session.attach(1, NOW)
    other.speed.rate = 1e6
    one.guard.blame(1.0)
    session.rescue(NOW + PERIOD)
    assert one.guard.aside
    assert session._lanes.bulk == [other]
    session.rescue(NOW + PERIOD + 4)
    assert not one.guard.aside
    assert session._lanes.bulk == [one, other]


def test_the_peer_is_told_of_a_suspect_and_of_nothing_else() -> None:
    session = Session(opener=True, limits=Limits(), now=NOW)
    one, other = session.attach(0, NOW), session.attach(1, NOW)
    one.ready = other.ready = True
    one.count_sent(100, NOW)
    assert not session.on_sample(one, sample(unacked=100), NOW + 0.5)
    assert frames_of(collect(session, NOW + 0.5)) == []
    assert not session.on_sample(one, sample(unacked=100), NOW + 1)
    told = [type(frame).__name__ for frame, _ in frames_of(collect(session, NOW + 1))]
    assert told == ["Stalled"]
    assert session.on_sample(one, sample(unacked=100), NOW + 4)
