"""Who gets into which session of a server's worker, over real connections."""

from __future__ import annotations

import logging
import os
import re
import select
import socket
from collections.abc import Iterator

import pytest
from fastmtcp.config.limits import ServerLimits
from fastmtcp.config.server import ServerConfig
from fastmtcp.config.targets import Rule
from fastmtcp.endpoint import Endpoint
from fastmtcp.engine.wire.codec import encode
from fastmtcp.engine.wire.errors import ResetCode, SessionCode
from fastmtcp.engine.wire.frames import Ack, Frame, Open, Reset
from fastmtcp.io import lines
from fastmtcp.io.listener import bind
from fastmtcp.io.loop import Loop
from fastmtcp.io.resolver import Answer, Question, Resolver
from fastmtcp.security.handshake import (
    HANDSHAKE_TIMEOUT,
    NONCE_SIZE,
    SESSION_ID_SIZE,
    ClientHandshake,
    Membership,
    Preamble,
    RefuseCode,
    RefusedError,
)
from fastmtcp.security.identity import UNNAMED, Identity, unnamed
from fastmtcp.server import admission
from fastmtcp.server.service import ServerService
from fastmtcp.server.session import ServerSession

from tests.io.net import WAIT, Background, run_until, turn
from tests.unit.wire import parse

KEY = bytes(range(32))
IDENTITY = Identity.from_key(UNNAMED, KEY)
A, B = (Identity.from_key(name, KEY) for name in ("a", "b"))
INDEX = 5
LIMITS = ServerLimits(max_subflows=3)


class Inboxes:
    """Takes connections for other workers, or has no room for them."""

    def __init__(self) -> None:
        self.has_room = True
        self.passed: list[tuple[int, socket.socket, str, bool, float]] = []

    def knows(self, owner: int) -> bool:
        return True

    def send(self, owner: int, sock: socket.socket, peer: str, tls: bool, until: float) -> bool:
        if self.has_room:
            # The other process gets a descriptor of its own.
            self.passed.append((owner, sock.dup(), peer, tls, until))
        return self.has_room


class Server:
    def __init__(self, *allow: str, limits: ServerLimits | None = None) -> None:
        self.loop = Loop()
        self.inboxes = Inboxes()
        listening = bind((socket.AF_INET, ("127.0.0.1", 0)), shared=True)
        self.address = listening.getsockname()
        self.target = socket.create_server(("127.0.0.1", 0))
        self.port = self.target.getsockname()[1]
        rules = tuple(Rule.parse(rule.replace("PORT", str(self.port))) for rule in allow)
        config = ServerConfig(target=Endpoint("127.0.0.1", self.port), allow=rules)
        self.service = ServerService(
            self.loop, config, unnamed(KEY), INDEX, [listening], self.inboxes, limits or LIMITS
        )
        self.sockets: list[socket.socket] = []
        self.drained: list[bool] = []
        self._subflow = 0

    @property
    def streams(self) -> int:
        return sum(len(one.session.streams) for one in self.service.sessions)

    @property
    def subflows(self) -> int:
        return sum(len(one.session.subflows) for one in self.service.sessions)

    def connect(self) -> socket.socket:
        sock = socket.create_connection(self.address, WAIT)
        self.sockets.append(sock)
        return sock

    def shake(
        self,
        join: Membership | None = None,
        subflow: int | None = None,
        identity: Identity = IDENTITY,
    ) -> ClientHandshake:
        """Connect and run the client's side. Raises RefusedError as that does."""
        if subflow is None:
            subflow = self._subflow
            self._subflow += 1
        sock = self.connect()
        handshake = ClientHandshake(identity, os.urandom(NONCE_SIZE), subflow, join)
        preamble = Preamble.of(join.session if join else b"", tls=False)

        def run() -> None:
            sock.sendall(preamble.encode() + handshake.hello)
            while handshake.grant is None:
                part = sock.recv(4096)
                if not part:
                    raise ConnectionError("closed without a word")
                sock.sendall(handshake.feed(part))

        work = Background(run)
        run_until(self.loop, lambda: work.done or self.inboxes.passed, "the handshake ends")
        if not self.inboxes.passed:
            work.result()
        return handshake

    def new_session(self) -> Membership:
        membership = self.shake().membership
        assert membership is not None
        return membership

    def receive(self, subflow: int, join: Membership | None) -> ClientHandshake:
        """A connection comes from another worker; returns the client's side at its end."""
        near, far = socket.socketpair()
        self.sockets.append(near)
        near.settimeout(WAIT)
        far.setblocking(False)
        client = ClientHandshake(IDENTITY, os.urandom(NONCE_SIZE), subflow, join)
        if join is None:
            preamble = Preamble(False, INDEX)
            client._transcript = preamble.encode() + client.hello
        self.service.reception.on_handoff(far, "somebody", False, self.loop.clock() + 5)

        def run() -> None:
            near.sendall(client.hello)
            while client.grant is None and (part := near.recv(4096)):
                near.sendall(client.feed(part))

        work = Background(run)
        run_until(self.loop, lambda: work.done, "the handshake ends")
        work.result()
        return client

    def said(self, sock: socket.socket) -> list[Frame]:
        """The frames that have come on a subflow, which end with a whole one."""
        sock.setblocking(False)
        try:
            return [frame for frame, _ in parse(sock.recv(1 << 16))]
        except BlockingIOError:
            return []

    def answer(self, target: str) -> Ack | Reset:
        """What a client is told of a new stream to `target`: it is connected, or reset."""
        self.new_session()
        subflow = self.sockets[-1]
        subflow.sendall(encode(Open(0, 1000, False, target.replace("PORT", str(self.port)))))
        seen: list[Ack | Reset] = []

        def is_told() -> bool:
            for frame in self.said(subflow):
                if isinstance(frame, Reset) or (isinstance(frame, Ack) and frame.connected):
                    seen.append(frame)
            return bool(seen)

        run_until(self.loop, is_told, "the client is told")
        return seen[0]

    def drain(self, timeout: float) -> None:
        self.service.drain(timeout, lambda: self.drained.append(True))

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        self.drain(0)
        run_until(self.loop, lambda: self.drained, "the worker ends")
        self.target.close()
        assert self.loop._handlers == {}, "descriptors are still watched after the end"
        self.loop.close()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(limits=getattr(request, "param", LIMITS))
    yield server
    server.close()


def refused(server: Server, join: Membership | None = None, subflow: int | None = None) -> object:
    """The code with which a handshake is refused."""
    with pytest.raises(RefusedError) as caught:
        server.shake(join, subflow)
    return caught.value.code


def test_a_session_and_its_members(server: Server) -> None:
    membership = server.new_session()
    assert membership.session[:2] == INDEX.to_bytes(2)
    for _ in range(2):
        assert server.shake(membership).grant is not None
    assert server.subflows == 3
    other = server.new_session()
    assert other.session != membership.session
    assert other.secret != membership.secret
    assert server.subflows == 4


def test_the_key_does_not_open_the_sessions_of_others(server: Server) -> None:
    first, second = server.new_session(), server.new_session()
    for secret in (second.secret, KEY, bytes(32)):
        assert refused(server, Membership(first.session, secret)) is RefuseCode.KEY
    assert server.subflows == 2


def test_a_session_that_is_not_known(server: Server) -> None:
    strange = Membership(INDEX.to_bytes(2) + bytes(SESSION_ID_SIZE - 2), bytes(32))
    assert refused(server, strange) is RefuseCode.UNKNOWN_SESSION


def test_too_many_subflows_or_one_id_used_twice(server: Server) -> None:
    membership = server.shake(subflow=40).membership
    assert refused(server, membership, 40) is RefuseCode.LIMIT
    server.shake(membership, 41)
    server.shake(membership, 42)
    assert refused(server, membership, 43) is RefuseCode.LIMIT
    # Refusals cost the session nothing.
    assert server.subflows == 3


@pytest.mark.parametrize(
    "server", [ServerLimits(max_sessions=2), ServerLimits(max_client_sessions=2)], indirect=True
)
def test_too_many_sessions(server: Server) -> None:
    membership = server.new_session()
    server.new_session()
    assert refused(server) is RefuseCode.LIMIT
    assert server.shake(membership).grant is not None


def test_the_sessions_of_a_client_share_what_it_may_have(server: Server) -> None:
    server.service.set_clients({"a": A.verifier, "b": B.verifier})
    for identity in (A, A, B):
        server.shake(identity=identity)
    of_a, also_of_a, of_b = server.service._sessions.values()
    assert of_a.session.holding.client is also_of_a.session.holding.client
    assert of_a.driver._turn is also_of_a.driver._turn
    assert of_a.session.holding.client is not of_b.session.holding.client
    assert of_a.driver._turn is not of_b.driver._turn
    assert of_a.session.holding.client.opens.rate == LIMITS.opens_per_second


@pytest.mark.parametrize("server", [ServerLimits(max_client_subflows=10)], indirect=True)
def test_too_many_subflows_of_one_client_in_all_its_sessions(server: Server) -> None:
    first, second = server.new_session(), server.new_session()
    for number in range(8):
        server.shake((first, second)[number % 2])
    assert server.subflows == 10
    for join in (first, second, None):
        with pytest.raises(RefusedError, match="max_client_subflows = 10") as caught:
            server.shake(join)
        assert caught.value.code is RefuseCode.LIMIT
    server.sockets[0].close()
    run_until(server.loop, lambda: server.subflows == 9, "its connection is gone")
    assert server.shake(second).grant is not None


@pytest.mark.parametrize("server", [ServerLimits(max_client_sessions=1)], indirect=True)
def test_a_session_that_has_ended_makes_room_for_another(server: Server) -> None:
    server.new_session()
    (session,) = server.service._sessions.values()
    session.driver.end(SessionCode.NORMAL, "")
    server.new_session()
    assert refused(server) is RefuseCode.LIMIT


class TestUnauthenticated:
    """Connections that prove nothing."""

    @pytest.mark.parametrize("server", [ServerLimits(max_handshakes=4)], indirect=True)
    def test_beyond_the_places_they_wait_until_one_is_free(self, server: Server) -> None:
        membership = server.new_session()
        silent = [server.connect() for _ in range(3)]
        turn(server.loop, 10)
        late = server.connect()
        late.sendall(b"not for us")
        turn(server.loop, 10)
        late.setblocking(False)
        with pytest.raises(BlockingIOError):
            late.recv(10)  # nobody has looked at it
        # Who was passed on by another worker is served.
        assert server.receive(50, membership).grant is not None
        silent[0].close()
        run_until(server.loop, lambda: is_closed(late), "the next one is accepted")
        for sock in silent[1:]:
            assert not is_closed(sock)
            sock.close()
        run_until(server.loop, lambda: not server.service.reception._arrivals)
        assert server.shake(membership).grant is not None

    @pytest.mark.parametrize("server", [ServerLimits(max_handshakes=4)], indirect=True)
    def test_silent_ones_make_room_before_their_time(self, server: Server) -> None:
        silent = [server.connect() for _ in range(3)]
        turn(server.loop, 10)
        begun = server.loop.now
        assert server.shake().grant is not None
        assert server.loop.now - begun < HANDSHAKE_TIMEOUT - 1
        assert any(map(is_closed, silent))

    def test_too_many_from_one_address_are_closed(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(admission, "MAX_PER_ADDRESS", 3)
        silent = [server.connect() for _ in range(3)]
        turn(server.loop, 10)
        late = server.connect()
        run_until(server.loop, lambda: is_closed(late))
        assert not any(map(is_closed, silent))
        silent[0].close()
        turn(server.loop, 10)
        assert server.shake().grant is not None

    def test_an_address_that_fails_again_and_again_is_slowed_down(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(admission, "FREE_FAILURES", 3)
        monkeypatch.setattr(admission, "SLOW_EVERY", 3600)
        wrong = Identity.from_key(UNNAMED, bytes(32))
        for _ in range(5):
            with pytest.raises(RefusedError):
                server.shake(identity=wrong)
        with pytest.raises(ConnectionError):
            server.shake()
        assert server.subflows == 0

    def test_who_only_looks_whether_the_port_is_open_has_not_failed(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(admission, "FREE_FAILURES", 3)
        monkeypatch.setattr(admission, "SLOW_EVERY", 3600)
        for _ in range(10):
            server.connect().close()
            turn(server.loop, 5)
        assert server.shake().grant is not None

    def test_a_flood_does_not_flood_the_log(
        self, server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lines, "WINDOW", 0.5)
        monkeypatch.setattr(admission, "FREE_FAILURES", 1000)
        caplog.set_level(logging.INFO, "fastmtcp")
        for _ in range(50):
            server.connect().sendall(b"garbage!")
        run_until(server.loop, lambda: "40 more lines like this" in caplog.text)
        assert len(caplog.messages) == 11


def is_closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(10, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("server", [ServerLimits(opens_per_second=5)], indirect=True)
def test_refused_streams_are_counted_in_one_line(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.shake()
    for first in (0, 50):
        opens = (encode(Open(first + number, 0, False)) for number in range(50))
        server.sockets[-1].sendall(b"".join(opens))
        run_until(server.loop, lambda: sum(refusals(caplog)) >= first + 40)  # noqa: B023
    assert len(refusals(caplog)) <= 3
    assert 80 <= sum(refusals(caplog)) <= 95


def refusals(caplog: pytest.LogCaptureFixture) -> list[int]:
    """How many streams each line says were refused."""
    pattern = r"(\d+) streams refused: the limit is opens_per_second = 5"
    return [int(count) for count in re.findall(pattern, caplog.text)]


class TestHandingOver:
    OTHER = 2

    def test_a_connection_goes_to_its_sessions_owner(self, server: Server) -> None:
        """With nothing of it read but the preamble, whatever is behind that."""
        theirs = Membership(self.OTHER.to_bytes(2) + b"x" * (SESSION_ID_SIZE - 2), b"s" * 32)
        handshake = server.shake(theirs)
        ((owner, sock, peer, tls, until),) = server.inboxes.passed
        with sock:
            assert (owner, tls) == (self.OTHER, False)
            assert 0 < until - server.loop.now <= HANDSHAKE_TIMEOUT
            assert sock.getpeername() == server.sockets[0].getsockname()
            assert peer == f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            sock.settimeout(WAIT)
            assert sock.recv(4096) == handshake.hello
            # This worker has nothing to do with it any more, and the connection lives.
            assert sock.fileno() not in server.loop._handlers
            assert server.subflows == 0
            assert handshake.grant is None
            server.sockets[0].setblocking(False)
            with pytest.raises(BlockingIOError):
                server.sockets[0].recv(1)

    def test_without_room_in_the_inbox_it_is_closed(self, server: Server) -> None:
        server.inboxes.has_room = False
        sock = server.connect()
        sock.sendall(Preamble(False, self.OTHER).encode())
        got = Background(sock.recv, 10)
        run_until(server.loop, lambda: got.done)
        # Not told that the session is not known: the client would give it up with its streams.
        assert got.result() == b""

    def test_the_owner_goes_on_where_the_other_worker_stopped(self, server: Server) -> None:
        membership = server.new_session()
        assert server.receive(99, membership).grant is not None
        assert server.subflows == 2

    def test_the_owner_checks_the_secret_itself(self, server: Server) -> None:
        membership = server.new_session()
        with pytest.raises(RefusedError) as caught:
            server.receive(99, Membership(membership.session, KEY))
        assert caught.value.code is RefuseCode.KEY
        assert server.subflows == 1


@pytest.mark.parametrize("refuses", [False, True])
def test_a_client_learns_whether_the_target_is_connected(server: Server, refuses: bool) -> None:
    if refuses:
        server.target.close()
    answer = server.answer("")
    assert isinstance(answer, Ack) is not refuses
    if isinstance(answer, Reset):
        assert answer.code == ResetCode.REFUSED


class TestTargets:
    def check(self, allow: list[str], target: str, code: ResetCode | None) -> None:
        server = Server(*allow)
        try:
            answer = server.answer(target)
            if code is None:
                assert isinstance(answer, Ack)
            else:
                assert answer == Reset(0, code)
            # Whatever becomes of that one, the server's own target is served.
            assert isinstance(server.answer(""), Ack)
        finally:
            server.close()

    @pytest.mark.parametrize(
        ("allow", "target"),
        [
            (["127.0.0.1:PORT"], "127.0.0.1:PORT"),
            (["127.0.0.0/8:*"], "127.0.0.1:PORT"),
            (["127.0.0.0/8:*"], "localhost:PORT"),
            (["127.0.0.1:1", "127.0.0.1:PORT"], "[::ffff:127.0.0.1]:PORT"),
        ],
    )
    def test_one_that_is_listed(self, allow: list[str], target: str) -> None:
        self.check(allow, target, None)

    @pytest.mark.parametrize(
        ("allow", "target"),
        [
            ([], "127.0.0.1:PORT"),
            (["laptop@127.0.0.1:PORT"], "127.0.0.1:PORT"),
            (["*:*"], "127.0.0.1:PORT"),
            (["*:*"], "localhost:PORT"),
            (["127.0.0.2:PORT"], "localhost:PORT"),
            (["127.0.0.1:1"], "127.0.0.1:PORT"),
            (["*:*"], "[::ffff:127.0.0.1]:PORT"),
            (["*:*"], "0.0.0.0:PORT"),
            (["*:*"], "*:PORT"),
            (["*:*"], "127.0.0.1:0"),
            (["*:*"], "127.1:PORT"),
            (["*:*"], "no\nport\x1b[2J" + "x" * 300),
        ],
    )
    def test_one_that_is_not(
        self, allow: list[str], target: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.check(allow, target, ResetCode.NOT_ALLOWED)
        (line,) = [message for message in caplog.messages if "not allowed" in message]
        assert line.startswith("client 127.0.0.1: target ")
        assert line.isprintable()
        assert len(line) < 300

    def test_one_that_is_listed_and_not_there(self) -> None:
        self.check(["127.0.0.1:1"], "127.0.0.1:1", ResetCode.REFUSED)
        self.check(["*:80"], "no-such-host.invalid:80", ResetCode.UNRESOLVED)


def test_while_it_drains_members_may_join_and_nobody_else(server: Server) -> None:
    membership = server.new_session()
    # A stream that is open keeps the worker from ending.
    server.sockets[0].sendall(encode(Open(0, 1000, False, ""), 0))
    run_until(server.loop, lambda: server.streams == 1)
    server.drain(600)
    turn(server.loop, 5)
    with pytest.raises(ConnectionRefusedError):
        server.connect()
    assert server.receive(7, membership).grant is not None
    with pytest.raises(RefusedError) as caught:
        server.receive(8, None)
    assert caught.value.code is RefuseCode.DRAINING
    assert not server.drained


@pytest.mark.parametrize(
    ("peer", "client", "shown"),
    [
        ("192.0.2.7:4000", "laptop", "laptop at 192.0.2.7"),
        ("[2001:db8::1]:4000", "laptop", "laptop at 2001:db8::1"),
        ("[2001:db8::1]:4000", "", "2001:db8::1"),
    ],
)
def test_whose_session_it_is_shows_by_its_host(
    server: Server, peer: str, client: str, shown: str
) -> None:
    server.new_session()
    (driver,) = server.service.drivers
    assert ServerSession(b"1", b"secret", driver, client, IDENTITY.verifier, peer).peer == shown


def test_the_names_of_one_client_hold_up_no_other_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its share of the look-ups, however many sessions it has."""
    shares: list[object] = []
    real = Resolver.resolve

    def resolve(self: Resolver, host: str, port: int, answer: Answer, asker: object) -> Question:
        shares.append(asker)
        return real(self, host, port, answer, asker)

    monkeypatch.setattr(Resolver, "resolve", resolve)
    server = Server("127.0.0.0/8:*")
    clients = [Identity.from_key(name, KEY) for name in ("one", "two")]
    server.service.set_clients({one.name: one.verifier for one in clients})
    for identity in (*clients, clients[0]):
        server.shake(identity=identity)
        wire = encode(Open(0, 1000, False, f"localhost:{server.port}"))
        server.sockets[-1].sendall(wire)
        run_until(
            server.loop, lambda: server.target in select.select([server.target], [], [], 0)[0]
        )
        server.target.accept()[0].close()
    assert shares == ["one", "two", "one"]
    server.close()
