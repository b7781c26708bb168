"""How a service ends: when its sessions are quiet, or its time is up; once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import pytest
from fastmtcp.driver.drain import Drain
from fastmtcp.driver.session import SessionDriver
from fastmtcp.io.loop import Loop

from tests.io.net import run_until, turn


class Driver:
    """Of a session that is quiet when the test says so."""

    def __init__(self) -> None:
        self.is_quiet = False
        self.on_quiet: Callable[[], None] | None = None

    def become_quiet(self) -> None:
        self.is_quiet = True
        assert self.on_quiet is not None
        self.on_quiet()


class Service:
    def __init__(self, sessions: int) -> None:
        self.loop = Loop()
        self.drivers = [Driver() for _ in range(sessions)]
        self.ends: list[str] = []
        self.drain = Drain(
            self.loop,
            lambda: cast("list[SessionDriver]", self.drivers),
            lambda: self.ends.append("stop"),
        )

    def begin(self) -> None:
        self.drain.begin(lambda: self.ends.append("done"))
        self.drain.check()

    def run(self) -> None:
        run_until(self.loop, lambda: self.drain.over, "the drain is over")
        turn(self.loop, 5)


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    service = Service(request.param)
    yield service
    service.loop.close()


@pytest.mark.parametrize("service", [0], indirect=True)
def test_with_nothing_open_it_stops_at_once(service: Service) -> None:
    service.drain.check()
    turn(service.loop, 3)
    assert not service.drain.begun
    service.begin()
    assert service.ends == []
    turn(service.loop, 3)
    assert service.ends == ["stop", "done"]


@pytest.mark.parametrize("service", [2], indirect=True)
def test_it_waits_for_the_last_session(service: Service) -> None:
    first, second = service.drivers
    service.begin()
    first.become_quiet()
    first.become_quiet()
    turn(service.loop, 3)
    assert service.ends == []
    second.become_quiet()
    service.run()
    assert service.ends == ["stop", "done"]


@pytest.mark.parametrize("service", [1], indirect=True)
def test_a_session_that_is_quiet_for_a_moment_is_not_at_its_end(service: Service) -> None:
    (driver,) = service.drivers
    service.begin()
    driver.become_quiet()
    driver.is_quiet = False
    settled: list[int] = []
    service.loop.call_later(0.1, lambda: settled.append(1))
    run_until(service.loop, lambda: settled, "it has settled")
    assert service.ends == []
    driver.become_quiet()
    service.run()
    assert service.ends == ["stop", "done"]


@pytest.mark.parametrize("service", [1], indirect=True)
def test_its_time_is_up_only_once(service: Service) -> None:
    service.begin()
    service.drain.limit(None)
    turn(service.loop, 3)
    assert service.ends == []
    service.drain.limit(0.05)
    service.drain.limit(0)
    service.run()
    service.drivers[0].become_quiet()
    service.drain.check()
    over: list[int] = []
    service.loop.call_later(0.1, lambda: over.append(1))
    run_until(service.loop, lambda: over, "all times are over")
    assert service.ends == ["stop", "done"]
