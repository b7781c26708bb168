"""Who ends the session of a client worker that has died."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec
import pytest
from fastmtcp.client.pool import farewell as farewell_module
from fastmtcp.client.pool.farewell import Farewell
from fastmtcp.client.session import ClientSession
from fastmtcp.config.credentials import Credentials
from fastmtcp.config.path import PathSpec
from fastmtcp.engine.limits import Limits
from fastmtcp.io.resolver import Resolver
from fastmtcp.security.certificates import ClientTls
from fastmtcp.security.handshake import Membership

from tests.io.certificates import Files, make
from tests.io.net import is_reset, refusing_port, turn
from tests.io.test_pool import IDENTITY, Client, World, sessions


@pytest.fixture(params=["plain", "tls"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    files: Files | None = None
    if request.param == "tls":
        files = make(tmp_path_factory.mktemp("tls"))
    world = World(files)
    yield world
    world.close()


def dead(world: World, client: Client) -> Membership:
    """The session of a client whose process is gone: the server has not heard of that."""
    session: ClientSession = client.session
    membership = session.pool.membership
    assert membership is not None
    return membership


class Heir:
    """Another worker of the client."""

    def __init__(self, world: World, membership: Membership, *ports: int, keep: float = 60) -> None:
        files = world.certificate
        certificates = None if files is None else ClientTls((files.fingerprint,))
        self.resolver = Resolver(world.loop)
        world.stack.callback(self.resolver.close)
        self.over = 0
        self.paths = [PathSpec.parse(f"127.0.0.1:{port}") for port in ports]
        self.farewell = Farewell(
            world.loop,
            self.resolver,
            Credentials(IDENTITY, certificates),
            membership,
            lambda: self.paths,
            5.0,
            Limits(session_timeout=keep),
            self._done,
        )

    def _done(self, farewell: Farewell) -> None:
        assert farewell is self.farewell
        self.over += 1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farewell_module, "_FIRST_DELAY", 0.01)


def test_it_ends_the_session_and_resets_its_streams(world: World) -> None:
    server, (port,) = world.server()
    client = world.client(port, connections=2)
    client.until_up(2)
    _, target = client.stream()
    heir = Heir(world, dead(world, client), port)
    world.until(lambda: heir.over, "it has been said")
    assert sessions(server) == 0
    world.until(lambda: is_reset(target), "its target is reset")
    assert heir.over == 1


def test_not_without_the_secret_of_the_session(world: World) -> None:
    server, (port,) = world.server()
    client = world.client(port, connections=2)
    client.until_up(2)
    stranger = msgspec.structs.replace(dead(world, client), secret=os.urandom(32))
    heir = Heir(world, stranger, port)
    world.until(lambda: heir.over, "it gives up")
    turn(world.loop, 20)
    assert sessions(server) == 1
    assert client.up == [2]
    assert not world.ended


def test_a_path_that_leads_elsewhere_is_not_the_last_word(world: World) -> None:
    server, (port,) = world.server()
    _, (other,) = world.server()
    client = world.client(port, connections=1)
    client.until_up(1)
    heir = Heir(world, dead(world, client), other)
    heir.paths += [PathSpec.parse(f"127.0.0.1:{port}")]
    world.until(lambda: heir.over, "it has been said")
    assert sessions(server) == 0


def test_a_session_that_is_gone_needs_none(world: World) -> None:
    server, (port,) = world.server()
    heir = Heir(world, Membership(bytes(16), bytes(32)), port)
    world.until(lambda: heir.over, "the server does not know it")
    assert sessions(server) == 0


def test_it_tries_until_there_is_a_way(world: World) -> None:
    server, (port,) = world.server()
    client = world.client(port, connections=1)
    client.until_up(1)
    with refusing_port() as nobody:
        heir = Heir(world, dead(world, client), nobody)
        world.until(lambda: heir.farewell._backoff.failures >= 2, "it tries again")
        heir.paths = []
        world.until(lambda: heir.farewell._backoff.failures >= 4, "the paths are not known")
        heir.paths = [PathSpec.parse(f"127.0.0.1:{port}")]
        world.until(lambda: heir.over, "it has been said")
    assert sessions(server) == 0


def test_it_ends_when_no_server_can_have_the_session_any_more(world: World) -> None:
    with refusing_port() as nobody:
        heir = Heir(world, Membership(bytes(16), bytes(32)), nobody, keep=0.1)
        world.until(lambda: heir.over, "it gives up")


@pytest.mark.parametrize("turns", range(0, 24, 3))
def test_it_can_be_stopped_at_any_time_and_leaves_nothing(world: World, turns: int) -> None:
    _, (port,) = world.server()
    client = world.client(port, connections=1)
    client.until_up(1)
    heir = Heir(world, dead(world, client), port)
    turn(world.loop, turns)
    was_over = heir.over
    heir.farewell.cancel()
    turn(world.loop, 20)
    assert heir.over == was_over
    assert not heir.farewell._attempts
    assert not heir.farewell._last_words
