"""Paths that find their number of subflows, against real server workers and throttled lines."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator

import pytest
from fastmtcp.demo.throttle import Throttle
from fastmtcp.endpoint import Endpoint

from tests.io.net import Background, read_exactly, turn
from tests.io.test_pool import Client, Logs, World, said

RATE = 1_500_000


@pytest.fixture
def world(caplog: Logs) -> Iterator[World]:
    caplog.set_level(logging.DEBUG)
    world = World()
    yield world
    world.close()


@pytest.fixture
def throttled(world: World) -> int:
    """A port of a server behind a line that holds each connection to RATE bytes per second."""
    _, (port,) = world.server()
    throttle = Throttle(Endpoint("127.0.0.1", port), Endpoint("127.0.0.1", 0), rate=RATE)
    return world.stack.enter_context(throttle).address.port


def pour(sock: socket.socket) -> None:
    """Send until the other end is gone."""
    try:
        while True:
            sock.sendall(bytes(1 << 16))
    except OSError:
        pass


def ends(client: Client, direction: str) -> tuple[socket.socket, socket.socket]:
    """A stream's sender and its receiver."""
    near, far = client.stream()
    return (near, far) if direction == "up" else (far, near)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_grows_while_more_bring_more_and_shrinks_when_idle(
    world: World,
    throttled: int,
    direction: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Logs,
) -> None:
    monkeypatch.setattr("fastmtcp.client.pool.size.IDLE_AFTER", 1.0)
    # On a machine that does other things as well a step may fail; the next comes soon.
    monkeypatch.setattr("fastmtcp.client.pool.size.FIRST_HOLD", 0.5)
    monkeypatch.setattr("fastmtcp.client.pool.size.LONGEST_HOLD", 0.5)
    client = world.client(throttled, connections="1-4")
    client.until_up(1)
    sender, receiver = ends(client, direction)
    sending = Background(pour, sender)
    receiving = Background(drain, receiver)
    world.until(lambda: client.pool.wanted == 4, "it grows to the most")
    client.until_up(4)
    world.until(lambda: said(caplog, "4 connections are enough") == 1, "it is enough")
    receiver.shutdown(socket.SHUT_RDWR)
    sender.shutdown(socket.SHUT_RDWR)
    client.until_up(1)
    world.until(lambda: sending.done and receiving.done)


def drain(sock: socket.socket) -> None:
    """Read until the other end is gone."""
    try:
        while sock.recv(1 << 18):
            pass
    except OSError:
        pass


def test_a_slow_reader_gets_no_more_connections(world: World, throttled: int) -> None:
    client = world.client(throttled, connections="2-8")
    client.until_up(2)
    sender, receiver = ends(client, "down")
    Background(pour, sender)
    (path,) = client.pool.paths
    (stream,) = client.session.session.streams.values()
    moved = [(0, world.loop.now)]

    def stalled() -> bool:
        """Every buffer on the way is full, and whatever came of that is over."""
        position = stream.send.acked + stream.receive.data.next
        if position != moved[-1][0] or path.size.is_probing:
            moved.append((position, world.loop.now))
        return world.loop.now - moved[-1][1] > 0.5

    world.until(stalled, "the buffers are full")
    before = client.pool.wanted
    assert before < 8

    def read_slowly() -> None:
        for _ in range(12):
            read_exactly(receiver, 100_000)
            time.sleep(0.2)

    reading = Background(read_slowly)
    seen = set()

    def look() -> bool:
        seen.add(client.pool.wanted)
        return reading.done

    world.until(look)
    reading.result()
    assert seen == {before}


def test_a_backup_is_left_as_it_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmtcp.client.pool.size.FIRST_HOLD", 0.5)
    monkeypatch.setattr("fastmtcp.client.pool.size.LONGEST_HOLD", 0.5)
    _, ports = world.server(ports=2)
    lines = [
        world.stack.enter_context(
            Throttle(Endpoint("127.0.0.1", port), Endpoint("127.0.0.1", 0), rate=RATE)
        ).address.port
        for port in ports
    ]
    client = world.client(lines[0], f"{lines[1]},backup", connections="1-3")
    client.until_up(1, 1)
    sender, receiver = ends(client, "down")
    Background(pour, sender)
    Background(drain, receiver)
    world.until(lambda: client.up[0] > 1, "it grows")
    assert client.up[1] == 1
    # Without the first path it is the one that carries everything.
    client.pool.set_paths([client.pool.paths[1].spec])
    world.until(lambda: client.up[0] > 1, "it grows")
    receiver.shutdown(socket.SHUT_RDWR)


def test_an_idle_session_stays_at_the_least(world: World, throttled: int) -> None:
    client = world.client(throttled, connections="2-8")
    client.until_up(2)
    client.stream()
    turn(world.loop, 200)
    assert client.pool.wanted == 2


def test_many_automatic_paths_share_what_a_session_may_have(world: World, caplog: Logs) -> None:
    _, ports = world.server(ports=9)
    client = world.client(*ports, connections="1-64")
    client.until_up(*[1] * 9)
    assert [path.size.limits.most for path in client.pool.paths] == [13] * 9
    # One that had more gives it back to those that come.
    few = [path.spec for path in client.pool.paths][:2]
    client.pool.set_paths(few)
    assert [path.size.limits.most for path in client.pool.paths] == [60, 60]
    client.pool.set_target(client.pool.paths[0], 60)
    client.pool.paths[0].size.wanted = 60
    client.until_up(60, 1)
    client.pool.set_paths([*few, *(path for path in client.config_paths if path not in few)])
    client.until_up(13, *[1] * 8)
