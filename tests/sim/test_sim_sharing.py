"""Streams share the credit that there is: idle ones keep no more than a little, and those that run
together have the same, whenever they began. Both ways."""

from __future__ import annotations

from functools import partial

import pytest
from fastmtcp.engine.limits import KIB, MIB, Limits

from tests.sim.hosts import App, Script
from tests.sim.network import Path
from tests.sim.world import World

LIMITS = Limits(
    floor_window=16 * KIB,
    start_window=64 * KIB,
    max_window=2 * MIB,
    window_pool=2 * MIB,
    send_buffer=2 * MIB,
)
"""Some twentieth of the default, as are the lines."""

FAR = [Path(0.15, 2e6, 256 * KIB)] * 2
"""A round trip of 300 ms, or 500 with a full queue, and 1.2 MB on the way."""

BULK = Script(writes=((0.0, 60_000_000),))
BOTH = pytest.mark.parametrize("up", [True, False], ids=["up", "down"])


class Transfers:
    """Streams that carry something one way."""

    def __init__(self, world: World, *, up: bool) -> None:
        self.world = world
        self.up = up
        self.apps: list[App] = []

    def start(self, script: Script = BULK) -> int:
        other = Script(closes=False)
        scripts = (script, other) if self.up else (other, script)
        self.apps.append(self.world.open(*scripts))
        return len(self.apps) - 1

    def arrived(self, number: int) -> int:
        app = self.apps[number]
        return self.world.arrived(app) if self.up else len(app.received)

    def rates(self, seconds: float, numbers: list[int]) -> list[float]:
        """Bytes a second of some of them, in the next seconds."""
        before = [self.arrived(number) for number in numbers]
        self.world.run_for(seconds)
        return [
            (self.arrived(number) - was) / seconds
            for number, was in zip(numbers, before, strict=True)
        ]

    def time(self, size: int) -> float:
        """Virtual seconds that a transfer of so many bytes takes which begins now."""
        began = self.world.clock.now
        number = self.start(Script(writes=((0.0, size),)))
        self.world.run(lambda: self.arrived(number) == size, within=60)
        return self.world.clock.now - began

    @property
    def out(self) -> int:
        """The credit beyond the floors that its receiver has given."""
        pool = (self.world.server if self.up else self.world.client).session.table.windows
        return LIMITS.window_pool - pool.free


def kill_one(world: World, number: int) -> None:
    world.kill(world.live()[number])


def is_fair(rates: list[float]) -> bool:
    """Jain's index: 1 if all are the same, 1/n if one has all."""
    return sum(rates) ** 2 / (len(rates) * sum(rate**2 for rate in rates)) >= 0.9


@BOTH
def test_streams_that_run_together_share_alike_whenever_they_began(up: bool) -> None:
    transfers = Transfers(World(1, FAR, limits=LIMITS), up=up)
    first = transfers.start()
    transfers.world.run_for(4)
    (alone,) = transfers.rates(2, [first])
    second = transfers.start()
    transfers.world.run_for(4)
    assert is_fair(transfers.rates(1, [first, second]))
    third = transfers.start()
    transfers.world.run_for(3)
    rates = transfers.rates(2, [first, second, third])
    assert is_fair(rates)
    assert sum(rates) >= 0.9 * alone


@BOTH
def test_a_small_transfer_beside_two_old_ones_does_not_wait_for_credit(up: bool) -> None:
    """As 5 MB beside two that have run for 20 and 10 s on lines twenty times as fast: it takes
    some round trips, where it took more than ten times as long as alone."""
    transfers = Transfers(World(1, FAR, limits=LIMITS), up=up)
    alone = transfers.time(250_000)
    transfers.start()
    transfers.world.run_for(4)
    transfers.start()
    transfers.world.run_for(4)
    assert transfers.time(250_000) <= 2.5 * alone


@BOTH
def test_idle_streams_leave_the_credit_to_those_that_are_used(up: bool) -> None:
    used = Script(writes=((0.0, 40_000),), closes=False)
    transfers = Transfers(World(1, [Path(0.05, 2e6, 128 * KIB)] * 2, limits=LIMITS), up=up)
    alone = transfers.time(3_000_000)
    for _ in range(60):
        transfers.start(used)
    transfers.world.run_for(5)
    assert transfers.out <= LIMITS.window_pool // 4
    assert transfers.time(3_000_000) <= 1.2 * alone


@BOTH
def test_what_a_stream_needs_no_more_comes_back(up: bool) -> None:
    """One that has been fast and then sends a little now and then keeps what it uses."""
    trickle = tuple((6.0 + 0.1 * i, 10_000) for i in range(300))
    script = Script(writes=((0.0, 8_000_000), *trickle))
    transfers = Transfers(World(1, FAR, limits=LIMITS), up=up)
    slow = transfers.start(script)
    transfers.world.run_for(3.0)
    assert transfers.out >= 0.6 * LIMITS.window_pool
    transfers.world.run(lambda: transfers.arrived(slow) >= 8_000_000, within=30)
    transfers.world.run_for(4.0)
    assert transfers.out <= LIMITS.window_pool // 4
    assert transfers.rates(3, [slow])[0] == pytest.approx(100_000, rel=0.15)


@BOTH
def test_credit_comes_back_though_what_asks_for_it_is_lost(up: bool) -> None:
    used = Script(writes=((0.0, 40_000),), closes=False)
    world = World(1, [Path(0.05, 2e6, 128 * KIB)] * 3, limits=LIMITS)
    transfers = Transfers(world, up=up)
    for _ in range(60):
        transfers.start(used)
    for i in range(80):
        world.clock.at(world.clock.now + 0.1 * i, partial(kill_one, world, i % 2))
    world.run_for(9)
    assert world.deaths >= 80
    assert transfers.out <= LIMITS.window_pool // 4
    assert all(transfers.arrived(number) == 40_000 for number in range(60))
