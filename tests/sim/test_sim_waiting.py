"""What a stream waits for because of the others: not for a connection that is not used, not for
room that bulk has taken, not for the first chunks of hundreds of others."""

from __future__ import annotations

from fastmtcp.engine.limits import KIB, MIB, Limits
from fastmtcp.engine.subflows.role import Role
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.sim.hosts import App, Script
from tests.sim.network import Path
from tests.sim.watching import PauseWatch
from tests.sim.world import World

NARROW = Limits(
    floor_window=64 * KIB,
    start_window=384 * KIB,
    max_window=384 * KIB,
    window_pool=8 * MIB,
    send_buffer=8 * MIB,
)
"""A far line beside near ones is refused all bulk: the window would be full before it arrives."""


def request(world: World, size: int = 1000) -> float:
    """Virtual seconds that a small request and its answer take."""
    began = world.clock.now
    app = world.open(Script(writes=((0.0, 1000),)), Script(writes=((0.0, size),)))
    world.run(lambda: world.is_served(app), 60)
    return world.clock.now - began


@settings(max_examples=10, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    seed=st.integers(0, 9),
    silence=st.floats(0.15, 0.19),
    when=st.floats(1.0, 1.2),
    death=st.floats(1.2, 1.4),
)
def test_a_connection_that_stood_still_for_a_moment_is_used_when_another_dies(
    seed: int, silence: float, when: float, death: float
) -> None:
    near, other, far = (
        Path(latency, rate, 128 * KIB) for latency, rate in ((0.01, 4e6), (0.012, 4e6), (0.3, 1e6))
    )
    express = Path(0.009, 4e6, 128 * KIB, role=Role.BOTH | Role.EXPRESS)
    world = World(seed, [near, other, far, express], limits=NARROW, redial=None)
    world.open(Script(writes=((0.0, 40_000_000),)), Script())
    world.open(Script(writes=tuple((0.2 * i, 120_000) for i in range(20))), Script())
    watch = PauseWatch(world)
    hesitating, dying = world.links[:2]
    world.clock.at(when, hesitating.up.pause)
    world.clock.at(when + silence, hesitating.up.resume)
    world.clock.at(when + silence + death, lambda: world.kill(dying))
    world.run_for(when + silence + death + 1.5)
    assert watch.longest <= 0.5, watch.where


def test_a_full_send_buffer_does_not_keep_a_request_waiting() -> None:
    limits = Limits(window_pool=16 * MIB, send_buffer=512 * KIB)
    world = World(1, [Path(0.1, 4e6, 256 * KIB)] * 2, limits=limits, redial=None)
    bulk = world.open(Script(writes=((0.0, 6_000_000),)), Script())
    world.run_for(1.0)
    assert world.client.session.held >= 0.9 * limits.send_buffer
    assert max(request(world) for _ in range(3)) <= 0.3
    assert not world.is_served(bulk)


def test_streams_that_want_more_than_the_send_buffer_share_it() -> None:
    limits = Limits(window_pool=16 * MIB, send_buffer=256 * KIB)
    world = World(1, [Path(0.1, 4e6, 256 * KIB)], limits=limits, redial=None)
    apps = [world.open(Script(writes=((0.0, 3_000_000),)), Script()) for _ in range(6)]
    world.run_for(3.0)
    arrived = [world.arrived(app) for app in apps]
    assert min(arrived) >= 0.5 * max(arrived) > 0


def test_a_request_beside_bulk_waits_for_the_near_line_and_does_not_take_the_far_one() -> None:
    lines = [Path(0.01, 4e6, 128 * KIB), Path(0.4, 4e6, 128 * KIB)]
    world = World(1, lines, limits=Limits(), redial=None)
    world.open(Script(writes=((0.0, 60_000_000),)), Script())
    world.run_for(4.0)
    took = []
    for _ in range(20):
        took.append(request(world))
        world.run_for(0.0137)
    assert max(took) <= 0.1


def test_a_request_does_not_wait_for_the_first_chunks_of_hundreds_of_downloads() -> None:
    express = Path(0.02, 10e6, 128 * KIB, role=Role.BOTH | Role.EXPRESS)
    plain = Path(0.02, 10e6, 128 * KIB)
    world = World(1, [plain, express], limits=Limits(), redial=None)
    downloads: list[App] = [
        world.open(Script(), Script(writes=((0.0, 60_000),))) for _ in range(150)
    ]
    world.run_for(0.1)
    assert request(world) <= 0.15
    assert sum(world.is_served(app) for app in downloads) < 100
