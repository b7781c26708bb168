"""Hypothesis thinks up networks, applications and faults: what went in comes out, or a reset."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from fastmtcp.engine.limits import KIB, Limits
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.sim.hosts import Script
from tests.sim.network import Path
from tests.sim.world import World

SIZES = st.one_of(st.just(0), st.integers(1, 100), st.integers(1, 20_000), st.integers(1, 300_000))
MOMENTS = st.floats(0, 2).map(lambda moment: round(moment, 3))
PATHS = st.builds(
    Path,
    latency=st.sampled_from([0.0005, 0.01, 0.05, 0.2]),
    rate=st.sampled_from([2e5, 1e6, 1e7]),
    buffer=st.sampled_from([1000, 16 * KIB, 64 * KIB, 256 * KIB]),
)
LIMITS = st.builds(
    Limits,
    floor_window=st.sampled_from([64 * KIB, 100_000]),
    start_window=st.sampled_from([64 * KIB, 200_000]),
    max_window=st.sampled_from([200_000, 400_000]),
    window_pool=st.sampled_from([0, 100_000, 1_000_000]),
    send_buffer=st.sampled_from([64 * KIB, 200_000, 1_000_000]),
    backlog=st.sampled_from([32 * KIB, 100_000]),
    max_streams=st.sampled_from([3, 100]),
    ack_delay=st.sampled_from([0.0, 0.02, 0.1]),
)
SCRIPTS = st.builds(
    Script,
    writes=st.lists(st.tuples(MOMENTS, SIZES), max_size=4).map(lambda w: tuple(sorted(w))),
    bite=st.sampled_from([None, None, 5000]),
    pause=st.sampled_from([0.0, 0.01]),
    deaf=st.one_of(st.none(), st.tuples(MOMENTS, MOMENTS).map(lambda t: (min(t), max(t)))),
    reset_at=st.one_of(st.none(), st.none(), st.none(), MOMENTS),
)
SEEN = st.sampled_from([0.0, 0.0, 0.003, 0.05, 1.0, None])


@dataclass(frozen=True)
class Fault:
    """Something that happens to one of the connections."""

    when: float
    which: int
    kind: str
    client_sees: float | None
    server_sees: float | None
    drop: bool

    def happen(self, world: World) -> None:
        live = world.live()
        if not live:
            return
        link = live[self.which % len(live)]
        pipes = {"up": [link.up], "down": [link.down], "pause": [link.up, link.down]}
        if self.kind == "death":
            world.kill(
                link, client_sees=self.client_sees, server_sees=self.server_sees, drop=self.drop
            )
        elif self.kind == "all die":
            for link in live:
                world.kill(
                    link,
                    client_sees=self.client_sees,
                    server_sees=self.server_sees,
                    drop=self.drop,
                )
        else:
            for pipe in pipes[self.kind]:
                pipe.pause()
                world.clock.after(0.7, pipe.resume)


FAULTS = st.builds(
    Fault,
    when=MOMENTS,
    which=st.integers(0, 5),
    kind=st.sampled_from(["death", "death", "death", "all die", "up", "down", "pause"]),
    client_sees=SEEN,
    server_sees=SEEN,
    drop=st.booleans(),
)


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**16),
    paths=st.lists(PATHS, min_size=1, max_size=4),
    limits=LIMITS,
    server_limits=LIMITS,
    streams=st.lists(
        st.tuples(MOMENTS, SCRIPTS, SCRIPTS, st.booleans(), st.sampled_from([0.0, 0.0, 0.5])),
        min_size=1,
        max_size=6,
    ),
    faults=st.lists(FAULTS, max_size=8),
    redial=st.sampled_from([0.001, 0.1, 2.0]),
)
def test_any_schedule(
    seed: int,
    paths: list[Path],
    limits: Limits,
    server_limits: Limits,
    streams: list[tuple[float, Script, Script, bool, float]],
    faults: list[Fault],
    redial: float,
) -> None:
    world = World(seed, paths, limits=limits, server_limits=server_limits, redial=redial)
    most = min(limits.max_streams, server_limits.max_streams)
    for when, client, server, waits, connect_time in streams[:most]:
        if waits:
            server = Script(
                writes=server.writes, closes=False, bite=server.bite, pause=server.pause
            )
        world.open_at(when, client, server, connect_time=connect_time)
    for fault in faults:
        world.clock.at(fault.when, partial(fault.happen, world))
    world.run_for(2.1)
    world.run_all()
    resets = sum(app.reset is not None for app in world.client.apps.values())
    event(f"deaths: {min(world.deaths, 3)}")
    event(f"resets: {min(resets, 3)}")
    wanted = any(
        script.reset_at is not None
        for _, client, server, _, _ in streams
        for script in (client, server)
    )
    # A fault of the network alone never costs a stream.
    assert wanted or not resets


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    paths=st.lists(st.sampled_from([Path(0.01, 1e6), Path(0.05, 1e7)]), min_size=1, max_size=3),
    streams=st.lists(
        st.tuples(MOMENTS, SIZES, SIZES, MOMENTS, st.booleans()), min_size=1, max_size=5
    ),
    death=st.one_of(st.none(), MOMENTS),
)
def test_what_was_written_before_a_reset_arrives(
    seed: int,
    paths: list[Path],
    streams: list[tuple[float, int, int, float, bool]],
    death: float | None,
) -> None:
    """Whole, as the reader reads and a line is there; whichever subflow dies meanwhile."""
    world = World(seed, paths)
    for when, up, down, reset_at, by_client in streams:
        client = Script(((0.0, up),), reset_at=reset_at if by_client else None)
        server = Script(((0.0, down),), reset_at=None if by_client else reset_at)
        world.open_at(when, client, server)
    if death is not None:
        world.clock.at(death, lambda: world.kill(world.live()[0]))
    world.run_for(4.1)
    world.run_all()
    world.check_last_bytes()


class WorldMachine(RuleBasedStateMachine):
    """The same, step by step, so that faults come when something has just happened."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(0, [Path(0.01, 1e6), Path(0.03, 3e5)], redial=0.2)

    @precondition(lambda self: len(self.world.client.session.streams) < 5)
    @rule(up=SIZES, down=SIZES, waits=st.booleans(), deaf=st.booleans())
    def open(self, up: int, down: int, waits: bool, deaf: bool) -> None:
        self.world.open(
            Script(writes=((0.0, up),), deaf=(0.0, 1.0) if deaf else None),
            Script(writes=((0.0, down),), closes=not waits),
        )

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.01, 0.03, 0.2, 1.5]))
    def wait(self, seconds: float) -> None:
        self.world.run_for(seconds)

    @precondition(lambda self: self.world.live())
    @rule(data=st.data(), client_sees=SEEN, server_sees=SEEN, drop=st.booleans())
    def kill(
        self,
        data: st.DataObject,
        client_sees: float | None,
        server_sees: float | None,
        drop: bool,
    ) -> None:
        link = data.draw(st.sampled_from(range(len(self.world.live()))))
        self.world.kill(
            self.world.live()[link], client_sees=client_sees, server_sees=server_sees, drop=drop
        )

    @precondition(lambda self: self.world.live())
    @rule(data=st.data(), up=st.booleans(), seconds=st.sampled_from([0.05, 1.0, 8.0]))
    def pause(self, data: st.DataObject, up: bool, seconds: float) -> None:
        link = self.world.live()[data.draw(st.integers(0, len(self.world.live()) - 1))]
        pipe = link.up if up else link.down
        pipe.pause()
        self.world.clock.after(seconds, pipe.resume)

    @precondition(lambda self: self.world.client.session.streams)
    @rule(data=st.data(), by_client=st.booleans())
    def reset(self, data: st.DataObject, by_client: bool) -> None:
        host = self.world.client if by_client else self.world.server
        if host.apps:
            host.apps[data.draw(st.sampled_from(sorted(host.apps)))].abort()

    @invariant()
    def no_byte_is_wrong(self) -> None:
        for stream_id, mine in self.world.client.apps.items():
            theirs = self.world.server.apps.get(stream_id)
            if theirs is not None:
                assert theirs.received == mine.sent[: len(theirs.received)]
                assert mine.received == theirs.sent[: len(mine.received)]

    def teardown(self) -> None:
        self.world.run_all()


WorldMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30)
TestWorld = WorldMachine.TestCase
