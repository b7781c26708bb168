"""Connections die, seen by both sides, by one first, or by one only: nothing is lost (rule 1)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastmtcp.engine.limits import KIB, MIB, Limits
from fastmtcp.engine.wire.errors import ResetCode, SessionCode

from tests.sim.hosts import Script
from tests.sim.network import Path
from tests.sim.world import SMALL, Link, World

Killer = Callable[[World, Link], None]

DEATHS: dict[str, Killer] = {
    "both see it": lambda world, link: world.kill(link),
    "both see it, what is on its way arrives": lambda world, link: world.kill(
        link, client_sees=0.02, server_sees=0.02, drop=False
    ),
    "client first": lambda world, link: world.kill(link, server_sees=0.5, drop=False),
    "server first": lambda world, link: world.kill(link, client_sees=0.5, drop=False),
    "client only": lambda world, link: world.kill(link, server_sees=None),
    "server only": lambda world, link: world.kill(link, client_sees=None),
    "nobody": lambda world, link: world.kill(link, client_sees=None, server_sees=None),
}


def both(size: int) -> tuple[Script, Script]:
    return Script(writes=((0.0, size),)), Script(writes=((0.0, size),))


@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS.keys())
def test_one_of_several_dies_at_any_moment(death: Killer) -> None:
    for moment in range(12):
        world = World(moment, [Path(0.01, 2e6), Path(0.02, 1e6), Path(0.005, 5e5)])
        for size in (300 * KIB, 5, 0):
            world.open(*both(size))
        world.run_for(moment * 0.01)
        death(world, world.links[moment % 3])
        world.run_all()
        assert all(app.reset is None for app in world.client.apps.values())


@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS.keys())
def test_one_after_the_other_dies_again_and_again(death: Killer) -> None:
    world = World(1, [Path(), Path(), Path()])
    for _ in range(3):
        world.open(*both(1 * MIB))
    for turn in range(20):
        world.run_for(0.05)
        live = world.live()
        if live:
            death(world, live[turn % len(live)])
    world.run_all()
    assert world.deaths >= 3
    assert all(app.reset is None for app in world.client.apps.values())


@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS.keys())
def test_all_die_at_once_and_come_back(death: Killer) -> None:
    world = World(2, [Path(), Path(), Path()], redial=3.0)
    world.open(*both(1 * MIB))
    world.open(*both(0))
    for _ in range(3):
        world.run_for(0.1)
        for link in world.live():
            death(world, link)
        world.run(lambda: not world.client.ends, within=30)
        world.open(*both(100 * KIB))
        world.run(lambda: len(world.client.ends) == 3, within=10)
    world.run_all()
    assert all(app.reset is None for app in world.client.apps.values())


def test_what_two_sides_see_of_a_death_is_repaired_without_waiting_for_a_timeout() -> None:
    """One side saw it: an ACK or credit of the other may be in there. It asks, and goes on."""
    for moment in range(20):
        world = World(moment, [Path(), Path()])
        app = world.open(*both(1 * MIB))
        world.run_for(0.05 + moment * 0.007)
        # The other side's kernel sees it one second later.
        world.kill(world.links[moment % 2], client_sees=0.0, server_sees=1.0)
        world.run(lambda app=app, world=world: world.is_served(app), within=4.0)  # type: ignore[misc]
        world.run_all()


def test_a_client_learns_that_its_target_is_connected_whatever_dies() -> None:
    """Nothing is said but that: the target waits for the application, the application for it."""
    for moment in range(20):
        world = World(moment, [Path(), Path()])
        app = world.open(Script(closes=False), Script(closes=False), connect_time=2.0)
        world.run_for(2.0 + 0.003 * moment)
        assert moment or not app.stream.connected
        for link in world.live():
            world.kill(link, client_sees=0.4, server_sees=0.1 * moment)
        world.run(lambda app=app: app.stream.connected, within=5.0)  # type: ignore[misc]


def test_silence_is_noticed() -> None:
    limits = Limits(ping_interval=5, subflow_timeout=15)
    world = World(3, [Path(), Path()], limits=limits)
    world.open(*both(2 * MIB))
    world.run_for(0.1)
    world.kill(world.links[0], client_sees=None, server_sees=None)
    world.run(lambda: 0 not in world.client.ends, within=20)
    world.run(lambda: 0 not in world.server.ends, within=5)
    world.run_all()


def test_an_idle_connection_is_not_taken_for_dead() -> None:
    world = World(4)
    world.open(Script(writes=((0, 10), (100, 10))), Script(writes=((200, 10),)))
    world.run_all(within=250)
    assert len(world.links) == 2


def test_a_pause_loses_nothing_and_is_no_death() -> None:
    world = World(5, [Path(), Path()])
    for _ in range(5):
        world.open(*both(500 * KIB))
    for turn in range(10):
        world.run_for(0.05)
        link = world.links[turn % 2]
        link.up.pause()
        link.down.pause()
        world.run_for(1.0)
        link.up.resume()
        link.down.resume()
    world.run_all()
    assert len(world.links) == 2


def test_a_stalled_reader_survives_the_death_of_everything() -> None:
    world = World(6, redial=0.5)
    world.open(
        Script(writes=((0, 1 * MIB),)),
        Script(writes=((0, 1 * MIB),), deaf=(0.0, 40.0)),
    )
    for _ in range(8):
        world.run_for(3.0)
        for link in world.live():
            world.kill(link, client_sees=0.0, server_sees=None)
    world.run_all()
    assert all(app.reset is None for app in world.client.apps.values())


def test_credit_that_died_is_asked_for() -> None:
    """The reader goes on while the connection that carries its credit is dying unseen."""
    for moment in range(10):
        world = World(moment, [Path(), Path()])
        app = world.open(
            Script(writes=((0, 600 * KIB),)),
            Script(deaf=(0.0, 2.0)),
        )
        world.run_for(1.95 + moment * 0.01)
        world.kill(world.links[0], client_sees=0.2, server_sees=None)
        world.run(lambda app=app, world=world: world.is_served(app), within=5.0)  # type: ignore[misc]
        world.run_all()


def test_no_connection_for_too_long_resets_both_ends() -> None:
    """Truncated, so it must not look like an end (rule 2)."""
    world = World(7, limits=Limits(session_timeout=30), redial=None)
    apps = [world.open(*both(1 * MIB)), world.open(Script(closes=False), Script(closes=False))]
    world.run_for(0.2)
    for link in world.live():
        world.kill(link)
    world.run(lambda: world.client.session.ended is not None, within=32)
    world.run(lambda: world.server.session.ended is not None, within=2)
    for app in apps:
        for end in (app, world.peer(app)):
            assert end.reset is ResetCode.SESSION_LOST
            assert not end.eof
    assert world.client.session.ended is not None
    assert world.client.session.ended[0] == SessionCode.TIMEOUT
    world.check_transfers()
    world.check_nothing_is_left()


def test_a_session_that_ends_takes_no_complete_stream_with_it() -> None:
    """Everything has arrived and both ends know: only a slow reader is not ready yet."""
    world = World(8, limits=Limits(session_timeout=30), redial=None)
    app = world.open(
        Script(writes=((0.0, 50 * KIB),)), Script(writes=((0.0, 50 * KIB),), deaf=(0.0, 60.0))
    )
    world.run_for(2.0)
    for link in world.live():
        world.kill(link)
    world.run(lambda: world.server.session.ended is not None, within=32)
    theirs = world.peer(app)
    assert not theirs.over
    world.run(lambda: theirs.over, within=40)
    assert theirs.eof
    world.check_transfers()
    world.check_nothing_is_left()


def test_a_reset_gets_through_though_its_connection_dies() -> None:
    for moment in range(10):
        world = World(moment, [Path(), Path()])
        app = world.open(
            Script(writes=((0, 1 * MIB),), reset_at=0.1), Script(writes=((0, 1 * MIB),))
        )
        world.run_for(0.1)
        world.kill(world.links[moment % 2], client_sees=0.05 * moment, server_sees=None)
        world.run(lambda app=app, world=world: world.peer(app).reset is not None, within=2.0)  # type: ignore[misc]
        world.run_all()


def test_the_first_bytes_survive_a_death_at_any_moment() -> None:
    for moment in range(40):
        world = World(moment, [Path(), Path()], limits=SMALL)
        app = world.open(Script(writes=((0, 10),)), Script(writes=((0, 10),)))
        world.run_for(moment * 0.001)
        world.kill(world.links[0])
        world.kill(world.links[1], drop=False)
        world.run_all()
        assert app.received == world.peer(app).sent
