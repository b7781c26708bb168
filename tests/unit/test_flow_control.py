"""Credit: a floor for every stream, a share of the pool for those that use it."""

from __future__ import annotations

from fastmtcp.engine.limits import KIB, MIB, Limits
from fastmtcp.engine.streams.flow_control import ReceiveWindow, WindowPool

LIMITS = Limits(
    floor_window=64 * KIB, start_window=256 * KIB, max_window=2 * MIB, window_pool=8 * MIB
)


def window(pool: WindowPool | None = None) -> ReceiveWindow:
    return ReceiveWindow(LIMITS, pool or WindowPool(LIMITS.window_pool))


def test_starts_at_the_floor_without_touching_the_pool() -> None:
    pool = WindowPool(1 * MIB)
    own = window(pool)
    assert own.size == own.limit == 64 * KIB
    assert pool.free == 1 * MIB


def test_credit_is_given_for_bytes_taken_only() -> None:
    own = window(WindowPool(0))
    limit = own.limit
    assert not own.worth_telling
    assert own.tell() == limit
    own.take(1000, 0.0)
    assert own.limit == limit
    assert own.tell() == limit + 1000


def test_grows_to_the_start_window_once_a_quarter_is_used() -> None:
    pool = WindowPool(8 * MIB)
    own = window(pool)
    own.take(16 * KIB - 1, 0.0)
    assert own.size == 64 * KIB
    own.take(1, 0.0)
    assert own.size == 256 * KIB
    assert pool.free == 8 * MIB - (256 - 64) * KIB
    assert own.worth_telling


def test_doubles_when_the_peer_asks_and_the_application_keeps_up() -> None:
    own = window()
    own.start()
    assert own.on_blocked(own.tell(), waiting=64 * KIB, now=0.0)
    assert own.size == 512 * KIB
    assert own.worth_telling


def test_does_not_grow_for_a_slow_reader_however_often_the_peer_asks() -> None:
    own = window()
    own.start()
    for _ in range(20):
        assert not own.on_blocked(own.tell(), waiting=64 * KIB + 1, now=0.0)
        own.take(10 * KIB, 0.0)
    assert own.size == 256 * KIB


def test_what_was_asked_before_the_last_growth_was_told_does_not_count() -> None:
    own = window()
    own.start()
    told = own.tell()
    assert own.on_blocked(told, waiting=0, now=0.0)
    own.take(100 * KIB, 0.0)
    assert not own.on_blocked(told, waiting=0, now=0.0)
    assert not own.on_blocked(told + 1, waiting=0, now=0.0)
    assert own.on_blocked(own.tell(), waiting=0, now=0.0)
    assert own.size == 1 * MIB


def test_does_not_grow_without_being_asked() -> None:
    own = window()
    own.start()
    for _ in range(100):
        own.take(own.tell() - own.taken, 0.0)
    assert own.size == 256 * KIB


def test_stops_at_its_ceiling() -> None:
    own = window(WindowPool(100 * MIB))
    own.start()
    for _ in range(20):
        own.on_blocked(own.tell(), waiting=0, now=0.0)
    assert own.size == 2 * MIB


def test_stops_when_the_pool_is_used_up() -> None:
    pool = WindowPool(300 * KIB)
    windows = [window(pool) for _ in range(20)]
    for _ in range(5):
        for own in windows:
            own.take(own.size, 0.0)
            own.on_blocked(own.tell(), waiting=0, now=0.0)
    assert pool.free >= 0
    assert pool.free + sum(own.size - 64 * KIB for own in windows) == 300 * KIB
    assert all(own.size >= 64 * KIB for own in windows)


def test_an_early_stream_leaves_half_of_the_pool_to_later_ones() -> None:
    pool = WindowPool(200 * KIB)
    first = window(pool)
    first.start()
    assert first.size == (64 + 100) * KIB
    assert pool.free == 100 * KIB


def test_is_told_at_a_quarter() -> None:
    own = window(WindowPool(0))
    own.take(16 * KIB - 1, 0.0)
    assert not own.worth_telling
    own.take(1, 0.0)
    assert own.worth_telling
    own.tell()
    assert not own.worth_telling


def test_close_returns_everything_once_and_the_limit_stays() -> None:
    pool = WindowPool(8 * MIB)
    own = window(pool)
    own.start()
    limit = own.tell()
    own.close()
    assert pool.free == 8 * MIB
    own.close()
    assert pool.free == 8 * MIB
    assert own.tell() == limit


class Line:
    """A window at the end of a line whose goodput is the window's, up to a ceiling."""

    def __init__(self, rtt: float, ceiling: float) -> None:
        self.pool = WindowPool(64 * MIB)
        self.window = ReceiveWindow(Limits(max_window=32 * MIB), self.pool)
        self.rtt = rtt
        self.ceiling = ceiling
        self.now = 100.0

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
        assert line.window.size == 4 * MIB
        line.run(0.01)
        assert line.window.excess == 0
        assert line.pool.free == 60 * MIB + 64 * KIB
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
        assert line.window.excess == 4 * MIB
        assert not line.window.worth_telling
        line.window.close()
        assert line.pool.free == 64 * MIB
