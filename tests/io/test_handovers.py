"""A socket that changes its owner: what the first one was told is told to the next."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
import pytest
from fastmtcp.client.pool.attempt import Attempt
from fastmtcp.client.pool.connector import Connector
from fastmtcp.config.credentials import Credentials
from fastmtcp.config.path import PathSpec
from fastmtcp.driver.session import SessionDriver
from fastmtcp.endpoint import Endpoint
from fastmtcp.engine.limits import Limits
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.wire.codec import encode
from fastmtcp.engine.wire.errors import ResetCode
from fastmtcp.engine.wire.frames import Frame, Open, Reset
from fastmtcp.errors import PeerError
from fastmtcp.io.buffers import BufferPool
from fastmtcp.io.dialer import Dial
from fastmtcp.io.loop import ERR, IN, OUT, RDHUP, Loop
from fastmtcp.io.resolver import Resolver
from fastmtcp.proxy import preface as preface_module
from fastmtcp.proxy.preface import Preface, Waiting, say_farewell
from fastmtcp.proxy.requests import ProxyRequest
from fastmtcp.security.identity import Identity
from fastmtcp.server import outgoing

from tests.io.joined import Joined
from tests.io.net import Background, abort, data, is_reset, read_all, run_until, tcp_pair, turn
from tests.io.test_server_service import Server

SAID = b"12:00\n"


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    assert not loop._handlers, "a descriptor is still watched"
    loop.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def leave(sock: socket.socket) -> None:
    """Say something and close."""
    sock.sendall(SAID)
    sock.close()


def break_off(sock: socket.socket) -> None:
    """Say something and reset the connection."""
    sock.sendall(SAID)
    abort(sock)


def tell(loop: Loop, sock: socket.socket, event: int) -> None:
    """Let `sock` have an owner who is told `event` and reads nothing."""
    told: list[int] = []
    loop.watch(sock.fileno(), told.append)
    run_until(loop, lambda: any(mask & event for mask in told), "the first owner is told")
    turn(loop)


class TestTheLoop:
    @pytest.mark.parametrize(
        ("end", "expected"), [(leave, IN | OUT | RDHUP), (break_off, IN | RDHUP | ERR)]
    )
    def test_the_next_owner_is_told_all(
        self, loop: Loop, end: Callable[[socket.socket], None], expected: int
    ) -> None:
        ours, theirs = tcp_pair()
        with theirs:
            end(ours)
            tell(loop, theirs, RDHUP)
            masks: list[int] = []
            loop.watch(theirs.fileno(), masks.append)
            run_until(loop, lambda: masks)
            assert masks[0] & expected == expected
            turn(loop)
            assert len(masks) == 1
            loop.unwatch(theirs.fileno())

    def test_one_that_takes_over_and_reads_while_the_event_is_handled(self, loop: Loop) -> None:
        """The bytes are gone when the next events are fetched; the end is not."""
        ours, theirs = tcp_pair()
        with theirs:
            masks: list[int] = []
            got: list[bytes] = []

            def take_over(_mask: int) -> None:
                loop.watch(theirs.fileno(), masks.append)
                got.append(theirs.recv(100))

            leave(ours)
            loop.watch(theirs.fileno(), take_over)
            run_until(loop, lambda: masks)
            assert got == [SAID]
            assert masks[0] & RDHUP
            loop.unwatch(theirs.fileno())

    def test_one_that_takes_over_what_the_batch_holds_an_event_for(self, loop: Loop) -> None:
        """The event is from before the end, and the next one tells of that."""
        pairs = [tcp_pair() for _ in range(2)]
        masks: list[int] = []

        def take_over_the_other(_mask: int, mine: int) -> None:
            ours, theirs = pairs[1 - mine]
            if not masks:
                leave(ours)
                loop.watch(theirs.fileno(), masks.append)

        for mine, (_, theirs) in enumerate(pairs):
            loop.watch(theirs.fileno(), partial(take_over_the_other, mine=mine))
        run_until(loop, lambda: any(mask & RDHUP for mask in masks))
        for ours, theirs in pairs:
            loop.unwatch(theirs.fileno())
            theirs.close()
            ours.close()


class TestRelays:
    def add_stream(self, joined: Joined, sock: socket.socket) -> socket.socket:
        """Hand `sock` over to a relay; returns the target's end of its stream."""
        stream = joined.client.session.open(joined.loop.now)
        joined.client.driver.add_relay(sock, stream)
        stream.announce()
        joined.client.driver.progress()
        return joined.target()

    @pytest.mark.parametrize("size", [0, 6, 10_000])
    def test_bytes_and_fin_that_another_was_told(self, size: int) -> None:
        with Joined() as joined:
            ours, theirs = tcp_pair()
            with ours:
                ours.sendall(data(size))
                ours.shutdown(socket.SHUT_WR)
                tell(joined.loop, theirs, RDHUP)
                got = Background(read_all, self.add_stream(joined, theirs))
                joined.run(got)
                assert got.result() == data(size)

    def test_a_reset_that_another_was_told(self) -> None:
        with Joined() as joined:
            ours, theirs = tcp_pair()
            break_off(ours)
            tell(joined.loop, theirs, ERR)
            target = self.add_stream(joined, theirs)
            joined.until(lambda: is_reset(target), "the target is reset")
            joined.until(joined.is_empty)

    def test_a_target_that_speaks_and_leaves_before_the_dial_is_over(
        self, listener: socket.socket
    ) -> None:
        with Joined() as joined:
            application, _ = joined.application()
            streams: list[Stream] = []
            joined.server.on_opened = streams.append
            joined.until(lambda: streams)

            def connected(sock: socket.socket) -> None:
                streams[0].confirm()
                joined.server.driver.add_relay(sock, streams[0])
                joined.server.driver.progress()

            resolver = Resolver(joined.loop)
            errors: list[OSError] = []
            where = Endpoint(*listener.getsockname())
            Dial(
                joined.loop, resolver, where, 20.0, connected, lambda error, _: errors.append(error)
            )
            leave(listener.accept()[0])
            got = Background(read_all, application)
            joined.run(got)
            assert got.result() == SAID
            assert not errors
            resolver.close()


class TestPrefaces:
    def test_what_came_before_is_heard(self, loop: Loop) -> None:
        far, near = tcp_pair()
        with far, near:
            far.sendall(b"\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50first words")
            tell(loop, near, IN)
            request = ProxyRequest(None)
            done: list[bool] = []
            errors: list[PeerError] = []
            Preface(loop, near, request, partial(done.append, True), errors.append)
            run_until(loop, lambda: done or errors)
            assert request.rest == b"first words"
            loop.unwatch(near.fileno())

    def test_what_was_read_before_may_be_all_there_is(self, loop: Loop) -> None:
        """`--accept-proxy` in front of the proxy: the header's reader has read the request too."""
        far, near = tcp_pair()
        with far, near:
            far.shutdown(socket.SHUT_WR)
            tell(loop, near, RDHUP)
            request = ProxyRequest(None)
            done: list[bool] = []
            errors: list[PeerError] = []
            early = b"CONNECT a:1 HTTP/1.1\r\n\r\nall"
            Preface(loop, near, request, partial(done.append, True), errors.append, early)
            run_until(loop, lambda: done or errors)
            assert request.rest == b"all"
            loop.unwatch(near.fileno())

    def test_who_has_left_needs_no_farewell(
        self, loop: Loop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(preface_module, "_FAREWELL", 1000.0)
        far, near = tcp_pair()
        with far:
            far.sendall(SAID)
            far.shutdown(socket.SHUT_WR)
            tell(loop, near, RDHUP)
            say_farewell(loop, near, b"no")
            run_until(loop, lambda: near.fileno() < 0)
            assert read_all(far) == b"no"


class TestWaiting:
    def wait(self, joined: Joined, sock: socket.socket) -> tuple[Waiting, Stream, list[str]]:
        stream = joined.client.session.open(joined.loop.now)
        calls: list[str] = []

        def refused(code: ResetCode) -> None:
            calls.append(code.name)

        connected = partial(calls.append, "connected")
        progress = partial(calls.append, "progress")
        waiting = Waiting(joined.loop, sock, stream, b"yes", connected, refused, progress)
        return waiting, stream, calls

    def test_a_reset_that_another_was_told(self) -> None:
        with Joined() as joined:
            far, near = tcp_pair()
            break_off(far)
            tell(joined.loop, near, ERR)
            _, stream, calls = self.wait(joined, near)
            joined.until(lambda: stream.reset_code is ResetCode.CANCELLED)
            # The server is to be told now, not when something else happens.
            assert calls == ["progress"]

    def test_a_reset_that_the_answer_runs_into(self) -> None:
        """The send() that is told of it is the only one to be told."""
        with Joined() as joined:
            far, near = tcp_pair()
            waiting, stream, calls = self.wait(joined, near)
            break_off(far)
            stream.confirmed = True
            waiting.update()
            assert stream.reset_code is ResetCode.CANCELLED
            assert calls == ["progress"]
            assert near.fileno() < 0


class TestSubflows:
    def check_told(self, joined: Joined, sock: socket.socket) -> None:
        """Attach `sock`, which holds an OPEN and a FIN, as it comes from the handshake."""
        server = joined.server
        server.on_opened = server.opened.append
        server.driver.attach(sock, 0, "peer", server.lost.append)
        # At once: later the low-water mark is set, and that wakes the socket by chance.
        turn(joined.loop)
        assert server.lost == ["closed by the peer"]
        assert len(server.opened) == 1

    def test_an_end_that_the_handshake_was_told(self) -> None:
        with Joined(subflows=0) as joined:
            near, far = tcp_pair()
            near.sendall(encode(Open(0, 1000, False, "")))
            # A close() would answer us with an RST, and that has an event of its own.
            near.shutdown(socket.SHUT_WR)
            tell(joined.loop, far, RDHUP)
            self.check_told(joined, far)
            near.close()

    def test_an_end_that_another_worker_was_told(self, loop: Loop) -> None:
        """Its copy of the descriptor comes by SCM_RIGHTS, and is new to the next one's epoll."""
        with Joined(subflows=0) as joined:
            near, far = tcp_pair()
            near.sendall(encode(Open(0, 1000, False, "")))
            # A close() would answer us with an RST, and that has an event of its own.
            near.shutdown(socket.SHUT_WR)
            tell(loop, far, RDHUP)
            handed = far.dup()
            loop.unwatch(far.fileno())
            far.close()
            self.check_told(joined, handed)
            near.close()

    def test_early_bytes_beyond_a_turns_work_are_not_forgotten(self) -> None:
        with Joined(subflows=0) as joined:
            near, far = tcp_pair()
            with near:
                driver = joined.server.driver
                early = b"".join(encode(Open(number, 1000, False, "")) for number in range(3))
                joined.server.on_opened = joined.server.opened.append
                assert driver._turn.may_read
                driver._turn.work = 0
                far.setblocking(False)
                subflow = driver.attach(far, 0, "peer", early=early)
                assert subflow is not None
                assert len(joined.server.opened) < 3
                joined.until(lambda: len(joined.server.opened) == 3)

    def test_a_server_that_left_before_the_gate_opened(
        self, loop: Loop, listener: socket.socket
    ) -> None:
        resolver = Resolver(loop)
        errors: list[PeerError] = []
        session = Session(opener=True, limits=Limits(), now=loop.now)
        driver = SessionDriver(loop, BufferPool(), session, lambda _: None, lambda *_: None)
        credentials = Credentials(Identity("", b"c" * 32, b"s" * 32))
        connector = Connector(driver, resolver, credentials, 20.0, lambda: 1)
        connector.creation.enter(Busy())
        attempt = Attempt(
            connector,
            PathSpec(Endpoint(*listener.getsockname())),
            Role.BOTH,
            lambda *_: pytest.fail("nobody has authenticated it"),
            lambda _, error: errors.append(error),
        )
        listener.accept()[0].close()
        run_until(loop, lambda: errors)
        assert not attempt.is_connecting
        assert str(errors[0]) == "the peer closed the connection"
        resolver.close()


class Busy:
    """Another connection, which creates the session and takes its time."""

    def authenticate(self, *, creates: bool) -> None:
        assert creates


def test_a_target_that_resets_while_the_proxy_header_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A send() that is told of it is the only one to be told: the relay would see a FIN."""
    server = Server()
    config = msgspec.structs.replace(server.service._config, send_proxy="v2")
    server.service._config = config
    # Called when the Dial is over, and before the header is sent.
    monkeypatch.setattr(outgoing, "tune", lambda _: break_off(server.target.accept()[0]))
    server.new_session()
    subflow = server.sockets[-1]
    subflow.sendall(encode(Open(0, 1000, False)))
    said: list[Frame] = []

    def is_reset() -> bool:
        said.extend(server.said(subflow))
        return any(isinstance(frame, Reset) for frame in said)

    run_until(server.loop, is_reset, "the stream is reset")
    # What it has said comes first.
    assert Reset(0, ResetCode.CANCELLED, len(SAID)) in said
    server.close()
