"""A connection is retired in the middle of transfers: both sides agree, nothing is sent twice."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import KIB, MIB, Limits
from fastmtcp.engine.outbound import Outbound
from fastmtcp.engine.subflows.subflow import Subflow

from tests.sim.hosts import Script
from tests.sim.network import Path
from tests.sim.test_sim_deaths import DEATHS, Killer
from tests.sim.world import World

PATHS = [Path(0.02, 2e6), Path(0.02, 2e6), Path(0.02, 2e6)]


def transfers(world: World) -> None:
    for size in (2 * MIB, 100 * KIB, 5):
        script = Script(writes=((0.0, size),))
        world.open(script, script)


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> list[Subflow]:
    """Subflows of which all that they carried has gone out again."""
    subflows: list[Subflow] = []
    reinject = Outbound.reinject

    def noted(outbound: Outbound, subflow: Subflow) -> None:
        subflows.append(subflow)
        reinject(outbound, subflow)

    monkeypatch.setattr(Outbound, "reinject", noted)
    return subflows


@pytest.mark.parametrize("moment", [0.0, 0.03, 0.1, 0.25, 0.4, 0.7])
def test_nothing_is_sent_twice(moment: float, again: list[Subflow]) -> None:
    world = World(7, PATHS, limits=Limits())
    transfers(world)
    world.run_for(moment)
    link = world.links[1]
    world.client.session.retire(link.client.subflow)
    world.client.settle()
    world.run(lambda: link.client.closed and link.server.closed, within=3)
    assert again == []
    for host in (world.client, world.server):
        assert sorted(host.session.subflows) == [0, 2]
        assert host.session.past.count == 1
        assert not host.session._outbox._retires
    world.run_all()
    assert again == []
    assert all(app.reset is None for app in world.client.apps.values())


def test_one_after_the_other_is_replaced(again: list[Subflow]) -> None:
    """As connections are that a network slows down: make before break."""
    world = World(3, PATHS, limits=Limits())
    transfers(world)
    for _ in range(6):
        oldest = next(link for link in world.live() if not link.client.subflow.retiring)
        world.connect(oldest.slot)
        world.run_for(0.05)
        world.client.session.retire(oldest.client.subflow)
        world.client.settle()
        world.run_for(0.05)
    world.run_all()
    assert len(world.live()) == 3
    assert again == []


@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS.keys())
def test_one_that_dies_while_it_retires_is_repaired(death: Killer) -> None:
    for moment in range(12):
        world = World(moment, PATHS, limits=Limits())
        transfers(world)
        world.run_for(0.1)
        link = world.links[1]
        world.client.session.retire(link.client.subflow)
        world.client.settle()
        world.run_for(moment * 0.01)
        death(world, link)
        world.run_all()
        assert all(app.reset is None for app in world.client.apps.values())


def test_a_session_whose_subflows_all_retire_goes_on_with_the_next_one() -> None:
    world = World(5, PATHS[:2], limits=Limits(), redial=None)
    transfers(world)
    world.run_for(0.1)
    for link in world.live():
        world.client.session.retire(link.client.subflow)
    world.client.settle()
    world.run(lambda: not world.client.ends and not world.server.ends, within=3)
    world.connect(0)
    world.run_all()
    assert all(app.reset is None for app in world.client.apps.values())
