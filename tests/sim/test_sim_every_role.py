"""Every role, every fault: nothing is lost, and nobody waits while a connection could bring it.

Hypothesis thinks up sets of subflows (both ways, up, down, backup, express; fast, slow and far
ones, with small and large buffers), streams over them, and what happens to them: deaths that both
sides see, or one, or nobody; black holes; pauses of one direction; everything dying at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import pytest
from fastmtcp.engine.limits import KIB, MIB, Limits
from fastmtcp.engine.subflows.role import Role
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

from tests.sim.hosts import App, Script
from tests.sim.network import Path
from tests.sim.watching import ROLES, PauseWatch, black_hole, paused_one_way
from tests.sim.world import Link, World

LONGEST = 2.5
"""Seconds that a willing reader may wait while a usable subflow exists."""

LIMITS = st.builds(
    lambda window, start, held: Limits(
        floor_window=64 * KIB,
        start_window=min(window, start),
        max_window=window,
        window_pool=8 * MIB,
        send_buffer=held,
    ),
    st.sampled_from([256 * KIB, 384 * KIB, 2 * MIB]),
    st.sampled_from([64 * KIB, 384 * KIB]),
    st.sampled_from([256 * KIB, 8 * MIB]),
)

SIZES = st.sampled_from([1, 500, 5_000, 60_000, 400_000, 3_000_000, 3_000_000])
MOMENTS = st.floats(0, 3).map(lambda moment: round(moment, 3))


def line(latency: float, rate: float, buffer: int, role: Role) -> Path:
    # A socket that holds more than 50 ms of its line is full for that long by itself.
    return Path(latency, rate, max(4 * KIB, min(buffer, int(rate * 0.05))), role=role)


NEAR = st.sampled_from([0.0005, 0.01, 0.03])
FAR = st.just(0.3)
RATES = st.sampled_from([0.5e6, 2e6])
BUFFERS = st.sampled_from([4 * KIB, 64 * KIB, 256 * KIB])


def lines(roles: Sequence[Role]) -> st.SearchStrategy[Path]:
    return st.builds(
        line,
        st.one_of(NEAR, FAR),
        RATES,
        BUFFERS,
        st.sampled_from(roles),
    )


TWO_WAYS = lines([Role.BOTH])
OTHERS = lines(list(ROLES.values()))
POOLS = st.one_of(
    st.tuples(TWO_WAYS, st.lists(OTHERS, min_size=1, max_size=4)).map(lambda p: [p[0], *p[1]]),
    st.tuples(lines([Role.UP]), lines([Role.DOWN]), st.lists(OTHERS, max_size=3)).map(
        lambda p: [p[0], p[1], *p[2]]
    ),
    st.builds(line, FAR, RATES, BUFFERS, st.just(Role.BOTH)).map(lambda path: [path, path]),
    st.builds(line, NEAR, RATES, BUFFERS, st.just(Role.BOTH)).flatmap(
        lambda near: st.builds(line, FAR, RATES, BUFFERS, st.just(Role.BOTH)).map(
            lambda far: [near, near, far]
        )
    ),
)
"""Any mixture, lines for one direction each, only far ones, near ones beside a far one."""


@dataclass(frozen=True)
class Fault:
    """Something that happens to one of the connections, or to all."""

    when: float
    which: int
    kind: str
    seconds: float
    client_sees: float | None
    server_sees: float | None

    def happen(self, world: World) -> None:
        live = world.live()
        if not live:
            return
        link = live[self.which % len(live)]
        # A connection that is silent for long is given up, which must not leave nothing.
        seconds = self.seconds if world.redial is not None else min(self.seconds, 1.0)
        match self.kind:
            case "death" if world.redial is not None or is_spare(link, live):
                world.kill(link, client_sees=self.client_sees, server_sees=self.server_sees)
            case "all die" if world.redial is not None:
                for each in live:
                    world.kill(each, client_sees=self.client_sees, server_sees=self.server_sees)
            case "hole":
                black_hole(world, link, seconds)
            case "all silent":
                for each in live:
                    black_hole(world, each, seconds)
            case "up" | "down":
                paused_one_way(world, link, self.kind == "up", seconds)


def is_spare(link: Link, live: list[Link]) -> bool:
    """True if the others can do without it."""
    roles = [other.up.path.role for other in live if other is not link]
    return any(role & Role.UP for role in roles) and any(role & Role.DOWN for role in roles)


SEEN = st.sampled_from([0.0, 0.0, 0.05, 0.5, None])
FAULTS = st.builds(
    Fault,
    when=MOMENTS,
    which=st.integers(0, 5),
    kind=st.sampled_from(["death", "death", "hole", "hole", "up", "down", "all die", "all silent"]),
    seconds=st.sampled_from([0.17, 0.3, 1.0, 4.0, 15.0]),
    client_sees=SEEN,
    server_sees=SEEN,
)


def and_then_another_dies(hesitates: Fault, after: float) -> list[Fault]:
    """One connection stands still for a moment, and when it is well again another one dies."""
    first = replace(hesitates, kind="up", seconds=0.17)
    seen = replace(first, when=first.when + 0.2 + after, which=first.which + 1, kind="death")
    return [first, replace(seen, client_sees=0.0, server_sees=0.0)]


TROUBLES = st.one_of(
    st.lists(FAULTS, max_size=6),
    st.builds(and_then_another_dies, FAULTS, st.floats(0, 1)),
)


@settings(max_examples=50, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    seed=st.integers(0, 2**16),
    pool=POOLS,
    streams=st.lists(
        st.tuples(MOMENTS, SIZES, SIZES, st.sampled_from([None, None, None, 20_000])),
        min_size=1,
        max_size=6,
    ),
    faults=TROUBLES,
    limits=LIMITS,
    redial=st.sampled_from([0.05, 1.0, None]),
)
def test_nothing_is_lost_and_nobody_waits(
    seed: int,
    pool: list[Path],
    streams: list[tuple[float, int, int, int | None]],
    faults: list[Fault],
    limits: Limits,
    redial: float | None,
) -> None:
    world = World(seed, pool, limits=limits, redial=redial)
    watch = PauseWatch(world)
    for when, up, down, bite in streams:
        world.open_at(
            when,
            Script(writes=((0.0, up),), bite=bite, pause=0.005),
            Script(writes=((0.0, down),)),
        )
    for fault in faults:
        world.clock.at(fault.when, partial(fault.happen, world))
    world.run_for(3.1)
    world.run_all()
    event(f"deaths: {min(world.deaths, 3)}")
    assert all(app.reset is None for app in world.client.apps.values())
    assert watch.longest <= LONGEST, watch.where


def test_the_watch_sees_a_pause_beside_a_connection_that_works_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(1, [Path(0.01, 1e6), Path(0.01, 1e6)], redial=None)
    watch = PauseWatch(world)
    world.open(Script(writes=((0.0, 20 * MIB),)), Script())
    world.run_for(0.2)
    for link in world.live():
        black_hole(world, link, 4.0)
    world.run_for(4.5)
    assert watch.longest < 1.0
    # A fault of the host: what has arrived is passed on to nobody.
    monkeypatch.setattr(App, "_read", lambda _: None)
    world.run_for(3.0)
    assert watch.longest > 2.0
