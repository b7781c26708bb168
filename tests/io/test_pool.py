"""The pool against real server workers, all on one loop."""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from fastmtcp.client.pool import attempt as attempt_module
from fastmtcp.client.pool import pool as pool_module
from fastmtcp.client.pool import slot as slot_module
from fastmtcp.client.pool import ways as ways_module
from fastmtcp.client.pool.express import Express
from fastmtcp.client.session import ClientSession
from fastmtcp.config.client import ClientConfig
from fastmtcp.config.connections import Connections
from fastmtcp.config.credentials import Credentials
from fastmtcp.config.path import PathSpec
from fastmtcp.config.server import ServerConfig
from fastmtcp.endpoint import Endpoint
from fastmtcp.engine.limits import Limits
from fastmtcp.engine.outbound import Outbound
from fastmtcp.engine.quota import Memory
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.subflows.subflow import State, Subflow
from fastmtcp.engine.wire.codec import encode
from fastmtcp.engine.wire.frames import Retire
from fastmtcp.errors import PeerError
from fastmtcp.io.buffers import BufferPool
from fastmtcp.io.listener import bind
from fastmtcp.io.loop import Loop
from fastmtcp.io.netlink import Route
from fastmtcp.io.resolver import Resolver
from fastmtcp.security.certificates import ClientTls
from fastmtcp.security.identity import UNNAMED, Identity, unnamed
from fastmtcp.server.service import ServerService

from tests.io.certificates import Files
from tests.io.net import (
    WAIT,
    Background,
    data,
    read_all,
    refusing_port,
    run_until,
    silent_port,
    tcp_pair,
    turn,
)

IDENTITY = Identity.from_key(UNNAMED, bytes(range(32)))
CLIENTS = unnamed(bytes(range(32)))
EXPRESS = Role.BOTH | Role.EXPRESS
Logs = pytest.LogCaptureFixture


class NoHandoff:
    def knows(self, owner: int) -> bool:
        return False

    def send(self, owner: int, sock: socket.socket, peer: str, tls: bool, until: float) -> bool:
        return False


class Way:
    """The way to all servers, as the kernel tells it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._gateway = 1
        monkeypatch.setattr(ways_module, "route_to", self._route_to)

    def change(self) -> None:
        self._gateway += 1

    def _route_to(self, _host: str, _source: str | None, _device: str | None) -> Route:
        return Route(1, bytes([self._gateway]), b"")


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Way:
    return Way(monkeypatch)


class World:
    """Servers and clients of one test."""

    def __init__(self, certificate: Files | None = None) -> None:
        """With TLS if there is a certificate."""
        self.certificate = certificate
        self.loop = Loop()
        self.stack = ExitStack()
        self.target = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.target.settimeout(WAIT)
        self.servers: list[ServerService] = []
        self.clients: list[ClientSession] = []
        self.ended: list[str] = []
        turn(self.loop, 1)

    def server(self, ports: int = 1) -> tuple[ServerService, list[int]]:
        config = ServerConfig(target=Endpoint(*self.target.getsockname()))
        sockets = [bind((socket.AF_INET, ("127.0.0.1", 0)), shared=False) for _ in range(ports)]
        numbers = [sock.getsockname()[1] for sock in sockets]
        certificates = None if self.certificate is None else self.certificate.server()
        worker = ServerService(
            self.loop, config, CLIENTS, 0, sockets, NoHandoff(), certificates=certificates
        )
        self.servers.append(worker)
        return worker, numbers

    def client(self, *paths: str | int, connections: int | str = 4, express: bool = True) -> Client:
        config = ClientConfig(
            server=tuple(PathSpec.parse(f"127.0.0.1:{path}") for path in paths),
            connections=Connections.read(connections),
            express=express,
            connect_timeout=5,
        )
        return Client(self, config)

    def until(self, condition: Callable[[], object], what: str = "") -> None:
        run_until(self.loop, condition, what)

    def close(self) -> None:
        for client in self.clients:
            client.close("the test is over")
        turn(self.loop, 5)
        over: list[bool] = []
        for server in self.servers:
            server.drain(0, lambda: over.append(True))
        self.until(lambda: len(over) == len(self.servers), "the servers drain")
        self.stack.close()
        self.loop.close()


class Client:
    """A session with its pool."""

    def __init__(self, world: World, config: ClientConfig) -> None:
        self.world = world
        files = world.certificate
        certificates = None if files is None else ClientTls((files.fingerprint,))
        resolver = Resolver(world.loop)
        world.stack.callback(resolver.close)
        self.session = ClientSession(
            world.loop,
            BufferPool(),
            resolver,
            config,
            Credentials(IDENTITY, certificates),
            Limits(),
            Memory(),
            lambda: None,
            lambda _session, reason: world.ended.append(reason),
        )
        world.clients.append(self.session)
        self.pool = self.session.pool
        self.config_paths = config.paths
        self.pool.set_paths(config.paths)

    @property
    def up(self) -> list[int]:
        return [path.up for path in self.pool.paths]

    def until_up(self, *counts: int) -> None:
        self.world.until(lambda: self.up == list(counts), f"{counts} are up")

    @property
    def express(self) -> Express:
        assert self.pool.express is not None
        return self.pool.express

    @property
    def has_express(self) -> bool:
        return len(self.session.session.subflows) == self.pool.up + 1

    def stream(self) -> tuple[socket.socket, socket.socket]:
        """An application and its target."""
        ours, theirs = tcp_pair()
        stream = self.session.session.open(self.world.loop.now)
        self.session.driver.add_relay(theirs, stream)
        stream.announce()
        self.session.driver.progress()
        accepted = Background(self.world.target.accept)
        self.world.until(lambda: accepted.done, "the target is reached")
        far = accepted.result()[0]
        far.settimeout(WAIT)
        return self.world.stack.enter_context(ours), self.world.stack.enter_context(far)


@pytest.fixture
def world(caplog: Logs) -> Iterator[World]:
    caplog.set_level(logging.DEBUG)
    world = World()
    yield world
    world.close()


def roles(server: ServerService) -> Counter[Role]:
    (session,) = server._sessions.values()
    return Counter(subflow.role for subflow in session.driver.session.subflows.values())


def sessions(server: ServerService) -> int:
    return len(server._sessions)


def said(caplog: Logs, text: str) -> int:
    return sum(text in record.getMessage() for record in caplog.records)


# --- targets and roles --------------------------------------------------------------------------


def test_each_path_has_its_number_and_one_more_is_express(world: World, caplog: Logs) -> None:
    server, (a, b) = world.server(ports=2)
    client = world.client(a, f"{b},connections=2", connections=3)
    client.until_up(3, 2)
    world.until(lambda: client.has_express)
    assert (client.pool.up, client.pool.wanted) == (5, 5)
    assert roles(server) == {Role.BOTH: 5, EXPRESS: 1}
    # All within one session.
    assert sessions(server) == 1
    assert said(caplog, f"path 127.0.0.1:{a}: up") == said(caplog, f"path 127.0.0.1:{b}: up") == 1


def test_roles_reach_the_server(world: World) -> None:
    server, (a, b, c, d) = world.server(ports=4)
    client = world.client(
        f"{a},direction=up", f"{b},backup", f"{c},direction=down,backup", d, connections=1
    )
    client.until_up(1, 1, 1, 1)
    world.until(lambda: client.has_express)
    wanted = [Role.UP, Role.BOTH | Role.BACKUP, Role.DOWN | Role.BACKUP, Role.BOTH, EXPRESS]
    assert roles(server) == Counter(wanted)
    # On the only path that carries both ways and is no backup.
    assert client.express.path is client.pool.paths[3]


@pytest.mark.parametrize("how", ["switched off", "no path for it"])
def test_no_express(world: World, how: str) -> None:
    server, (a, b) = world.server(ports=2)
    if how == "switched off":
        client = world.client(a, b, connections=2, express=False)
    else:
        client = world.client(f"{a},direction=up", f"{b},direction=down", connections=2)
    client.until_up(2, 2)
    turn(world.loop, 50)
    assert EXPRESS not in roles(server)
    assert len(client.session.session.subflows) == 4


def test_the_express_subflow_is_replaced_and_moves_to_a_path_that_works(world: World) -> None:
    server, (a, b) = world.server(ports=2)
    client = world.client(a, b, connections=1)
    client.until_up(1, 1)
    world.until(lambda: client.has_express)
    express = client.express
    before = express.slot.subflow
    assert before is not None
    client.session.driver.lost(before, "the test")
    world.until(lambda: express.slot.subflow not in (None, before), "it is there again")
    assert express.path is client.pool.paths[0]
    client.pool.set_paths([client.pool.paths[1].spec])
    assert express.slot.subflow is not None
    client.session.driver.lost(express.slot.subflow, "the test")
    world.until(lambda: express.slot.is_up, "it is there again")
    assert express.path is client.pool.paths[0]
    assert express.path.spec.endpoint.port == b
    world.until(lambda: roles(server) == {Role.BOTH: 1, EXPRESS: 1})


# --- the first subflow --------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["refused", "silent", "accepts and hangs"])
def test_a_path_that_fails_keeps_nobody_waiting(world: World, caplog: Logs, first: str) -> None:
    server, (port,) = world.server()
    with refusing_port() as refused, silent_port() as silent, socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen(100)
        dead = {"refused": refused, "silent": silent}.get(first) or hanging.getsockname()[1]
        client = world.client(dead, port)
        client.until_up(0, 4)
        # It is not even given up yet.
        assert client.pool.paths[0].is_up is (False if first == "refused" else None)
        assert sessions(server) == 1
        assert client.pool.down_since is None
        world.until(lambda: said(caplog, f"path 127.0.0.1:{dead}: down: ") == 1)
        assert client.pool.trouble.startswith(f"cannot use server 127.0.0.1:{dead}: ")
    assert client.pool.paths[0].is_up is False


def test_names_that_are_looked_up_for_ever_keep_nobody_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    real = socket.getaddrinfo

    def slow(host: bytes, *arguments: object, **options: object) -> object:
        if host.startswith(b"path") and not options.get("flags"):
            assert release.wait(2 * WAIT)
        return real(host, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("fastmtcp.io.resolver.socket.getaddrinfo", slow)
    _, (port,) = world.server()
    names = [f"path{number}.invalid" for number in range(6)]
    servers = tuple(PathSpec.parse(f"{name}:{port}") for name in (*names, "localhost"))
    client = Client(world, ClientConfig(server=servers, connections=Connections(1, 1)))
    client.until_up(0, 0, 0, 0, 0, 0, 1)
    release.set()


def test_paths_that_answer_at_the_same_time_make_one_session(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastmtcp.client.pool.pool._ALL_PATHS", 0.0)
    monkeypatch.setattr("fastmtcp.client.pool.creation.TURN", 0.0)
    server, ports = world.server(ports=6)
    client = world.client(*ports, connections=1)
    client.until_up(1, 1, 1, 1, 1, 1)
    assert sessions(server) == 1
    assert world.ended == []


def test_nobody_answers_and_later_somebody_does(world: World, caplog: Logs) -> None:
    with refusing_port() as a, refusing_port() as b:
        client = world.client(a, b, connections=8)
        world.until(lambda: said(caplog, "down: ") == 2)
        world.until(lambda: client.pool.paths[0].slots[0]._backoff.failures >= 3)
        # The others leave it to the first to find out.
        for path in client.pool.paths:
            assert not any(slot._attempts or slot._timer for slot in path.slots[1:])
    # Once each, whatever the number of attempts.
    assert said(caplog, "down: connection refused; trying again") == 2
    server, (port,) = world.server()
    client.pool.set_paths([PathSpec.parse(f"127.0.0.1:{port}")])
    client.until_up(8)
    assert sessions(server) == 1


# --- the number of subflows ---------------------------------------------------------------------


def test_a_path_grows_and_shrinks(world: World) -> None:
    server, (port,) = world.server()
    client = world.client(port, connections=2, express=False)
    client.until_up(2)
    (path,) = client.pool.paths
    client.pool.set_target(path, 6)
    assert client.pool.wanted == 6
    client.until_up(6)
    client.pool.set_target(path, 1)
    assert (client.pool.up, client.pool.wanted) == (1, 1)
    world.until(lambda: roles(server) == {Role.BOTH: 1}, "the server has lost them too")
    world.until(lambda: len(client.session.session.subflows) == 1)
    client.pool.set_target(path, 0)
    assert path.target == 1
    client.pool.set_target(path, 1000)
    assert path.target == 64
    client.pool.set_target(path, 3)
    client.until_up(3)


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_shrinking_under_load_loses_nothing_and_sends_nothing_twice(
    world: World, up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink_under_load(world, up, monkeypatch)


def shrink_under_load(world: World, up: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    server, (port,) = world.server()
    client = world.client(port, connections=8)
    client.until_up(8)
    near, far = client.stream()
    again: list[Subflow] = []
    monkeypatch.setattr(Outbound, "reinject", lambda _self, subflow: again.append(subflow))
    one, other = (near, far) if up else (far, near)
    content = data(30_000_000)

    def send() -> None:
        one.sendall(content)
        one.shutdown(socket.SHUT_WR)

    sending, receiving = Background(send), Background(read_all, other)
    (path,) = client.pool.paths
    engine = client.session.session
    world.until(
        lambda: sum(s.bytes_sent + s.bytes_received for s in engine.subflows.values()) > 4e6
    )
    shrunk = [slot.subflow.subflow for slot in path.slots[2:] if slot.subflow is not None]
    assert len(shrunk) == 6
    client.pool.set_target(path, 2)
    assert all(subflow.state in (State.RETIRING, State.GONE) for subflow in shrunk)
    frame = len(encode(Retire(max(subflow.bytes_received for subflow in shrunk) << 8)))
    sent = [subflow.bytes_sent + frame for subflow in shrunk]
    world.until(lambda: sending.done and receiving.done)
    sending.result()
    assert receiving.result() == content
    # Each was drained at both sides, and closed only then.
    world.until(lambda: len(engine.subflows) == 3)
    (session,) = server._sessions.values()
    world.until(lambda: len(session.driver.session.subflows) == 3, "the server has seen it")
    assert again == []
    # Nor were they given anything more but their last frame.
    assert all(s.bytes_sent <= most for s, most in zip(shrunk, sent, strict=True))


def test_paths_come_and_go(world: World, caplog: Logs) -> None:
    server, (a, b, c) = world.server(ports=3)
    client = world.client(a, b, connections=2, express=False)
    client.until_up(2, 2)
    first, second = (path.spec for path in client.pool.paths)
    third = PathSpec.parse(f"127.0.0.1:{c}")
    near, far = client.stream()
    client.pool.set_paths([third, second])
    assert said(caplog, f"path {first.label}: gone") == 1
    # It is not tried again.
    assert said(caplog, f"path {first.label}: down") == 0
    client.until_up(2, 2)
    assert [path.spec for path in client.pool.paths] == [third, second]
    near.sendall(b"still here")
    received = Background(far.recv, 100)
    world.until(lambda: received.done)
    assert received.result() == b"still here"
    world.until(lambda: roles(server) == {Role.BOTH: 4})


def test_what_retires_is_dead_with_its_address(world: World) -> None:
    """A path of an address that has gone is taken away first, and then the address is told."""
    _, (port,) = world.server()
    client = world.client(port, connections=3, express=False)
    client.until_up(3)
    sockets = list(client.session.driver.sockets.values())
    client.pool.set_paths([])
    client.pool.network_changed({"192.0.2.77"})
    assert not any(one.closed for one in sockets)
    assert {one.local_address for one in sockets} == {"127.0.0.1"}
    client.pool.network_changed({"127.0.0.1"})
    assert all(one.closed for one in sockets)
    assert not client.session.session.subflows
    assert not client.pool._retiring._timers


def test_the_session_has_room_for_so_many(world: World, caplog: Logs) -> None:
    _, (port,) = world.server()
    client = world.client(port, connections=64, express=False)
    specs = [PathSpec.parse(f"127.0.0.1:{port},bind=127.0.0.{n}") for n in (1, 2, 3)]
    client.pool.set_paths(specs)
    assert [path.target for path in client.pool.paths] == [64, 56]
    assert said(caplog, "from 127.0.0.3: not used: 120 subflows are the limit") == 1
    client.pool.set_target(client.pool.paths[1], 64)
    assert client.pool.wanted == 120


# --- losses -------------------------------------------------------------------------------------


def test_what_is_lost_is_replaced_and_said_once(world: World, caplog: Logs) -> None:
    _, (port,) = world.server()
    client = world.client(port, connections=3)
    client.until_up(3)
    (path,) = client.pool.paths
    for slot in list(path.slots):
        assert slot.subflow is not None
        client.session.driver.lost(slot.subflow, "No route to host")
    label = path.spec.label
    assert said(caplog, f"path {label}: down: no route to host; trying again") == 1
    client.until_up(3)
    assert said(caplog, f"path {label}: up") == 2
    assert path.reconnects == 3
    assert path.trouble == client.pool.trouble == ""


def test_an_address_that_is_gone_takes_its_subflows_along(world: World, caplog: Logs) -> None:
    _, (port,) = world.server()
    client = world.client(
        f"{port},bind=127.0.0.1", f"{port},bind=127.0.0.2", connections=2, express=False
    )
    client.until_up(2, 2)
    kept = [slot.subflow for slot in client.pool.paths[1].slots]
    client.pool.network_changed({"127.0.0.1"})
    assert client.up == [0, 2]
    client.until_up(2, 2)
    assert [slot.subflow for slot in client.pool.paths[1].slots] == kept
    assert said(caplog, "down: this machine lost the address 127.0.0.1; trying again") == 1


def test_a_change_of_the_network_ends_the_pause(
    world: World, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_module, "pause", lambda backoff, urgent: 3600.0)
    with refusing_port() as port:
        client = world.client(port, connections=2)
        (path,) = client.pool.paths
        world.until(lambda: path.is_up is False)
        turn(world.loop, 20)
        assert not path.slots[0]._attempts
    listener = bind((socket.AF_INET, ("127.0.0.1", port)), shared=False)
    config = ServerConfig(target=Endpoint(*world.target.getsockname()))
    world.servers.append(ServerService(world.loop, config, CLIENTS, 0, [listener], NoHandoff()))
    # What concerns others is none to us.
    client.pool.network_changed({"192.0.2.77"})
    assert path.slots[0]._timer is not None
    assert path.slots[0]._timer.when > world.loop.now + 3000
    way.change()
    client.pool.network_changed(frozenset())
    client.until_up(2)


def test_changes_without_end_keep_no_connect_from_its_end(
    world: World, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_STALE", 0.0)
    with silent_port() as port:
        client = world.client(port, connections=1, express=False)
        (slot,) = client.pool.paths[0].slots
        world.until(lambda: slot._attempts)
        (first,) = slot._attempts
        for number in range(5):
            # What concerns others is none to us.
            client.pool.network_changed({"192.0.2.77"})
            turn(world.loop)
            assert len(slot._attempts) == (1 if number == 0 else 2)
            way.change()
            client.pool.network_changed(frozenset())
            turn(world.loop)
            assert slot._attempts[0] is first
            assert len(slot._attempts) == 2
        # What comes from an address that is gone is dead.
        client.pool.network_changed({"127.0.0.1"})
        turn(world.loop)
        assert first not in slot._attempts
        assert len(slot._attempts) == 1
        (attempt,) = slot._attempts
        attempt.cancel()
        slot._on_failed(attempt, PeerError("the test"))
        assert not slot._attempts
        assert slot._backoff.failures == 1


def test_the_first_attempt_that_is_up_wins(world: World) -> None:
    server, (port,) = world.server()
    client = world.client(port, connections=1, express=False)
    (slot,) = client.pool.paths[0].slots
    slot._rest()
    for _ in range(3):
        slot._dial()
    assert len(slot._attempts) == 2
    client.until_up(1)
    assert not slot._attempts
    assert slot._timer is None
    turn(world.loop, 20)
    assert len(client.session.session.subflows) == 1
    world.until(lambda: len(server.sessions[0].session.subflows) == 1)


def test_a_new_way_is_tried_with_one_fresh_subflow(world: World, way: Way, caplog: Logs) -> None:
    _, (port,) = world.server()
    client = world.client(port, connections=3, express=False)
    client.until_up(3)
    (path,) = client.pool.paths
    old = path.live()
    client.pool.network_changed({"192.0.2.77"})
    turn(world.loop, 20)
    assert path.live() == old
    way.change()
    client.pool.network_changed(frozenset())
    turn(world.loop, 1)
    world.until(lambda: path.slots[0].subflow not in (None, old[0]))
    assert old[0].closed
    # They come from the address that the new way has, too: they may be as good.
    assert path.live()[1:] == old[1:]
    path.slots[2].local_address = "127.0.0.9"
    way.change()
    client.pool.network_changed(frozenset())
    world.until(lambda: old[2].closed)
    client.until_up(3)
    assert path.slots[1].subflow is old[1]
    assert path.reconnects == 1
    assert said(caplog, "lost: the way to the server has changed; 2 left") == 1


def test_a_fresh_subflow_that_fails_costs_nothing(world: World, way: Way) -> None:
    _, (port,) = world.server()
    client = world.client(port, connections=1, express=False)
    client.until_up(1)
    (slot,) = client.pool.paths[0].slots
    old = slot.subflow
    way.change()
    client.pool.network_changed(frozenset())
    world.until(lambda: slot._attempts)
    (attempt,) = slot._attempts
    attempt.cancel()
    slot._on_failed(attempt, PeerError("the test"))
    turn(world.loop, 20)
    assert slot.subflow is old
    assert client.pool.trouble == ""
    # The old one ends while the fresh one is on its way.
    way.change()
    client.pool.network_changed(frozenset())
    world.until(lambda: slot._attempts)
    assert old is not None
    client.session.driver.lost(old, "the test")
    assert len(slot._attempts) == 1
    assert slot._timer is None
    client.until_up(1)


def test_while_a_stream_waits_a_silent_attempt_is_soon_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "URGENT_PATIENCE", 0.05)
    with silent_port() as port:
        client = world.client(port, connections=1)
        client.session.session.open(world.loop.now)
        assert client.pool._connector.is_urgent
        (path,) = client.pool.paths
        world.until(lambda: path.slots[0]._backoff.failures >= 3, "it is tried again and again")
        assert path.trouble == "Connection timed out"


def test_a_path_to_another_server_does_not_end_the_session(world: World, caplog: Logs) -> None:
    """All paths of a session end in one process; this one has been led astray."""
    right, (a,) = world.server()
    wrong, (b,) = world.server()
    client = world.client(a, b)
    client.until_up(4, 0)
    text = "down: it leads to another server process than the other paths; trying again"
    world.until(lambda: said(caplog, text) == 1)
    assert world.ended == []
    assert (sessions(right), sessions(wrong)) == (1, 0)


def test_a_server_that_has_forgotten_the_session_ends_it(world: World) -> None:
    server, (port,) = world.server()
    client = world.client(port)
    client.until_up(4)
    server._sessions.clear()
    for subflow in list(client.session.driver.sockets.values()):
        client.session.driver.lost(subflow, "the test")
    world.until(lambda: world.ended)
    assert world.ended == ["the server does not know the session any more"]
    turn(world.loop, 20)
    assert client.pool.up == 0


def test_a_stopped_pool_dials_no_more(world: World) -> None:
    _, (port,) = world.server()
    client = world.client(port, connections=2)
    client.until_up(2)
    world.until(lambda: client.has_express)
    client.session.retire()
    slots = client.pool._slots()
    for subflow in list(client.session.driver.sockets.values()):
        client.session.driver.lost(subflow, "the test")
    client.pool.network_changed(frozenset())
    client.pool.set_target(client.pool.paths[0], 5)
    client.pool.set_paths([])
    turn(world.loop, 20)
    assert not any(slot.is_up or slot._attempts or slot._timer for slot in slots)
    assert len(client.pool.paths[0].slots) == 2
