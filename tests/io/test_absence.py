"""A process that was stopped for a while: Ctrl-Z, a frozen cgroup, a paused machine."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from fastmtcp.config.server import ServerConfig
from fastmtcp.driver.service import Service
from fastmtcp.endpoint import Endpoint
from fastmtcp.engine.limits import Limits
from fastmtcp.errors import PeerError
from fastmtcp.io.dialer import Dial
from fastmtcp.io.loop import IN, Loop
from fastmtcp.io.resolver import Resolver
from fastmtcp.proxy.preface import PREFACE_TIMEOUT, Preface
from fastmtcp.proxy.requests import ProxyRequest
from fastmtcp.workers import supervisor as supervisor_module
from fastmtcp.workers.ports import Ports
from fastmtcp.workers.supervisor import Supervisor

from tests.io.joined import Joined
from tests.io.net import is_reset, run_until, tcp_pair, turn

REQUEST = b"\x05\x01\x00"
WANTED = b"\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50"


def _nothing() -> None:
    pass


class Stopped:
    """Stops the process of `loop`, as far as it can tell: the clock jumps while it waits, and its
    poll says nothing, as after EINTR."""

    def __init__(self, loop: Loop) -> None:
        self._epoll: select.epoll = loop._epoll
        self._jumped = 0.0
        self._seconds = 0.0
        self._meanwhile: Callable[[], None] = _nothing
        self._loop = loop
        clock = loop._clock
        loop._clock = lambda: clock() + self._jumped
        loop._epoll = self  # type: ignore[assignment]

    def stop(self, seconds: float, meanwhile: Callable[[], None] = _nothing) -> None:
        """In the next turn; returns when the process goes on."""
        self._seconds = seconds
        self._meanwhile = meanwhile
        run_until(self._loop, lambda: not self._seconds)

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        if not self._seconds:
            return self._epoll.poll(timeout, most)
        self._meanwhile()
        self._jumped += self._seconds
        self._seconds = 0.0
        return []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    assert not loop._handlers, "a descriptor is still watched"
    loop.close()


class TestTheClock:
    def test_it_stands_still_while_the_process_does(self, loop: Loop) -> None:
        stopped = Stopped(loop)
        before = loop.clock()
        fired: list[float] = []
        timer = loop.call_later(20, lambda: fired.append(loop.now))
        stopped.stop(33)
        turn(loop)
        assert loop.clock() - before < 20
        assert loop.clock() >= loop.now >= before
        assert not fired
        timer.cancel()

    def test_also_if_it_is_stopped_in_the_middle_of_a_turn(self, loop: Loop) -> None:
        stopped = Stopped(loop)
        before = loop.clock()
        asked: list[float] = []

        def stop() -> None:
            stopped._jumped += 33
            asked.append(loop.call_later(1, _nothing).when)

        loop.call_soon(stop)
        run_until(loop, lambda: asked)
        assert asked[0] - before < 20

    def test_waiting_is_no_absence(self, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
        stopped = Stopped(loop)
        fired: list[float] = []
        before = loop.clock()
        loop.call_later(33, lambda: fired.append(loop.now))

        def poll(_timeout: float, _most: int) -> list[tuple[int, int]]:
            stopped._jumped += 33
            return []

        monkeypatch.setattr(stopped, "poll", poll)
        loop.call_later(33, loop.stop)
        loop.run()
        assert fired
        assert fired[0] - before >= 33

    def test_on_a_slow_machine_time_goes_on(self, loop: Loop) -> None:
        stopped = Stopped(loop)
        turns: list[int] = []

        def slow() -> None:
            stopped._jumped += 1.5
            turns.append(1)
            loop.call_soon(slow)

        loop.call_soon(slow)
        loop.call_later(15, loop.stop)
        loop.run()
        assert 10 <= len(turns) <= 15


class TestWhatHasArrivedIsHeardFirst:
    def test_by_all_however_many_they_are(self, loop: Loop) -> None:
        stopped = Stopped(loop)
        pairs = [socket.socketpair() for _ in range(700)]
        heard: list[int] = []
        judged: list[int] = []

        def hear(mask: int) -> None:
            if mask & IN:
                heard.append(1)

        for _, theirs in pairs:
            loop.watch(theirs.fileno(), hear)
        turn(loop, 10)

        def meanwhile() -> None:
            for ours, _ in pairs:
                ours.send(b"x")

        # It is over within the wait: the stop takes nothing off it.
        loop.call_later(0.05, lambda: judged.append(len(heard)))
        stopped.stop(20, meanwhile)
        run_until(loop, lambda: judged)
        assert judged == [700]
        for ours, theirs in pairs:
            loop.unwatch(theirs.fileno())
            ours.close()
            theirs.close()

    def test_a_request_to_the_proxy(self, loop: Loop) -> None:
        stopped = Stopped(loop)
        ours, theirs = tcp_pair()
        done: list[int] = []
        errors: list[PeerError] = []
        request = ProxyRequest(None)
        Preface(loop, theirs, request, lambda: done.append(1), errors.append)
        turn(loop)
        stopped.stop(PREFACE_TIMEOUT + 1, lambda: ours.sendall(REQUEST))
        run_until(loop, lambda: ours.recv(2, socket.MSG_PEEK | socket.MSG_DONTWAIT) or errors)
        # The rest of the words needs another round trip.
        ours.sendall(WANTED)
        run_until(loop, lambda: done or errors)
        assert not errors
        loop.unwatch(theirs.fileno())
        ours.close()
        theirs.close()

    def test_a_connection_that_has_come_about(self, loop: Loop) -> None:
        stopped = Stopped(loop)
        resolver = Resolver(loop)
        found: list[socket.socket] = []
        errors: list[OSError] = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            where = Endpoint("127.0.0.1", listener.getsockname()[1])
            Dial(loop, resolver, where, 5, found.append, lambda error, _: errors.append(error))
            stopped.stop(6)
            run_until(loop, lambda: found or errors)
        assert not errors
        loop.unwatch(found[0].fileno())
        found[0].close()
        resolver.close()


class TestNobodyPays:
    def test_a_stream_on_which_nothing_could_move(self) -> None:
        limits = msgspec.structs.replace(Limits(), stream_idle_timeout=20.0)
        with Joined(1, limits) as joined:
            stopped = Stopped(joined.loop)
            application, target = joined.pair()
            stopped.stop(33)
            turn(joined.loop, 10)
            joined.loop.call_later(2, joined.loop.stop)
            joined.loop.run()
            assert not is_reset(application)
            assert not is_reset(target)

    def test_a_session_whose_subflows_could_not_come_back(self) -> None:
        with Joined(0) as joined:
            stopped = Stopped(joined.loop)
            stopped.stop(150)
            joined.loop.call_later(2, joined.loop.stop)
            joined.loop.run()
            assert not joined.client.ended
            assert not joined.server.ended

    def test_workers_that_were_stopped_with_their_supervisor(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        killed: list[int] = []
        monkeypatch.setattr(supervisor_module, "_kill", lambda pid, _number: killed.append(pid))
        config = ServerConfig(workers=2, control="off")
        ports = Ports((Endpoint("127.0.0.1", 0),), 2)
        supervisor = Supervisor("server", config, ports, _no_service)
        loop = supervisor._loop
        stopped = Stopped(loop)
        for number, worker in enumerate(supervisor._workers):
            worker.pid = 1000 + number
            worker.heard_at = loop.clock()
        loop.call_later(0.5, supervisor._watch_health)
        stopped.stop(33)
        loop.call_later(1, loop.stop)
        loop.run()
        assert not killed
        supervisor._workers[1].heard_at = loop.clock()
        supervisor._workers[0].heard_at = loop.clock() - 31
        run_until(loop, lambda: killed)
        assert killed == [1000]
        loop.close()
        for index in range(2):
            for sock in ports.of(index):
                sock.close()


def _no_service(*_: object) -> Service:
    raise AssertionError
