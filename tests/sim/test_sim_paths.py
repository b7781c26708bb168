"""Unequal, bad, silent and flapping paths: what one stream gets, with floors.

Rates are a quarter of those that perf/paths.sh uses, and times are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from fastmtcp.engine.limits import KIB, MIB, Limits

from tests.sim.hosts import App, Script
from tests.sim.network import Path
from tests.sim.world import World


def path(mbit: float, rtt_ms: float) -> Path:
    rate = mbit * 1e6 / 8 / 4
    return Path(rtt_ms / 2e3, rate, max(16 * KIB, int(rate * 0.015)))


LIMITS = Limits()
FOUR = [path(160, 40)] * 4
UNEQUAL_4 = [path(160, 20), path(80, 40), path(40, 100), path(10, 200)]
UNEQUAL_8 = [
    path(mbit, rtt)
    for mbit, rtt in (
        (50, 20), (40, 40), (35, 60), (25, 80), (20, 100), (15, 120), (10, 140), (5, 160)
    )
]  # fmt: skip


def start(paths: Sequence[Path], size: int, up: bool, seed: int = 1) -> tuple[World, App]:
    """A world in which one stream carries `size` bytes one way."""
    world = World(seed, paths, limits=LIMITS)
    bulk, nothing = Script(writes=((0.0, size),)), Script()
    app = world.open(bulk, nothing) if up else world.open(nothing, bulk)
    return world, app


def received(world: World, app: App, up: bool) -> int:
    if up:
        return world.arrived(app)
    return len(app.received)


def goodput(paths: Sequence[Path], up: bool, seconds: float = 4.0, after: float = 1.5) -> float:
    """Bytes a second of one stream, once it has run for `after` seconds."""
    total = sum(each.rate for each in paths)
    world, app = start(paths, int(total * (seconds + after)) + 4 * MIB, up)
    world.run_for(after)
    before = received(world, app, up)
    world.run_for(seconds)
    return (received(world, app, up) - before) / seconds


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize(
    ("paths", "floor"),
    [
        ([path(160, 40)], 0.98),
        (UNEQUAL_4, 0.95),
        (UNEQUAL_8, 0.90),
        ([path(100, 20), path(5, 300)], 0.90),
    ],
    ids=["one", "four", "eight", "slow"],
)
def test_unequal_paths_add_up(paths: Sequence[Path], floor: float, up: bool) -> None:
    assert goodput(paths, up) >= floor * sum(each.rate for each in paths)


@pytest.mark.parametrize("up", [True, False])
def test_where_the_system_tells_nothing_the_reports_do(up: bool) -> None:
    paths = [replace(path, blind=True) for path in UNEQUAL_4]
    assert goodput(paths, up) >= 0.85 * sum(path.rate for path in paths)


def test_silence_is_found_by_the_reports_alone() -> None:
    world, app = start([replace(path, blind=True) for path in FOUR], 30 * MIB, up=True)
    world.run_for(0.5)
    world.links[2].up.pause()
    world.links[2].down.pause()
    world.run(lambda: received(world, app, True) > 25 * MIB, within=3.0)
    world.run_all()


@pytest.mark.parametrize(
    "bad",
    [path(5, 300), path(1, 2000), path(0.5, 600), path(0.1, 3000)],
    ids=lambda bad: f"{bad.rate * 32 / 1e6:g}mbit",
)
def test_a_bad_path_costs_the_good_one_nothing(bad: Path) -> None:
    good = path(100, 20)
    assert goodput([good, bad], up=True) >= 0.97 * good.rate


@pytest.mark.parametrize("up", [True, False])
def test_one_of_four_goes_silent(up: bool) -> None:
    """Its bytes go out again on the others: the receiver waits no longer than for that."""
    world, app = start(FOUR, 40 * MIB, up)
    world.run_for(0.5)
    world.links[2].up.pause()
    world.links[2].down.pause()
    began = world.clock.now
    longest, last, count = 0.0, began, received(world, app, up)
    while not world.is_done():
        world.run_for(0.005)
        now = received(world, app, up)
        if now > count:
            longest = max(longest, world.clock.now - last)
            last, count = world.clock.now, now
        assert world.clock.now < began + 30
    assert longest <= 0.35
    world.check_transfers()


@pytest.mark.parametrize("up", [True, False])
def test_all_four_silent_for_a_while(up: bool) -> None:
    """The transfer goes on as soon as anything gets through again."""
    world, app = start(FOUR, 20 * MIB, up)
    world.run_for(0.4)
    world.redial = None  # there is no network
    for link in world.links:
        link.up.pause()
        link.down.pause()
    world.run_for(10.0)
    before = received(world, app, up)
    for link in world.live():
        link.up.resume()
        link.down.resume()
    world.run(lambda: received(world, app, up) > before, within=1.5)
    world.run_all()


def test_flapping_paths_cost_the_steady_ones_nothing() -> None:
    steady = goodput(FOUR[:2], up=True, seconds=3.0)
    world, app = start(FOUR, 120 * MIB, up=True)
    world.run_for(1.5)
    before = received(world, app, True)
    silent = False
    for _ in range(6):
        silent = not silent
        for link in world.live():
            if link.slot >= 2:
                for pipe in (link.up, link.down):
                    if silent:
                        pipe.pause()
                    else:
                        pipe.resume()
        world.run_for(0.7)
    assert (received(world, app, True) - before) / 4.2 >= 0.9 * steady
    for link in world.live():
        link.up.resume()
        link.down.resume()
    world.run_all()


def test_the_same_run_twice_gives_the_same_bytes_on_the_wire() -> None:
    wires = []
    for _ in range(2):
        world, _app = start(UNEQUAL_4, 8 * MIB, up=True, seed=7)
        world.run_for(2.0)
        wires.append(world.client.wire.hexdigest())
    assert wires[0] == wires[1]
