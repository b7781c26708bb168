from __future__ import annotations

import pytest
from fastmtcp.engine.limits import MIB, START_RATE, Limits
from fastmtcp.engine.scheduling.head_of_line import Gate
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.guard import PERIOD, Guard
from fastmtcp.engine.subflows.rate import Sample
from fastmtcp.engine.subflows.subflow import Subflow

FAST = 12_500_000.0
NOW = 1_000_000.0
OTHERS = FAST


def subflow(number: int, rate: float, rtt: float) -> Subflow:
    """One that has been measured: it had enough to send, and its rate does not grow any more."""
    made = Subflow(number, NOW)
    for step in range(1, 6):
        at = NOW + step * (rtt + 0.001)
        made.on_sample(sample(rate, rtt), at)
    return made


def sample(rate: float, rtt: float, *, app_limited: bool = False) -> Sample:
    return Sample(rtt, rate, app_limited, 0, 1, 0)


def stream(credit: int) -> Stream:
    session = Session(opener=True, limits=Limits(), now=NOW, peer_floor=credit, peer_streams=9)
    made = session.open(NOW)
    made.write(b"x" * 100)
    return made


def gate(*subflows: Subflow) -> Gate:
    made = Gate()
    made.update(subflows)
    return made


class TestGate:
    def test_equal_subflows_never_hold_each_other_up(self) -> None:
        four = [subflow(number, FAST, 0.2) for number in range(4)]
        made = gate(*four)
        assert all(made.is_open(one, stream(64 * 1024), 1, NOW + 2.0) for one in four)

    def test_a_slow_one_waits_for_credit(self) -> None:
        fast, slow = subflow(0, FAST, 0.02), subflow(1, FAST / 20, 0.3)
        made = gate(fast, slow)
        # Late by about 0.15 s, in which the fast one sends 1.9 MB.
        assert not made.is_open(slow, stream(1 * MIB), 1, NOW + 2.0)
        assert made.is_worthwhile(slow)
        assert made.is_open(slow, stream(4 * MIB), 1, NOW + 2.0)
        assert made.is_open(fast, stream(1), 1, NOW + 2.0)

    def test_streams_share_what_overtakes(self) -> None:
        fast, slow = subflow(0, FAST, 0.02), subflow(1, FAST / 20, 0.3)
        assert gate(fast, slow).is_open(slow, stream(1 * MIB), 4, NOW + 2.0)

    def test_one_that_brings_next_to_nothing_never_delays_the_rest(self) -> None:
        fast, slow = subflow(0, FAST, 0.02), subflow(1, FAST / 100, 2.0)
        made = gate(fast, slow)
        assert not made.is_open(slow, stream(40 * MIB), 1, NOW + 9.0)
        assert not made.is_worthwhile(slow)

    def test_the_last_bytes_do_not_go_where_they_would_be_late(self) -> None:
        fast, slow = subflow(0, FAST, 0.02), subflow(1, FAST / 20, 0.3)
        last = stream(40 * MIB)
        assert gate(fast, slow).is_open(slow, last, 1, NOW + 2.0)
        last.finish()
        assert not gate(fast, slow).is_open(slow, last, 1, NOW + 2.0)

    def test_one_nobody_has_measured_waits_beside_one_that_is(self) -> None:
        fast, new = subflow(0, FAST, 0.02), Subflow(1, NOW)
        assert not gate(fast, new).is_open(new, stream(40 * MIB), 1, NOW + 2.0)
        assert gate(new, Subflow(2, NOW)).is_open(new, stream(1 * MIB), 1, NOW + 2.0)

    def test_alone_there_is_nobody_to_hold_up(self) -> None:
        slow = subflow(0, 1000.0, 3.0)
        assert gate(slow).is_open(slow, stream(1), 1, NOW + 20.0)


class TestProbing:
    def test_a_rate_has_settled_when_it_grows_no_more(self) -> None:
        young = Subflow(0, NOW)
        rate, now = 10_000.0, NOW
        while rate < 1e6:
            young.on_sample(sample(rate, 0.1), now := now + 0.11)
            assert young.speed.may_probe(now)
            rate *= 2
        for _ in range(5):
            young.on_sample(sample(1e6, 0.1), now := now + 0.11)
        assert not young.speed.may_probe(now)
        # From time to time it is looked at again.
        assert young.speed.may_probe(now + 10)

    def test_one_that_copies_never_fill_is_taken_for_what_it_was_at_the_beginning(self) -> None:
        young = Subflow(0, NOW)
        young.on_sample(sample(1000.0, 0.001), NOW + 0.1)
        assert young.speed.rate == 1000.0
        assert young.speed.may_probe(NOW + 0.1)
        assert young.speed.may_probe(NOW + 0.5)
        assert not young.speed.may_probe(NOW + 0.7)
        assert young.speed.rate == START_RATE
        young.on_sample(sample(1000.0, 0.001), NOW + 2.0)
        assert young.speed.rate == 1000.0

    def test_what_the_application_limits_says_nothing(self) -> None:
        young = Subflow(0, NOW)
        for step in range(20):
            young.on_sample(sample(1000.0, 0.1, app_limited=True), NOW + step * 0.11)
        assert young.speed.rate == 0.0
        assert young.speed.may_probe(NOW + 3.0)


class TestGuard:
    def cost(self, guard: Guard, blocked: float, brought: int, now: float) -> bool:
        guard.blame(blocked)
        return guard.judge(brought, OTHERS, now)

    def test_one_that_costs_more_than_it_brings_is_set_aside_and_tried_again(self) -> None:
        guard = Guard(NOW)
        assert self.cost(guard, 1.0, 1 * MIB, NOW + PERIOD)
        assert guard.aside
        assert not guard.judge(1 * MIB, OTHERS, guard.until - 0.1)
        assert guard.judge(1 * MIB, OTHERS, guard.until)
        assert not guard.aside

    def test_longer_each_time(self) -> None:
        guard = Guard(NOW)
        now, last = NOW, 0.0
        for _ in range(8):
            now += PERIOD
            assert self.cost(guard, 1.0, 0, now)
            assert guard.until - now >= last
            last, now = guard.until - now, guard.until
            guard.judge(0, OTHERS, now)
        assert last == pytest.approx(64.0)

    def test_one_that_brings_more_stays(self) -> None:
        guard = Guard(NOW)
        assert not self.cost(guard, 0.5, 8 * MIB, NOW + PERIOD)

    def test_a_moment_now_and_then_is_forgiven(self) -> None:
        guard = Guard(NOW)
        for step in range(1, 10):
            assert not self.cost(guard, 0.1, 0, NOW + step * PERIOD)

    def test_without_others_there_is_no_cost(self) -> None:
        guard = Guard(NOW)
        guard.blame(2.0)
        assert not guard.judge(0, 0.0, NOW + PERIOD)
