"""Credit: a floor for every stream, a share of the pool for those that use it."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import KIB, MIB, Limits
from fastmtcp.engine.quota import Holding, Memory
from fastmtcp.engine.streams.flow_control import ReceiveWindow, WindowPool
from fastmtcp.engine.wire.errors import RemoteError

from tests.unit.wire import START

LIMITS = Limits(
    floor_window=64 * KIB, start_window=256 * KIB, max_window=2 * MIB, window_pool=8 * MIB
)


def window(pool: WindowPool | None = None) -> ReceiveWindow:
    return ReceiveWindow(LIMITS, pool or WindowPool(LIMITS.window_pool), START)


def use(own: ReceiveWindow, count: int) -> None:
    """The application takes `count` bytes, which the peer has sent."""
    own.take(count, START)


def ask(own: ReceiveWindow, waiting: int = 0) -> bool:
    """The peer says that it is blocked at the limit that it knows."""
    return own.on_blocked(own.limit + own.returned, waiting, START)


def grow(own: ReceiveWindow) -> int:
    """The window of a stream that is used as fast as it can be for eight round trips."""
    for _ in range(8):
        use(own, own.limit - own.taken)
        own.tell()
        ask(own)
    return own.size


def test_starts_at_the_floor_without_touching_the_pool() -> None:
    pool = WindowPool(1 * MIB)
    own = window(pool)
    assert own.size == own.limit == own.wanted == 64 * KIB
    assert own.out == 0
    assert pool.free == 1 * MIB


def test_credit_is_given_for_bytes_taken_only() -> None:
    own = window(WindowPool(0))
    limit = own.limit
    assert not own.worth_telling
    assert own.tell() == limit
    use(own, 1000)
    assert own.limit == limit
    assert own.tell() == limit + 1000


def test_grows_to_the_start_window_once_a_quarter_is_used() -> None:
    pool = WindowPool(8 * MIB)
    own = window(pool)
    use(own, 16 * KIB - 1)
    assert own.wanted == 64 * KIB
    use(own, 1)
    assert own.wanted == 256 * KIB
    assert own.worth_telling
    assert pool.free == 8 * MIB, "nothing is out before the peer is told"
    assert own.tell() == (16 + 256) * KIB
    assert own.out == (256 - 64) * KIB
    assert pool.free == 8 * MIB - (256 - 64) * KIB


def test_what_is_out_falls_as_the_application_takes() -> None:
    pool = WindowPool(8 * MIB)
    own = window(pool)
    own.start()
    own.tell()
    use(own, 100 * KIB)
    assert own.out == (256 - 64 - 100) * KIB
    assert pool.free == 8 * MIB - own.out
    use(own, 150 * KIB)
    assert own.out == 0
    assert pool.free == 8 * MIB


def test_doubles_when_the_peer_asks_and_the_application_keeps_up() -> None:
    own = window()
    own.start()
    own.tell()
    assert ask(own, waiting=64 * KIB)
    assert own.size == own.limit == 512 * KIB


def test_does_not_grow_for_a_slow_reader_however_often_the_peer_asks() -> None:
    own = window()
    own.start()
    own.tell()
    for _ in range(20):
        assert not ask(own, waiting=64 * KIB + 1)
        use(own, 10 * KIB)
    assert own.wanted == 256 * KIB


def test_what_was_asked_before_the_last_growth_was_told_does_not_count() -> None:
    own = window()
    own.start()
    told = own.tell()
    assert own.on_blocked(told, waiting=0, now=START)
    use(own, 100 * KIB)
    assert not own.on_blocked(told, waiting=0, now=START)
    assert not own.on_blocked(own.limit - 1, waiting=0, now=START)
    assert own.on_blocked(own.limit, waiting=0, now=START)
    assert own.size == 1 * MIB


def test_does_not_grow_without_being_asked() -> None:
    own = window()
    own.start()
    for _ in range(100):
        use(own, own.tell() - own.taken)
    assert own.size == 256 * KIB


def test_stops_at_its_ceiling() -> None:
    own = window(WindowPool(100 * MIB))
    assert grow(own) == 2 * MIB
    assert not ask(own)
    assert own.wanted == 2 * MIB


def test_is_told_at_a_quarter() -> None:
    own = window(WindowPool(0))
    use(own, 16 * KIB - 1)
    assert not own.worth_telling
    use(own, 1)
    assert own.worth_telling
    own.tell()
    assert not own.worth_telling


def test_behind_the_fin_nothing_is_out() -> None:
    pool = WindowPool(8 * MIB)
    own = window(pool)
    own.start()
    limit = own.tell()
    own.finish(100 * KIB)
    assert own.out == (100 - 64) * KIB
    assert pool.free == 8 * MIB - (100 - 64) * KIB
    use(own, 100 * KIB)
    assert own.out == 0
    assert not own.worth_telling
    assert own.tell() == limit
    assert not ask(own)


def test_close_returns_everything_once_and_the_limit_stays() -> None:
    pool = WindowPool(8 * MIB)
    own = window(pool)
    own.start()
    limit = own.tell()
    own.close()
    assert pool.free == 8 * MIB
    use(own, 100 * KIB)
    own.close()
    assert pool.free == 8 * MIB
    assert own.tell() == limit


def test_the_first_period_begins_with_the_window() -> None:
    """Measured from the time 0, a first goodput is next to nothing, and any trial a success."""
    own = ReceiveWindow(Limits(), WindowPool(64 * MIB), START)
    own.take(64 * KIB, START + 0.1)
    assert own._goodput == 0, "no period is over yet"
    own.take(64 * KIB, START + 0.2)
    assert own._goodput == pytest.approx(128 * KIB / 0.2)


class TestShares:
    LIMITS = Limits(floor_window=64 * KIB, start_window=256 * KIB, max_window=64 * MIB)
    POOL = 9 * 256 * KIB

    def windows(self, count: int) -> tuple[WindowPool, list[ReceiveWindow]]:
        pool = WindowPool(self.POOL)
        return pool, [ReceiveWindow(self.LIMITS, pool, START) for _ in range(count)]

    def run(self, windows: list[ReceiveWindow], rounds: int = 30) -> None:
        """All are used as fast as they can be; a round is a quarter of a round trip."""
        for _ in range(rounds):
            for own in windows:
                own.take((own.limit - own.taken) // 4, START)
                if own.worth_telling:
                    own.tell()
                own.on_blocked(own.limit, 0, START)
                assert own._pool.free >= 0

    def test_one_alone_has_eight_ninths(self) -> None:
        pool, (own,) = self.windows(1)
        self.run([own])
        own.tell()
        assert own.wanted == 4 * MIB
        assert own.size == 2 * MIB + 64 * KIB
        assert pool.free == 256 * KIB

    @pytest.mark.parametrize("count", [2, 3, 8, 50])
    def test_many_come_to_have_the_same_whenever_they_began(self, count: int) -> None:
        pool, windows = self.windows(count)
        for begun in range(count):
            self.run(windows[: begun + 1], rounds=40)
            fair = 2 * MIB // (begun + 1)
            wanted = min(fair, max(own.wanted for own in windows) - 64 * KIB)
            assert [own.size for own in windows[: begun + 1]] == [wanted + 64 * KIB] * (begun + 1)
        assert pool.hungry == count
        assert pool.satisfied == 0

    def test_who_comes_late_has_its_share_after_a_few_round_trips(self) -> None:
        _, (old, new) = self.windows(2)
        self.run([old], rounds=40)
        self.run([old, new], rounds=12)
        assert old.size == new.size == 1 * MIB + 64 * KIB

    def test_one_that_needs_less_leaves_the_rest_to_the_others(self) -> None:
        pool, (small, *large) = self.windows(3)
        small.start()
        small.tell()
        for _ in range(100):
            self.run(large, rounds=1)
            small.take(100 * KIB, START)
            small.tell()
        assert small.size == 256 * KIB
        assert pool.satisfied == small.out == 192 * KIB
        rest = (2 * MIB - small.out) // 2
        assert [own.size for own in large] == [rest + 64 * KIB] * 2

    def test_one_with_more_than_its_share_is_not_advanced_as_it_is_used(self) -> None:
        pool, (old, new) = self.windows(2)
        self.run([old], rounds=40)
        told = old.tell()
        new.start()
        new.tell()
        assert new.out == 192 * KIB, "of the ninth that is left"
        old.take(new.out, START)
        assert not old.worth_telling
        assert old.tell() == told
        assert pool.free == 256 * KIB
        old.take(512 * KIB, START)
        assert old.worth_telling
        assert old.tell() == told + 512 * KIB

    def test_one_that_has_less_than_it_wants_does_not_want_more(self) -> None:
        _, windows = self.windows(2)
        self.run(windows, rounds=100)
        assert all(own.wanted == 2 * MIB > own.size for own in windows)

    def test_what_one_leaves_the_other_gets(self) -> None:
        pool, (old, new) = self.windows(2)
        self.run([old, new], rounds=40)
        old.close()
        assert pool.hungry == 1
        self.run([new], rounds=10)
        new.tell()
        assert new.out == 2 * MIB

    def test_who_gives_credit_back_is_hungry_no_more(self) -> None:
        pool, (old, new) = self.windows(2)
        self.run([old, new], rounds=40)
        old.on_return(512 * KIB, 0)
        assert pool.hungry == 1
        assert pool.satisfied == old.out == self.POOL - pool.free - new.out
        self.run([new], rounds=10)
        new.tell()
        assert new.out == 2 * MIB - old.out

    def test_a_stream_that_has_ended_is_hungry_no_more(self) -> None:
        pool, (old, new) = self.windows(2)
        self.run([old, new], rounds=40)
        old.finish(old.taken + 64 * KIB)
        assert pool.hungry == 1
        assert pool.satisfied == old.out == 0
        assert pool.free == self.POOL - new.out

    def test_every_stream_has_its_floor_when_the_pool_is_empty(self) -> None:
        pool = WindowPool(0)
        own = ReceiveWindow(self.LIMITS, pool, START)
        for _ in range(5):
            use(own, own.limit - own.taken)
            assert own.worth_telling
            assert own.tell() == own.taken + 64 * KIB
            ask(own)
        assert pool.free == own.out == 0

    def test_those_that_want_little_share_alike_too(self) -> None:
        """The first ten have all they want, until they are used."""
        pool, windows = self.windows(20)
        for own in windows:
            own.start()
            own.tell()
        assert pool.hungry == 10
        self.run(windows, rounds=100)
        assert [own.size for own in windows] == [2 * MIB // 20 + 64 * KIB] * 20

    def test_all_windows_of_a_session_are_within_its_share_of_the_worker(self) -> None:
        memory = Memory(4 * MIB)
        pool = WindowPool(32 * MIB, Holding(memory))
        own = ReceiveWindow(self.LIMITS, pool, START)
        self.run([own])
        own.tell()
        # An eighth is kept, a quarter of the rest is left to other clients, and a ninth of what is
        # left then to other sessions.
        assert own.out == 7 * MIB // 2 * 3 // 4 * 8 // 9
        other = Holding(memory)
        other.add(3 * MIB)
        own.take(own.limit - own.taken, START)
        own.tell()
        assert own.out == MIB // 2 * 3 // 4 * 8 // 9
        other.add(MIB // 2)
        own.take(own.limit - own.taken, START)
        own.tell()
        assert own.size == 64 * KIB
        assert pool.free == 32 * MIB


class TestComingBack:
    def idle(self, pool: WindowPool) -> ReceiveWindow:
        """One that has had 256 KiB of credit and has used nothing of it."""
        own = window(pool)
        own.start()
        own.tell()
        return own

    def test_the_pool_is_tight_from_a_half_on(self) -> None:
        pool = WindowPool(432 * KIB)
        assert pool.budget == 384 * KIB
        own = self.idle(pool)
        assert own.out == 192 * KIB
        assert not pool.is_tight
        other = self.idle(pool)
        assert pool.is_tight
        use(other, 192 * KIB)
        assert not pool.is_tight

    def test_and_also_if_little_memory_is_left_in_the_worker(self) -> None:
        memory = Memory(16 * MIB)
        pool = WindowPool(2 * MIB, Holding(memory))
        own = self.idle(pool)
        Holding(memory).add(14 * MIB - 2 * own.out * 9 // 8 * 4 // 3)
        assert pool.budget == 2 * own.out
        assert not pool.is_tight
        Holding(memory).add(2)
        assert pool.is_tight

    def test_what_is_not_used_can_come_back_but_not_the_floor(self) -> None:
        own = self.idle(WindowPool(1 * MIB))
        assert own.unused(100) == 192 * KIB
        own.on_return(192 * KIB, 0)
        assert (own.limit, own.returned, own.out, own.wanted) == (64 * KIB, 192 * KIB, 0, 64 * KIB)
        assert own._pool.free == 1 * MIB
        assert own.unused(100) == 0

    def test_a_few_idle_streams_keep_a_quarter_of_the_pool(self) -> None:
        own = self.idle(WindowPool(1 * MIB))
        assert own.unused(1) == 0, "no more than the start window"
        assert own.unused(2) == 128 * KIB
        assert own.unused(3) == 256 * KIB - MIB // 12

    def test_less_than_a_floor_is_not_worth_asking_for(self) -> None:
        own = self.idle(WindowPool(3 * MIB))
        assert own.unused(4) == 64 * KIB
        assert window(WindowPool(3 * MIB)).unused(4) == 0
        assert self.idle(WindowPool(3 * MIB + 16)).unused(4) == 0

    def test_twice_of_what_was_used_since_the_last_look_is_kept(self) -> None:
        own = window(WindowPool(8 * MIB))
        grow(own)
        before = own.taken
        assert own.unused(1000) == 0, "the first look only begins to count"
        use(own, 300 * KIB)
        own.tell()
        assert own.taken == before + 300 * KIB
        assert own.unused(1000) == 2 * MIB - 600 * KIB
        assert own.unused(1000) == 2 * MIB - 64 * KIB

    def test_a_lost_return_is_made_up_for_by_the_next(self) -> None:
        own = self.idle(WindowPool(1 * MIB))
        own.on_return(150 * KIB, 0)
        assert own.limit == 106 * KIB
        for late in (150, 100, 0, -5):
            own.on_return(late * KIB, 0)
            assert (own.limit, own.returned) == (106 * KIB, 150 * KIB)

    def test_limits_go_on_counting_what_has_come_back(self) -> None:
        own = self.idle(WindowPool(1 * MIB))
        told = own.tell()
        own.on_return(150 * KIB, 0)
        assert own.tell() == told
        use(own, 20 * KIB)
        assert own.tell() == told + 20 * KIB

    def test_it_grows_again_when_it_is_used_again(self) -> None:
        own = self.idle(WindowPool(8 * MIB))
        use(own, 100 * KIB)
        own.tell()
        own.on_return(156 * KIB, 100 * KIB)
        assert own.wanted == 100 * KIB
        use(own, 25 * KIB - 1)
        assert own.wanted == 100 * KIB
        use(own, 1)
        assert own.wanted == 256 * KIB
        own.tell()
        assert ask(own)
        assert own.size == 512 * KIB

    def test_it_doubles_from_what_is_left_too(self) -> None:
        own = self.idle(WindowPool(8 * MIB))
        own.on_return(100 * KIB, 0)
        assert ask(own)
        assert own.size == own.limit == 312 * KIB

    def test_no_more_comes_back_than_was_not_used(self) -> None:
        own = self.idle(WindowPool(8 * MIB))
        with pytest.raises(RemoteError):
            own.on_return(157 * KIB, 99 * KIB + 1)
        own.on_return(157 * KIB, 99 * KIB)
        assert own.limit == 99 * KIB

    def test_behind_the_fin_there_is_nothing_to_come_back(self) -> None:
        own = self.idle(WindowPool(8 * MIB))
        own.finish(70 * KIB)
        assert own.unused(1000) == 0
        own.on_return(100 * KIB, 70 * KIB)
        assert own.out == 6 * KIB
        assert own._pool.free == 8 * MIB - 6 * KIB

    def test_a_trial_does_not_outlive_it(self) -> None:
        line = Line(rtt=0.0001, ceiling=1e9)
        line.run(0.22)
        assert line.window.wanted == 8 * MIB
        back = line.window.limit - line.window.taken - 1 * MIB
        line.window.on_return(back, line.window.taken)
        line.window.take(1, line.now + 0.3)
        assert line.window.wanted == 1 * MIB


class Line:
    """A window at the end of a line whose goodput is the window's, up to a ceiling."""

    def __init__(self, rtt: float, ceiling: float) -> None:
        self.pool = WindowPool(90 * MIB)
        self.window = ReceiveWindow(Limits(max_window=32 * MIB), self.pool, START)
        self.rtt = rtt
        self.ceiling = ceiling
        self.now = START

    def run(self, seconds: float) -> int:
        """The largest window on the way, MiB."""
        largest = 0
        end = self.now + seconds
        while self.now < end:
            step = max(self.rtt, self.window.size / self.ceiling)
            self.now += step
            self.window.take(self.window.limit - self.window.taken, self.now)
            self.window.on_blocked(self.window.tell(), 0, self.now)
            largest = max(largest, self.window.size)
        return largest // MIB


class TestLargeWindows:
    def test_one_that_brings_nothing_is_taken_back(self) -> None:
        line = Line(rtt=0.0001, ceiling=1e9)
        assert line.run(0.15) == 4
        assert line.run(0.3) == 8
        assert line.window.wanted == 4 * MIB
        line.run(0.01)
        assert line.pool.free == 86 * MIB + 64 * KIB
        assert line.run(4.0) == 4
        assert line.run(5.0) == 8, "it is tried again"
        line.run(0.3)
        assert line.window.size == 4 * MIB

    def test_one_that_brings_more_stays(self) -> None:
        line = Line(rtt=0.004, ceiling=3e9)
        line.run(2.0)
        assert line.window.size == 16 * MIB
        assert line.run(3.0) == 16

    def test_a_long_round_trip_needs_no_trial(self) -> None:
        line = Line(rtt=0.04, ceiling=1e9)
        assert line.run(0.4) == 32

    def test_closing_returns_what_the_peer_still_has_credit_for(self) -> None:
        line = Line(rtt=0.0001, ceiling=1e9)
        assert line.run(0.22) == 8
        line.window.take(1, line.now + 0.3)
        assert line.window.wanted == 4 * MIB
        assert line.window.out == 8 * MIB - 64 * KIB - 1
        assert not line.window.worth_telling
        line.window.close()
        assert line.pool.free == 90 * MIB
