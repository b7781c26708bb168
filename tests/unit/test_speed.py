"""The formulas of a subflow: rate, arrival, probes, guard and gate, number by number."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import KIB, MIB, MIN_CHUNK, START_RATE, Limits
from fastmtcp.engine.scheduling.head_of_line import Gate
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.guard import PERIOD, Guard
from fastmtcp.engine.subflows.rate import Speed, reported
from fastmtcp.engine.subflows.subflow import Cause, Past, Subflow

from tests.unit.wire import START, sample

NOW = START
OTHERS = 1e6


class TestGuard:
    @pytest.mark.parametrize(
        ("blocked", "brought", "aside"),
        [
            # Twice what it brings is what the others could have carried.
            (0.5, 250_000, True),
            (0.5, 250_001, False),
            # A fifth of the time.
            (0.4, 0, True),
            (0.399, 0, False),
        ],
    )
    def test_sets_aside_what_costs_more_than_it_brings(
        self, blocked: float, brought: int, aside: bool
    ) -> None:
        guard = Guard(NOW)
        guard.blame(blocked / 2)
        guard.blame(blocked / 2)
        assert not guard.judge(brought, OTHERS, NOW + PERIOD - 0.01)
        assert guard.judge(brought, OTHERS, NOW + PERIOD) is aside
        assert guard.aside is aside

    def test_counts_from_the_last_look(self) -> None:
        guard = Guard(NOW)
        guard.blame(0.3)
        assert not guard.judge(1_000_000, OTHERS, NOW + 2)
        guard.blame(0.3)
        assert not guard.judge(1_000_000, OTHERS, NOW + 3.99)
        assert not guard.judge(1_000_000, OTHERS, NOW + 4)
        guard.blame(0.5)
        assert guard.judge(1_250_000, OTHERS, NOW + 6)

    def test_for_4_8_16_32_and_64_seconds(self) -> None:
        guard, now = Guard(NOW), NOW
        for expected in (4, 8, 16, 32, 64, 64):
            guard.blame(1.0)
            now += PERIOD
            assert guard.judge(0, OTHERS, now)
            assert guard.until == now + expected
            now = guard.until
            assert not guard.judge(0, OTHERS, now - 0.01)
            assert guard.aside
            assert guard.judge(0, OTHERS, now)
            assert not guard.aside

    @pytest.mark.parametrize(
        ("blocked", "brought", "expected"),
        [(0.0, 64 * KIB + 1, 4), (0.0, 64 * KIB, 8), (0.1, 1 * MIB, 8)],
    )
    def test_forgets_after_a_good_time(self, blocked: float, brought: int, expected: int) -> None:
        guard = Guard(NOW)
        guard.blame(1.0)
        assert guard.judge(0, OTHERS, NOW + 2)
        assert guard.judge(0, OTHERS, NOW + 6)
        guard.blame(blocked)
        assert not guard.judge(brought, OTHERS, NOW + 8)
        guard.blame(1.0)
        assert guard.judge(brought, OTHERS, NOW + 10)
        assert guard.until == NOW + 10 + expected

    def test_by_halves(self) -> None:
        guard, now = Guard(NOW), NOW
        for _ in range(3):
            guard.blame(1.0)
            now += PERIOD
            assert guard.judge(0, OTHERS, now)
            now = guard.until
            assert guard.judge(0, OTHERS, now)
        assert not guard.judge(1 * MIB, OTHERS, now + 2)
        guard.blame(1.0)
        assert guard.judge(1 * MIB, OTHERS, now + 4)
        assert guard.until == now + 4 + 16

    def test_never_less_than_4_seconds(self) -> None:
        guard = Guard(NOW)
        for step in range(1, 6):
            assert not guard.judge(step * MIB, OTHERS, NOW + 2 * step)
        guard.blame(1.0)
        assert guard.judge(5 * MIB, OTHERS, NOW + 12)
        assert guard.until == NOW + 16


def speed() -> Speed:
    return Subflow(0, NOW).speed


class TestArrival:
    def test_half_a_round_trip_behind_what_is_queued(self) -> None:
        one = speed()
        one.on_sample(sample(1e6, 0.25, not_sent=500_000), NOW)
        assert one.eta(NOW) == 0.5 + 0.125
        one.sent_since = 250_000
        assert one.eta(NOW) == 0.75 + 0.125
        assert one.eta(NOW + 0.5) == 0.25 + 0.125
        assert one.eta(NOW + 5) == 0.125

    def test_a_sample_knows_what_was_sent(self) -> None:
        one = speed()
        one.sent_since = 250_000
        one.on_sample(sample(1e6, 0.25), NOW + 1)
        assert one.eta(NOW + 1) == 0.125

    def test_before_anything_is_known(self) -> None:
        one = speed()
        assert one.eta(NOW) == pytest.approx(0.05)
        one.not_sent = int(START_RATE)
        assert one.eta(NOW) == pytest.approx(1.05)

    def test_all_that_a_subflow_carries(self) -> None:
        one = Subflow(0, NOW)
        one.on_sample(sample(1e6, 0.25, not_sent=500_000), NOW)
        assert one.drain_time(NOW) == 0.625 + 0.125
        assert one.drain_time(NOW + 2) == 0.125 + 2 - 0.125
        one.become_suspect(Cause.KERNEL, NOW)
        assert one.drain_time(NOW) == 60.0


class TestRate:
    def test_the_largest_of_a_second(self) -> None:
        one = speed()
        for at, rate, expected in (
            (0.0, 4e6, 4e6),
            (0.25, 3e6, 4e6),
            (0.5, 2e6, 4e6),
            (1.0, 1e6, 4e6),
            (1.125, 1e6, 3e6),
            (1.375, 1e6, 2e6),
            (1.5, 5e6, 5e6),
        ):
            one.on_sample(sample(rate), NOW + at)
            assert one.rate == expected

    def test_of_equal_rates_the_younger_is_remembered(self) -> None:
        one = speed()
        for at, rate in ((0.0, 2e6), (0.25, 3e6), (0.5, 1e6), (0.75, 2e6), (1.0, 3e6)):
            one.on_sample(sample(rate), NOW + at)
        assert one.rate == 3e6
        one.on_sample(sample(1e6), NOW + 1.5)
        assert one.rate == 3e6
        one.on_sample(sample(1e6), NOW + 2.125)
        assert one.rate == 1e6

    def test_a_limited_one_counts_against_the_rate_that_is_known(self) -> None:
        one = speed()
        one.on_sample(sample(1e8), NOW)
        one.on_sample(sample(9e7, app_limited=True), NOW + 0.5)
        one.on_sample(sample(1e6), NOW + 1.25)
        assert one.rate == 1e6

    def test_one_that_the_application_limits_counts_if_it_is_higher(self) -> None:
        one = speed()
        one.on_sample(sample(START_RATE, app_limited=True), NOW)
        assert one.rate == 0.0
        one.on_sample(sample(START_RATE + 1, app_limited=True), NOW)
        assert one.rate == START_RATE + 1
        one.on_sample(sample(START_RATE, app_limited=True), NOW + 1.5)
        assert one.rate == START_RATE + 1

    def test_what_the_peer_reports(self) -> None:
        one = Subflow(0, NOW)
        one.delivery.sent(1000, NOW)
        one.delivery.on_got(400, NOW + 0.5)
        found = reported(one.delivery)
        assert (found.rtt, found.delivery_rate) == (0.2, 800.0)
        assert (found.unacked, found.bytes_acked, found.not_sent) == (600, 400, 0)
        assert not found.app_limited
        one.delivery.on_got(1000, NOW + 1)
        assert reported(one.delivery).app_limited


class TestProbes:
    def settled(self) -> Speed:
        one = speed()
        for step in range(1, 5):
            assert one.may_probe(NOW + step * 0.25)
            one.on_sample(sample(1e7, 0.25), NOW + step * 0.25)
        return one

    def test_settled_after_three_rounds_without_growth(self) -> None:
        one = self.settled()
        assert not one.may_probe(NOW + 1)
        assert not one.may_probe(NOW + 10.99)
        assert one.may_probe(NOW + 11)
        assert one.may_probe(NOW + 12.5)
        assert not one.may_probe(NOW + 12.6)
        assert one.rate == 1e7

    @pytest.mark.parametrize(("factor", "grows"), [(1.25, True), (1.24, False)])
    def test_growth_is_a_quarter_more(self, factor: float, grows: bool) -> None:
        one = speed()
        for step in range(1, 4):
            one.on_sample(sample(1e6, 0.25), NOW + step * 0.25)
        one.on_sample(sample(1e6 * factor, 0.25), NOW + 1)
        assert one.may_probe(NOW + 1) is grows

    def test_a_round_is_a_round_trip_with_enough_to_send(self) -> None:
        one = speed()
        for step in range(1, 100):
            one.on_sample(sample(1e6, 0.25, app_limited=True), NOW + step * 0.25)
        one.on_sample(sample(1e6, 0.25), NOW + 30)
        for step in range(20):
            one.on_sample(sample(1e6, 0.25), NOW + 30 + step * 0.0125)
        assert one.may_probe(NOW + 30.25)
        for step in range(1, 4):
            one.on_sample(sample(1e6, 0.25), NOW + 30 + step * 0.25)
        assert not one.may_probe(NOW + 30.75)

    @pytest.mark.parametrize(("rtt", "until"), [(0.01, 0.5), (0.25, 1.5)])
    def test_copies_that_never_fill_it_end(self, rtt: float, until: float) -> None:
        one = speed()
        one.on_sample(sample(1000.0, rtt), NOW)
        assert one.may_probe(NOW)
        assert one.may_probe(NOW + until)
        assert one.rate == 1000.0
        assert not one.may_probe(NOW + until + 0.01)
        assert one.rate == START_RATE
        assert one.chunk == 64 * KIB

    def test_a_new_look_begins_at_nothing(self) -> None:
        one = self.settled()
        assert one.may_probe(NOW + 11)
        for step in range(1, 4):
            one.on_sample(sample(1e7, 0.25), NOW + 11 + step * 0.25)
            assert one.may_probe(NOW + 11 + step * 0.25)
        one.on_sample(sample(1e7, 0.25), NOW + 12)
        assert not one.may_probe(NOW + 12)


def stream(credit: int, *, size: int = 100, finished: bool = False) -> Stream:
    session = Session(opener=True, limits=Limits(), now=NOW, peer_floor=credit)
    made = session.open(NOW)
    made.send.pull(1)
    made.write(bytes(size))
    if finished:
        made.finish()
    return made


def known(number: int, rate: float, rtt: float) -> Subflow:
    made = Subflow(number, NOW)
    made.speed.rate, made.speed.rtt = rate, rtt
    made.speed.chunk, made.speed.lowat = 65_536, 0
    return made


class TestGate:
    """A fast one of 1 MB/s and 0.25 s; a slow one whose chunk of 64 KiB takes 1 s to be sent and
    0.5 s to arrive, while chunks of the fast one arrive after 0.125 s: it is overtaken by 1.375 MB.
    """

    FAST, SLOW = 1e6, 65_536.0
    OVERTAKES = 1_375_000

    def gate(self, slow_rtt: float = 1.0) -> tuple[Gate, Subflow]:
        slow = known(1, self.SLOW, slow_rtt)
        gate = Gate()
        gate.update([known(0, self.FAST, 0.25), slow])
        return gate, slow

    @pytest.mark.parametrize(("spare", "is_open"), [(0, True), (-1, False)])
    @pytest.mark.parametrize("streams", [1, 2, 5])
    def test_what_overtakes_must_fit_into_the_credit(
        self, streams: int, spare: int, is_open: bool
    ) -> None:
        gate, slow = self.gate()
        credit = self.OVERTAKES // streams + spare
        assert gate.is_open(slow, stream(credit), streams, NOW) is is_open

    def test_no_stream_counts_as_one(self) -> None:
        gate, slow = self.gate()
        assert gate.is_open(slow, stream(self.OVERTAKES), 0, NOW)

    @pytest.mark.parametrize(("spare", "is_open"), [(0, True), (-1, False)])
    def test_and_into_what_is_left(self, spare: int, is_open: bool) -> None:
        gate, slow = self.gate()
        last = stream(40 * MIB, size=self.OVERTAKES + spare, finished=True)
        assert gate.is_open(slow, last, 1, NOW) is is_open
        small = stream(self.OVERTAKES - 1, size=2 * self.OVERTAKES, finished=True)
        assert not gate.is_open(slow, small, 1, NOW)

    def test_what_is_queued_delays_it(self) -> None:
        gate, slow = self.gate()
        slow.speed.sent_since = 65_536
        assert not gate.is_open(slow, stream(self.OVERTAKES + 999_999), 1, NOW)
        assert gate.is_open(slow, stream(self.OVERTAKES + 1_000_000), 1, NOW)

    def test_what_usually_waits_in_the_others_counts(self) -> None:
        slow, fast = known(1, self.SLOW, 1.0), known(0, self.FAST, 0.25)
        fast.speed.lowat = 500_000
        gate = Gate()
        gate.update([fast, slow])
        assert not gate.is_open(slow, stream(self.OVERTAKES - 500_001), 1, NOW)
        assert gate.is_open(slow, stream(self.OVERTAKES - 500_000), 1, NOW)
        slow.speed.lowat = 100_000
        gate.update([fast, slow])
        assert gate.is_open(slow, stream(self.OVERTAKES - 500_000), 1, NOW)
        assert not gate.is_open(slow, stream(self.OVERTAKES - 500_001), 1, NOW)

    @pytest.mark.parametrize(("rtt", "is_open"), [(0.51, True), (0.53, False)])
    def test_one_about_as_long_as_the_others_passes(self, rtt: float, is_open: bool) -> None:
        gate, slow = self.gate(rtt)
        assert gate.is_open(slow, stream(1), 1, NOW) is is_open

    @pytest.mark.parametrize(("chunk", "is_open"), [(0, True), (16, True), (18, False)])
    def test_less_than_a_chunk_is_no_harm(self, chunk: int, is_open: bool) -> None:
        fast, long = known(0, 1e6, 0.25), known(1, 1e6, 0.55)
        long.speed.chunk = chunk * 1000 - 150_000 + (MIN_CHUNK - 16_384)
        gate = Gate()
        gate.update([fast, long])
        assert gate.is_open(long, stream(1), 1, NOW) is is_open

    @pytest.mark.parametrize(("rate", "worth"), [(20_000.0, True), (19_999.0, False)])
    def test_a_fiftieth_is_worth_waiting_for(self, rate: float, worth: bool) -> None:
        slow = known(1, rate, 1.0)
        gate = Gate()
        gate.update([known(0, 1e6, 0.25), slow])
        assert gate.is_worthwhile(slow) is worth
        assert gate.is_open(slow, stream(1 << 40), 1, NOW) is worth

    def test_one_that_nobody_has_measured(self) -> None:
        new = known(1, 0.0, 9.0)
        gate = Gate()
        gate.update([known(0, 1e6, 0.25), new])
        assert not gate.is_open(new, stream(1 << 40), 1, NOW)
        gate.update([known(0, 0.0, 0.25), new])
        assert gate.is_open(new, stream(1 << 40), 1, NOW)
        assert not gate.is_open(new, stream(1), 1, NOW)
        gate.update([new])
        assert gate.is_open(new, stream(1), 1, NOW)

    @pytest.mark.parametrize("is_open", [True, False])
    def test_bytes_that_are_sent_use_up_credit_and_what_is_left(self, is_open: bool) -> None:
        for last in (False, True):
            gate, slow = self.gate()
            made = stream(3 * MIB if not last else 40 * MIB, size=3 * MIB, finished=last)
            made.send.pull(1 * MIB)
            room = 2 * MIB
            slow.speed.sent_since = int((room - self.OVERTAKES) * 0.065536) + (0 if is_open else 9)
            assert gate.is_open(slow, made, 1, NOW) is is_open

    def test_before_anything_was_measured_all_may_pass(self) -> None:
        fresh = Gate()
        assert fresh.is_open(known(1, 0.0, 9.0), stream(1), 1, NOW)
        assert fresh.is_open(known(1, 1e6, 9.0), stream(1), 1, NOW)
        assert fresh.is_worthwhile(known(1, 0.0, 9.0))

    def test_one_alone_that_is_longer_than_when_it_was_measured(self) -> None:
        one = known(0, 1e6, 0.25)
        gate = Gate()
        gate.update([one])
        one.speed.rtt = 9.0
        assert gate.is_open(one, stream(1), 1, NOW)


class TestRelay:
    """The next kernel has taken much that the peer has not read: a relay holds it."""

    def hoarding(self, read: int, *, rate: float = 1e6) -> Subflow:
        one = Subflow(0, NOW)
        one.delivery.sent(10_000_000, NOW)
        one.delivery.on_got(read, NOW)
        one.delivery.rate = rate
        return one

    @pytest.mark.parametrize(("beyond", "believed"), [(0, False), (1, True)])
    def test_what_reports_cannot_explain(self, beyond: int, believed: bool) -> None:
        # The first chunk, 64 KiB, and what is read in a tenth of a second.
        usual = 64 * KIB + 64 * KIB + 100_000
        one = self.hoarding(10_000_000 - usual - 3000 - beyond)
        one.on_sample(sample(5e8, unacked=1000, not_sent=2000), NOW + 1)
        assert one.speed.rate == (1e6 if believed else 5e8)

    def test_a_peer_that_has_read_nothing_proves_nothing(self) -> None:
        one = self.hoarding(0, rate=0.0)
        one.on_sample(sample(5e8), NOW + 1)
        assert one.speed.rate == 5e8

    def test_its_own_rate_is_the_lesser(self) -> None:
        one = self.hoarding(0)
        one.on_sample(sample(5e5), NOW + 1)
        assert one.speed.rate == 5e5

    def test_is_believed_for_two_seconds(self) -> None:
        one = self.hoarding(0)
        one.on_sample(sample(5e8), NOW + 1)
        one.delivery.on_got(10_000_000, NOW + 2)
        one.delivery.rate = 9e6
        # Nothing is on its way: what the peer read says what we gave.
        one.on_sample(sample(5e8), NOW + 1.5)
        assert one.speed.rate == 9e6
        one.delivery.rate = 1e6
        one.on_sample(sample(5e8), NOW + 2.99)
        assert one.speed.rate < 5e8
        one.on_sample(sample(5e8), NOW + 3)
        assert one.speed.rate == 5e8

    def test_rates_of_before_do_not_count(self) -> None:
        one = self.hoarding(10_000_000)
        one.on_sample(sample(5e8), NOW + 1)
        assert one.speed.rate == 5e8
        one.delivery.sent(20_000_000, NOW + 1)
        one.delivery.rate = 1e6
        one.on_sample(sample(5e8), NOW + 1.25)
        assert one.speed.rate == 1e6
        one.delivery.rate = 5e5
        one.on_sample(sample(5e8), NOW + 1.5)
        assert one.speed.rate == 1e6, "the largest of a second, as ever"


class TestSubflow:
    def test_a_new_one(self) -> None:
        one = Subflow(5, NOW)
        assert (one.subflow_id, one.created_at, one.sends, one.ready) == (5, NOW, True, False)
        assert (one.lane, one.stalls, one.cause, one.suspect_since) == (0, 0, Cause.KERNEL, NOW)
        assert (one.heard_at, one.progress_at, one.pinged_at) == (NOW, NOW, None)
        assert (one.ping_position, one.through, one.peer_window) == (0, 0, -1)
        assert (one.bytes_sent, one.bytes_received, one.reinjected) == (0, 0, 0)
        assert not one.awaits_ack
        assert not one.guard.aside
        assert one.guard.until == 0.0
        new = one.speed
        assert (new.rate, new.rtt, new.not_sent, new.sent_since) == (0.0, 0.1, 0, 0)
        assert (new.chunk, new.lowat) == (64 * KIB, 256 * KIB)

    def test_stalls_are_counted_and_one_without_a_ping_gets_none(self) -> None:
        one = Subflow(0, NOW)
        for count in range(1, 4):
            one.become_suspect(Cause.KERNEL, NOW)
            assert one.stalls == count
            one.clear()
        one.ping_position = 500
        one.on_sample(sample(unacked=9, acked=100), NOW + 1)
        assert one.pinged_at is None

    def test_what_is_sent_starts_the_clock_of_an_idle_one(self) -> None:
        one = Subflow(0, NOW)
        one.count_sent(100, NOW + 5)
        assert (one.awaits_ack, one.progress_at) == (True, NOW + 5)
        one.count_sent(50, NOW + 9)
        assert (one.bytes_sent, one.speed.sent_since, one.progress_at) == (150, 150, NOW + 5)

    @pytest.mark.parametrize(
        ("unacked", "not_sent", "waits"), [(0, 0, False), (1, 0, True), (0, 1, True)]
    )
    def test_it_waits_for_what_is_sent_or_is_to_be(
        self, unacked: int, not_sent: int, waits: bool
    ) -> None:
        one = Subflow(0, NOW)
        one.on_sample(sample(unacked=unacked, not_sent=not_sent, peer_window=7), NOW + 1)
        assert one.awaits_ack is waits
        assert one.peer_window == 7
        assert one.progress_at == (NOW if unacked else NOW + 1)

    def test_progress_is_what_is_acknowledged_more(self) -> None:
        one = Subflow(0, NOW)
        one.on_sample(sample(unacked=9, acked=100), NOW + 1)
        assert (one.through, one.progress_at) == (100, NOW + 1)
        one.on_sample(sample(unacked=9, acked=100), NOW + 2)
        assert one.progress_at == NOW + 1
        one.on_sample(sample(unacked=9, acked=101), NOW + 3)
        assert (one.through, one.progress_at) == (101, NOW + 3)

    @pytest.mark.parametrize(("position", "later"), [(101, True), (100, False)])
    def test_a_ping_that_waits_is_not_out_yet(self, position: int, later: bool) -> None:
        one = Subflow(0, NOW)
        one.on_sample(sample(unacked=9, acked=100), NOW + 1)
        assert one.pinged_at is None
        one = Subflow(0, NOW)
        one.pinged_at, one.ping_position = NOW, position
        one.on_sample(sample(unacked=9, acked=100), NOW + 1)
        assert one.pinged_at == (NOW + 1 if later else NOW)

    @pytest.mark.parametrize("cause", Cause)
    def test_only_what_it_was_suspected_of_clears_it(self, cause: Cause) -> None:
        one = Subflow(0, NOW)
        one.become_suspect(cause, NOW)
        one.become_suspect(Cause.KERNEL, NOW + 1)
        assert (one.cause, one.stalls, one.suspect_since) == (cause, 1, NOW)
        progress = {
            Cause.KERNEL: (one, "progress_at"),
            Cause.DELIVERY: (one.delivery, "progress_at"),
            Cause.PEER: (one, "heard_at"),
        }
        for kind, (where, name) in progress.items():
            assert not one.is_cleared()
            setattr(where, name, NOW + 2)
            assert one.is_cleared() is (kind is cause)
            setattr(where, name, NOW)

    def test_those_that_are_gone_add_up(self) -> None:
        past = Past()
        for factor in (1, 10):
            one = Subflow(0, NOW)
            one.bytes_sent, one.bytes_received = 2 * factor, 3 * factor
            one.reinjected, one.stalls = 4 * factor, 5 * factor
            past.add(one)
        found = (past.count, past.bytes_sent, past.bytes_received, past.reinjected, past.stalls)
        assert found == (2, 22, 33, 44, 55)
