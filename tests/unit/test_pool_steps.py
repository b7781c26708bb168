"""The steps of a pool, reading by reading: when each begins, when it is kept or taken back."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from fastmtcp.client.pool.size import IDLE_AFTER, IDLE_RATE, TICK, PoolSize, Reading
from fastmtcp.config.connections import Connections

from tests.unit.wire import START


class Line:
    """A path whose connections are there at once and whose rate follows from their number."""

    def __init__(self, limits: str = "2-16", rtt: float = 0.04) -> None:
        self.size = PoolSize(Connections.read(limits))
        self.now = START
        self.rtt = rtt
        self.rate: Callable[[int], float] = lambda count: 1000.0 * count
        self.goodput: Callable[[int], float] = lambda count: self.rate(count)
        self.hungry = True
        self.most = 99
        self.may_probe = True

    def read(self, readings: int = 1) -> list[int]:
        """Take so many readings; the wanted number after each."""
        wanted = []
        for _ in range(readings):
            self.now += TICK
            up = min(self.size.wanted, self.most)
            seen = Reading(up, self.hungry, self.goodput(up), self.rate(up), self.rtt)
            wanted.append(self.size.update(self.now, seen, self.may_probe))
        return wanted

    def seconds(self, count: float) -> list[int]:
        return self.read(round(count / TICK))


def share(value: float, at: int, before: float = 1000.0) -> Callable[[int], float]:
    """A rate of which each connection beyond `at` brings that share of what those before did."""
    return lambda count: before + (count - at) * value * before / at


def held(rate: Callable[[int], float] | None = None) -> Line:
    """One that has found two connections to be enough, and holds."""
    line = Line()
    line.rate = rate or (lambda count: 1000.0)
    line.read(13)
    assert line.size.settled == 2
    return line


def test_a_reading_four_times_a_second() -> None:
    assert (TICK, IDLE_AFTER, IDLE_RATE) == (0.25, 30.0, 65536)


def test_steps_of_a_half_as_long_as_each_brings_its_part() -> None:
    line = Line()
    expected = [2] * 3 + [3] * 5 + [5] * 5 + [8] * 5 + [12] * 5 + [16] * 10
    assert line.read(len(expected)) == expected
    assert line.size.settled == 16
    assert not line.size.is_probing
    assert line.size.probed_at == START + 24 * TICK


@pytest.mark.parametrize(("rtt", "readings"), [(0.04, 8), (0.1, 8), (0.2, 12), (0.3, 16), (9, 16)])
def test_a_step_that_brings_nothing_is_taken_back_when_it_has_had_its_time(
    rtt: float, readings: int
) -> None:
    line = Line(rtt=rtt)
    line.rate = lambda count: 1000.0
    assert line.read(4 + readings + 2) == [2] * 3 + [3] * (readings + 1) + [2] * 2
    assert line.size.settled == 2


@pytest.mark.parametrize(("value", "kept"), [(0.4, True), (0.39, False)])
def test_a_fair_share_is_kept(value: float, kept: bool) -> None:
    line = Line("2-3")
    line.rate = share(value, 2)
    line.read(30)
    assert line.size.wanted == line.size.settled == (3 if kept else 2)


@pytest.mark.parametrize("gains", ["rate", "goodput"])
def test_both_the_path_and_the_session_must_gain(gains: str) -> None:
    line = Line("2-3")
    line.rate = share(0.0 if gains == "goodput" else 1.0, 2)
    line.goodput = share(0.0 if gains == "rate" else 1.0, 2)
    line.read(30)
    assert line.size.settled == 2


@pytest.mark.parametrize(("value", "tried"), [(0.11, [3, 5, 4]), (0.09, [3, 5]), (0.41, [3, 5, 8])])
def test_half_of_a_step_that_brings_something(value: float, tried: list[int]) -> None:
    line = Line()
    line.rate = lambda count: 500.0 * count if count <= 3 else share(value, 3, 1500.0)(count)
    seen = line.read(28)
    assert [count for count in dict.fromkeys(seen) if count > 2][: len(tried)] == tried
    if value < 0.4:
        assert line.read(8)[-1] == 3
        assert line.size.settled == 3


def test_half_a_step_that_is_kept_is_the_last() -> None:
    line = Line()
    line.rate = lambda count: 500.0 * min(count, 4)
    # Five of which four bring something is a share of a half.
    line.rate = lambda count: {2: 1000.0, 3: 1500.0, 4: 1900.0, 5: 1800.0}[count]
    line.goodput = lambda count: {2: 1000.0, 3: 1500.0, 4: 1900.0, 5: 1800.0}[count]
    line.read(40)
    assert line.size.wanted == line.size.settled == 4


class TestHold:
    def test_half_a_minute_then_longer_up_to_five(self) -> None:
        line = Line()
        line.rate = lambda count: 1000.0
        starts, probed = [], line.size.probed_at
        for _ in range(5200):
            line.read()
            if line.size.probed_at != probed:
                probed = line.size.probed_at
                starts.append(probed)
        # The first step takes 2.25 s, those that come again 3.25 s.
        gaps = [after - before for before, after in pairwise(starts)]
        assert gaps[:6] == [32.25, 63.25, 123.25, 243.25, 303.25, 303.25]

    def test_then_one_small_step(self) -> None:
        line = Line()
        line.rate = lambda count: 1000.0 * min(count, 8)
        line.read(60)
        assert line.size.settled == 8
        seen = line.seconds(80)
        assert max(seen) == 10
        assert seen[-1] == 8

    @pytest.mark.parametrize(("value", "kept"), [(0.6, True), (0.59, False)])
    def test_which_must_bring_more(self, value: float, kept: bool) -> None:
        line = held()
        line.rate = share(value, 2)
        line.size.limit(Connections.read("2-3"))
        line.seconds(40)
        assert line.size.wanted == (3 if kept else 2)

    @pytest.mark.parametrize(("before", "early"), [(9.75, True), (9.5, True), (3.0, False)])
    def test_not_before_a_sixth_of_the_next_hold_is_over(self, before: float, early: bool) -> None:
        """Of a minute: what comes in its first ten seconds is what later rates are held against."""
        line = held()
        line.seconds(before)
        line.rate = lambda count: 5000.0
        seen = line.seconds(10 - before)
        assert set(seen) == {2}
        assert (3 in line.seconds(3)) is early

    def test_ends_early_when_the_rate_has_changed_for_a_while(self) -> None:
        line = held()
        assert set(line.seconds(12)) == {2}
        line.rate = lambda count: 1400.0
        seen = line.read(12)
        assert seen[-1] == 3
        assert set(seen[:4]) == {2}

    @pytest.mark.parametrize("rate", [1399.0, 715.0])
    def test_not_for_a_smaller_change(self, rate: float) -> None:
        line = held()
        line.seconds(12)
        line.rate = lambda count: rate
        assert set(line.seconds(10)) == {2}

    def test_ends_early_for_a_rate_that_has_fallen(self) -> None:
        line = held()
        line.seconds(12)
        line.rate = lambda count: 714.0
        assert 3 in line.seconds(10)

    def test_ends_soon_after_the_network_has_changed(self) -> None:
        line = held()
        line.size.retry(line.now)
        assert set(line.seconds(4.75)) == {2}
        assert line.read()[-1] == 3

    def test_ends_soon_after_the_path_was_lost(self) -> None:
        line = held()
        line.most = 0
        line.seconds(2)
        line.most = 1
        assert set(line.seconds(8)) == {2}
        line.most = 99
        assert set(line.seconds(5)) == {2}
        assert line.read(2)[-1] == 3

    def test_no_longer_than_it_was(self) -> None:
        line = held()
        line.seconds(28)
        line.size.retry(line.now)
        seen = line.seconds(3)
        assert 3 in seen


class TestPauses:
    def test_connections_that_are_not_made_within_5_seconds(self) -> None:
        line = Line()
        line.most = 2
        seen = line.read(60)
        assert seen.count(3) == 20
        assert line.size.settled == 2

    def test_an_end_of_the_demand_says_nothing_if_the_rate_has_ended_too(self) -> None:
        line = Line()
        line.rate = lambda count: 1000.0
        line.read(6)
        line.hungry = False
        line.rate = lambda count: 900.0
        assert line.read(11) == [3] * 11
        assert line.read()[-1] == 2
        assert line.size.settled is None
        assert not line.size.is_probing

    def test_streams_that_have_enough_now(self) -> None:
        line = Line("2-3")
        line.rate = lambda count: 1000.0
        line.read(6)
        line.hungry = False
        line.rate = lambda count: 950.0
        line.read(12)
        assert line.size.wanted == line.size.settled == 3

    def test_the_least_is_enough_when_idle(self) -> None:
        line = Line("2-3")
        line.read(20)
        assert line.size.wanted == 3
        line.hungry = False
        line.rate = lambda count: float(IDLE_RATE + 1)
        assert set(line.seconds(60)) == {3}
        line.rate = lambda count: float(IDLE_RATE)
        assert set(line.seconds(29.75)) == {3}
        assert line.read()[-1] == 2
        # What was enough before is tried first.
        line.hungry = True
        line.size.limit(Connections.read("2-9"))
        line.size.settled = 7
        assert line.read(4) == [2, 2, 2, 7]

    def test_no_step_while_another_path_has_one(self) -> None:
        line = Line()
        line.may_probe = False
        assert set(line.read(40)) == {2}
        line.may_probe = True
        assert line.read()[-1] == 3

    def test_no_step_while_the_rate_still_grows(self) -> None:
        line = Line()
        grown = [1000.0]

        def growing(count: int) -> float:
            grown[0] *= 1.1
            return grown[0]

        line.rate = growing
        line.goodput = lambda count: grown[0]
        assert set(line.read(20)) == {2}

    def test_what_was_measured_before_a_disturbance_counts_no_more(self) -> None:
        line = Line()
        line.read(3)
        line.size.disturbed()
        assert line.read(4) == [2, 2, 2, 3]

    def test_nothing_is_tried_while_nothing_waits(self) -> None:
        line = Line()
        line.read(3)
        line.hungry = False
        line.read()
        line.hungry = True
        assert line.read(4) == [2, 2, 2, 3]


def test_other_limits() -> None:
    line = Line()
    line.read(30)
    assert line.size.wanted == 16
    line.size.limit(Connections.read("2-16"))
    assert line.size.settled == 16
    line.size.limit(Connections.read("3-5"))
    assert line.size.wanted == 5
    line.size.limit(Connections.read("7-9"))
    assert line.size.wanted == 7
    assert not line.size.is_probing
    assert line.read(4) == [7, 7, 7, 9]
