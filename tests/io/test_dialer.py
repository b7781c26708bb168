"""Outgoing connections: every way in which they end."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from fastmtcp.endpoint import Endpoint
from fastmtcp.io.dialer import ANYWHERE, Dial, WayOut, may_bind_to_device
from fastmtcp.io.loop import IN, Loop
from fastmtcp.io.resolver import Address, Answer, Resolver

from tests.io.net import free_port, refusing_port, run_until, silent_port, turn


class Names:
    """A resolver that knows what the test tells it; it answers when asked to, or at once."""

    def __init__(self, loop: Loop, result: list[Address] | OSError, *, later: bool = False) -> None:
        self._result = result
        self._later = later
        self.waiting: list[Answer] = []

    def resolve(self, _host: str, _port: int, answer: Answer, _asker: object) -> None:
        if self._later:
            self.waiting.append(answer)
        else:
            answer(self._result)

    def answer(self) -> None:
        for answer in self.waiting:
            answer(self._result)


class Outcome:
    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.errors: list[tuple[OSError, bool]] = []

    def connected(self, sock: socket.socket) -> None:
        self.sockets.append(sock)

    def failed(self, error: OSError, unresolved: bool) -> None:
        self.errors.append((error, unresolved))

    @property
    def known(self) -> bool:
        return bool(self.sockets or self.errors)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    assert not loop._handlers, "a descriptor is still watched"
    loop.close()


@pytest.fixture
def resolver(loop: Loop) -> Iterator[Resolver]:
    resolver = Resolver(loop)
    yield resolver
    resolver.close()


@pytest.fixture
def outcome(loop: Loop) -> Iterator[Outcome]:
    outcome = Outcome()
    yield outcome
    for sock in outcome.sockets:
        loop.unwatch(sock.fileno())
    outcome.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def dial(
    loop: Loop,
    resolver: object,
    host: str,
    port: int,
    outcome: Outcome,
    timeout: float = 20.0,
    way_out: WayOut = ANYWHERE,
    patience: float | None = None,
) -> Dial:
    turn(loop, 1)  # so that loop.now is now, as it is in a running loop
    return Dial(
        loop,
        resolver,  # type: ignore[arg-type]
        Endpoint(host, port),
        timeout,
        outcome.connected,
        outcome.failed,
        way_out=way_out,
        patience=patience,
    )


def v4(port: int, host: str = "127.0.0.1") -> Address:
    return (socket.AF_INET, (host, port))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_connects_and_hands_over_a_watched_socket(
    loop: Loop, resolver: Resolver, outcome: Outcome, listener: socket.socket, host: str
) -> None:
    dial(loop, resolver, host, port_of(listener), outcome)
    assert not outcome.known
    run_until(loop, lambda: outcome.known)
    (sock,) = outcome.sockets
    peer, _ = listener.accept()
    with peer:
        masks: list[int] = []
        loop.watch(sock.fileno(), masks.append)
        assert not sock.getblocking()
        peer.sendall(b"x")
        run_until(loop, lambda: any(mask & IN for mask in masks))
        assert sock.recv(10) == b"x"


def test_connects_over_ipv6(loop: Loop, resolver: Resolver, outcome: Outcome) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        dial(loop, resolver, "::1", port_of(listener), outcome)
        run_until(loop, lambda: outcome.known)
        assert outcome.sockets


def test_refused(loop: Loop, resolver: Resolver, outcome: Outcome) -> None:
    with refusing_port() as port:
        dial(loop, resolver, "127.0.0.1", port, outcome)
        # Never from within the constructor: the caller does not know the attempt yet.
        assert not outcome.known
        run_until(loop, lambda: outcome.known)
    ((error, unresolved),) = outcome.errors
    assert error.errno == errno.ECONNREFUSED
    assert not unresolved


def test_an_address_that_cannot_be_reached(loop: Loop, outcome: Outcome) -> None:
    names = Names(loop, [v4(80, "255.255.255.255")])
    dial(loop, names, "name", 80, outcome)
    assert not outcome.known
    run_until(loop, lambda: outcome.known)
    assert outcome.errors[0][0].errno in (errno.EACCES, errno.ENETUNREACH, errno.EHOSTUNREACH)


def test_an_unknown_name(loop: Loop, resolver: Resolver, outcome: Outcome) -> None:
    dial(loop, resolver, "no-such-host.invalid", 80, outcome)
    run_until(loop, lambda: outcome.known)
    ((_, unresolved),) = outcome.errors
    assert unresolved


def test_no_answer_in_time(loop: Loop, resolver: Resolver, outcome: Outcome) -> None:
    with silent_port() as port:
        dial(loop, resolver, "127.0.0.1", port, outcome, timeout=0.2)
        run_until(loop, lambda: outcome.known)
    ((error, unresolved),) = outcome.errors
    assert error.errno == errno.ETIMEDOUT
    assert not unresolved


def test_a_name_that_takes_too_long(loop: Loop, outcome: Outcome, listener: socket.socket) -> None:
    names = Names(loop, [v4(port_of(listener))], later=True)
    dial(loop, names, "name", 80, outcome, timeout=0.05)
    run_until(loop, lambda: outcome.known)
    assert outcome.errors[0][0].errno == errno.ETIMEDOUT
    names.answer()
    turn(loop)
    assert not outcome.sockets
    assert len(outcome.errors) == 1


class TestSeveralAddresses:
    def test_the_next_is_tried_when_one_refuses(
        self, loop: Loop, outcome: Outcome, listener: socket.socket
    ) -> None:
        with refusing_port() as dead:
            names = Names(loop, [v4(dead), v4(dead), v4(port_of(listener))])
            dial(loop, names, "name", 80, outcome)
            run_until(loop, lambda: outcome.known)
        assert outcome.sockets[0].getpeername()[1] == port_of(listener)

    def test_one_that_is_silent_gets_its_share_of_the_time_only(
        self, loop: Loop, outcome: Outcome, listener: socket.socket
    ) -> None:
        with silent_port() as silent:
            names = Names(loop, [v4(silent), v4(silent), v4(port_of(listener))])
            dial(loop, names, "name", 80, outcome, timeout=0.6)
            run_until(loop, lambda: outcome.known)
        assert outcome.sockets[0].getpeername()[1] == port_of(listener)

    def test_the_last_error_counts(self, loop: Loop, outcome: Outcome) -> None:
        with silent_port() as silent, refusing_port() as dead:
            names = Names(loop, [v4(silent), v4(dead)])
            dial(loop, names, "name", 80, outcome, timeout=0.4)
            run_until(loop, lambda: outcome.known)
        assert outcome.errors[0][0].errno == errno.ECONNREFUSED
        assert len(outcome.errors) == 1

    def test_repeated_dials_begin_with_different_ones(self, loop: Loop, outcome: Outcome) -> None:
        with ExitStack() as stack:
            listeners = [
                stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)
            ]
            ports = [port_of(listener) for listener in listeners]
            names = Names(loop, [v4(port) for port in ports])
            for first in range(6):
                Dial(
                    loop,
                    names,  # type: ignore[arg-type]
                    Endpoint("name", 80),
                    20.0,
                    outcome.connected,
                    outcome.failed,
                    first,
                )
                run_until(loop, lambda: len(outcome.sockets) == first + 1)  # noqa: B023
            assert [sock.getpeername()[1] for sock in outcome.sockets] == ports * 2


class ThisPort(WayOut, frozen=True):
    """What the kernel may choose by itself: the local port is the one that is dialed."""

    port: int = 0

    def apply(self, sock: socket.socket) -> None:
        sock.bind(("127.0.0.1", self.port))


class TestItself:
    def test_is_nobody(self, loop: Loop, resolver: Resolver, outcome: Outcome) -> None:
        port = free_port()
        Dial(
            loop,
            resolver,
            Endpoint("127.0.0.1", port),
            20.0,
            outcome.connected,
            outcome.failed,
            way_out=ThisPort(port=port),
        )
        run_until(loop, lambda: outcome.known)
        assert [error.errno for error, _ in outcome.errors] == [errno.ECONNREFUSED]
        # The service that belongs there can start.
        with socket.socket() as service:
            service.bind(("127.0.0.1", port))

    def test_the_next_address_is_tried(
        self, loop: Loop, outcome: Outcome, listener: socket.socket
    ) -> None:
        port = free_port()

        names = Names(loop, [v4(port), v4(port_of(listener))])
        Dial(
            loop,
            names,  # type: ignore[arg-type]
            Endpoint("name", 80),
            20.0,
            outcome.connected,
            outcome.failed,
            way_out=ThisPort(port=port),
        )
        run_until(loop, lambda: outcome.known)
        assert outcome.sockets[0].getpeername()[1] == port_of(listener)


class TestCancel:
    def test_while_connecting(self, loop: Loop, resolver: Resolver, outcome: Outcome) -> None:
        with silent_port() as port:
            attempt = dial(loop, resolver, "127.0.0.1", port, outcome, timeout=0.05)
            attempt.cancel()
            attempt.cancel()
            done: list[int] = []
            loop.call_later(0.2, lambda: done.append(1))
            run_until(loop, lambda: done)
        assert not outcome.known

    def test_while_the_name_is_looked_up(
        self, loop: Loop, outcome: Outcome, listener: socket.socket
    ) -> None:
        names = Names(loop, [v4(port_of(listener))], later=True)
        dial(loop, names, "name", 80, outcome).cancel()
        names.answer()
        turn(loop)
        assert not outcome.known

    def test_between_the_failure_and_the_call(
        self, loop: Loop, resolver: Resolver, outcome: Outcome
    ) -> None:
        names = Names(loop, OSError(errno.ENOENT, "unknown"))
        attempt = dial(loop, names, "name", 80, outcome)
        attempt.cancel()
        turn(loop)
        assert not outcome.known


def test_out_of_descriptors_is_a_failure_like_others(
    loop: Loop, resolver: Resolver, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_arguments: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("fastmtcp.io.dialer.socket.socket", exhausted)
    dial(loop, resolver, "127.0.0.1", 80, outcome)
    assert not outcome.known
    run_until(loop, lambda: outcome.known)
    assert outcome.errors[0][0].errno == errno.EMFILE


class TestWayOut:
    def test_the_connection_comes_from_the_address(
        self, loop: Loop, resolver: Resolver, outcome: Outcome, listener: socket.socket
    ) -> None:
        dial(loop, resolver, "127.0.0.1", port_of(listener), outcome, way_out=WayOut("127.0.0.9"))
        run_until(loop, lambda: outcome.known)
        assert outcome.sockets[0].getsockname()[0] == "127.0.0.9"

    def test_the_connection_is_tied_to_the_device(
        self, loop: Loop, resolver: Resolver, outcome: Outcome, listener: socket.socket
    ) -> None:
        assert may_bind_to_device()
        way_out = WayOut("127.0.0.9", "lo")
        dial(loop, resolver, "127.0.0.1", port_of(listener), outcome, way_out=way_out)
        run_until(loop, lambda: outcome.known)
        (sock,) = outcome.sockets
        device = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
        assert device.rstrip(b"\0") == b"lo"

    @pytest.mark.parametrize(
        ("way_out", "code", "text"),
        [
            (WayOut("192.0.2.1"), errno.EADDRNOTAVAIL, "this machine does not have the address "),
            (WayOut(device="nosuchdev0"), errno.ENODEV, "no interface nosuchdev0"),
        ],
    )
    def test_what_this_machine_does_not_have(
        self,
        loop: Loop,
        resolver: Resolver,
        outcome: Outcome,
        way_out: WayOut,
        code: int,
        text: str,
    ) -> None:
        dial(loop, resolver, "127.0.0.1", 9, outcome, way_out=way_out)
        assert not outcome.known
        run_until(loop, lambda: outcome.known)
        ((error, _),) = outcome.errors
        assert error.errno == code
        assert str(error.strerror).startswith(text)

    def test_no_permission_says_what_to_do(
        self,
        loop: Loop,
        resolver: Resolver,
        outcome: Outcome,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        class Forbidden(socket.socket):
            def setsockopt(self, *arguments: object) -> None:
                if arguments[1] == socket.SO_BINDTODEVICE:
                    raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(socket, "socket", Forbidden)
        assert not may_bind_to_device()
        dial(loop, resolver, "127.0.0.1", 9, outcome, way_out=WayOut(device="lo"))
        run_until(loop, lambda: outcome.known)
        expected = "no permission to use dev=lo; it needs CAP_NET_RAW, bind= does not"
        assert outcome.errors[0][0].strerror == expected

    def test_only_addresses_of_the_same_kind_are_tried(
        self, loop: Loop, outcome: Outcome, listener: socket.socket
    ) -> None:
        v6: Address = (socket.AF_INET6, ("::1", port_of(listener), 0, 0))
        names = Names(loop, [v6, v4(port_of(listener)), v6])
        dial(loop, names, "name", 80, outcome, way_out=WayOut("127.0.0.1"))
        run_until(loop, lambda: outcome.known)
        assert outcome.sockets[0].family == socket.AF_INET

    def test_none_of_the_same_kind(self, loop: Loop, outcome: Outcome) -> None:
        names = Names(loop, [v4(80)])
        dial(loop, names, "name", 80, outcome, way_out=WayOut("::1"))
        run_until(loop, lambda: outcome.known)
        assert outcome.errors[0][0].strerror == "no IPv6 address to reach from ::1"


def test_patience_is_for_each_address(
    loop: Loop, outcome: Outcome, listener: socket.socket
) -> None:
    with silent_port() as silent:
        names = Names(loop, [v4(silent), v4(port_of(listener))])
        dial(loop, names, "name", 80, outcome, timeout=3600.0, patience=0.05)
        run_until(loop, lambda: outcome.known)
        assert outcome.sockets[0].getpeername()[1] == port_of(listener)
        names = Names(loop, [v4(silent)])
        dial(loop, names, "name", 80, outcome, timeout=3600.0, patience=0.05)
        run_until(loop, lambda: outcome.errors)
    assert outcome.errors[0][0].errno == errno.ETIMEDOUT
