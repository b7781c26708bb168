"""What comes and goes leaves nothing: no object of ours waits for the garbage collector.

The collector comes when it likes, and later the more there is. Until then a cycle keeps what it
refers to: buffers, sockets, the state of TLS.
"""

from __future__ import annotations

import gc
import socket
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from fastmtcp.engine.wire.errors import ResetCode
from fastmtcp.proxy.preface import Waiting

from tests.io import certificates
from tests.io.certificates import Files
from tests.io.net import Background, abort, data, is_reset, read_all, tcp_pair, turn
from tests.io.test_pool import Client, World

TIMES = 5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def world(files: Files) -> Iterator[World]:
    world = World(files)
    yield world
    world.close()


def cyclic(world: World, act: Callable[[], None]) -> Counter[str]:
    """Objects of this program that `act` leaves to the garbage collector, by their class."""
    turn(world.loop, 20)
    gc.collect()
    gc.disable()
    try:
        act()
        turn(world.loop, 20)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return Counter(
            type(one).__qualname__
            for one in gc.garbage
            if type(one).__module__.startswith("fastmtcp")
        )
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def connected(world: World, connections: int = 2) -> Client:
    _, (port,) = world.server()
    client = world.client(port, connections=connections)
    client.until_up(connections)
    world.until(lambda: client.has_express)
    return client


def empty(world: World, client: Client) -> bool:
    """No stream is left at either side."""
    drivers = [client.session.driver, *(one.driver for one in world.servers[0]._sessions.values())]
    return not any(driver.relays or driver.session.streams for driver in drivers)


def transfer(world: World, client: Client) -> None:
    """A stream that ends well."""
    near, far = client.stream()

    def send(sock: socket.socket) -> None:
        sock.sendall(data(300_000))
        sock.shutdown(socket.SHUT_WR)

    works = [Background(send, near), Background(send, far), Background(read_all, near),
             Background(read_all, far)]  # fmt: skip
    world.until(lambda: all(work.done for work in works))
    world.until(lambda: empty(world, client))


def cut(world: World, client: Client) -> None:
    """A stream whose application ends with a reset."""
    near, far = client.stream()
    abort(near)
    world.until(lambda: is_reset(far))
    world.until(lambda: empty(world, client))


def reset(world: World, client: Client) -> None:
    """A stream whose target ends with a reset."""
    near, far = client.stream()
    abort(far)
    world.until(lambda: is_reset(near))
    world.until(lambda: empty(world, client))


def refused(world: World, client: Client) -> None:
    """A stream whose target refuses it."""
    world.target.close()
    near, theirs = tcp_pair()
    with near:
        stream = client.session.session.open(world.loop.now)
        client.session.driver.add_relay(theirs, stream)
        stream.announce()
        client.session.driver.progress()
        del stream
        world.until(lambda: is_reset(near))
    world.until(lambda: empty(world, client))


def denied(world: World, client: Client) -> None:
    """A stream whose target refuses it, and whose application waits for the proxy's answer."""
    world.target.close()
    near, theirs = tcp_pair()
    refusals: list[ResetCode] = []
    with near, theirs:
        stream = client.session.session.open(world.loop.now)
        progress = client.session.driver.progress
        Waiting(world.loop, theirs, stream, b"", lambda: None, refusals.append, progress)
        stream.announce()
        del stream
        progress()
        world.until(lambda: refusals)
        world.loop.unwatch(theirs.fileno())
    world.until(lambda: empty(world, client))


@pytest.mark.parametrize("end", [transfer, cut, reset, refused, denied])
def test_streams(world: World, end: Callable[[World, Client], None]) -> None:
    client = connected(world)
    end(world, client)

    def streams() -> None:
        for _ in range(TIMES):
            end(world, client)

    assert cyclic(world, streams) == {}


def test_subflows(world: World) -> None:
    client = connected(world)

    def subflows() -> None:
        for _ in range(TIMES):
            (path,) = client.pool.paths
            slot = path.slots[0]
            assert slot.subflow is not None
            client.session.driver.lost(slot.subflow, "the test wants it")
            world.until(lambda: client.up == [1])
            world.until(lambda: client.up == [2])

    assert cyclic(world, subflows) == {}


def test_subflows_that_are_too_many(world: World) -> None:
    client = connected(world)

    def steps() -> None:
        for _ in range(TIMES):
            (path,) = client.pool.paths
            client.pool.set_target(path, 4)
            world.until(lambda: client.up == [4])
            client.pool.set_target(path, 2)
            world.until(lambda: len(client.session.session.subflows) == 3)

    assert cyclic(world, steps) == {}
