"""Changes of the network: which messages count, and how often somebody is told."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest
from fastmtcp.client.pool import ways
from fastmtcp.client.pool.ways import Ways
from fastmtcp.config.path import PathSpec
from fastmtcp.io import netlink
from fastmtcp.io.loop import Loop
from fastmtcp.io.netlink import NetworkWatch, Route, kinds_of_change, route_to

from tests.io.net import run_until, turn

NEW_LINK, DEL_LINK, NEW_ADDRESS, DEL_ADDRESS, NEW_ROUTE, DEL_ROUTE = 16, 17, 20, 21, 24, 25
NEW_NEIGHBOUR = 28
NEW_RULE, DEL_RULE = 32, 33
MAIN_TABLE, LOCAL_TABLE = 254, 255
CLONED = 0x200


def message(kind: int, body: bytes = bytes(16)) -> bytes:
    whole = struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body
    return whole + bytes(-len(whole) % 4)


def route(kind: int, table: int = MAIN_TABLE, flags: int = 0) -> bytes:
    return message(kind, struct.pack("=BBBBBBBBI", 2, 24, 0, 0, table, 3, 0, 1, flags))


@pytest.mark.parametrize(
    ("data", "kinds"),
    [
        (message(NEW_LINK), {"address"}),
        (message(DEL_LINK), {"address"}),
        (message(NEW_ADDRESS), {"address"}),
        (message(DEL_ADDRESS), {"address"}),
        (route(NEW_ROUTE), {"route"}),
        (route(DEL_ROUTE), {"route"}),
        (route(NEW_ROUTE, LOCAL_TABLE), set()),
        (route(NEW_ROUTE, flags=CLONED), set()),
        (message(NEW_RULE), {"route"}),
        (message(DEL_RULE), {"route"}),
        (message(NEW_NEIGHBOUR), set()),
        (message(NEW_NEIGHBOUR, bytes(5)) + route(NEW_ROUTE), {"route"}),
        (message(NEW_LINK) + route(NEW_ROUTE), {"address", "route"}),
        (b"", set()),
        (bytes(100), set()),
        (message(NEW_ROUTE, b"12"), set()),
        (route(NEW_ROUTE)[:20], set()),
    ],
)
def test_kinds_of_change(data: bytes, kinds: set[str]) -> None:
    assert kinds_of_change(data) == kinds


class Kernel:
    """Stands in for the kernel: the other end of the watch's socket."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.theirs.setblocking(False)
        monkeypatch.setattr(netlink, "_open", lambda: self.theirs)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    turn(loop, 1)
    yield loop
    assert not loop._handlers, "a descriptor is still watched"
    loop.close()


def test_many_messages_make_one_call(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "_PAUSE", 0.01)
    monkeypatch.setattr(netlink, "SETTLE", 0.05)
    kernel = Kernel(monkeypatch)
    calls: list[bool] = []
    watch = NetworkWatch(loop, calls.append)
    for _ in range(20):
        kernel.ours.send(message(NEW_ADDRESS))
        turn(loop, 1)
    assert calls == []
    run_until(loop, lambda: calls)
    kernel.ours.send(message(NEW_NEIGHBOUR))
    kernel.ours.send(route(NEW_ROUTE))
    run_until(loop, lambda: len(calls) == 2)
    assert calls == [False, True]
    kernel.ours.send(message(NEW_LINK))
    run_until(loop, lambda: len(calls) == 3)
    assert calls[2] is False
    watch.close()
    watch.close()


def test_there_is_a_pause_between_two_calls(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "_PAUSE", 3600.0)
    monkeypatch.setattr(netlink, "SETTLE", 0.01)
    kernel = Kernel(monkeypatch)
    calls: list[bool] = []
    watch = NetworkWatch(loop, calls.append)
    kernel.ours.send(message(NEW_LINK))
    run_until(loop, lambda: calls)
    kernel.ours.send(message(NEW_LINK))
    turn(loop, 5)
    assert watch._timer is not None
    assert watch._timer.when > loop.now + 3000
    watch.close()


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.EBADF])
def test_messages_that_were_too_many_and_a_socket_that_broke(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(netlink, "SETTLE", 0.01)
    kernel = Kernel(monkeypatch)
    calls: list[bool] = []
    watch = NetworkWatch(loop, calls.append)

    class Broken:
        def recv(self, _size: int) -> bytes:
            raise OSError(code, "x")

        def fileno(self) -> int:
            return kernel.theirs.fileno()

        def close(self) -> None:
            pass

    watch._sock = Broken()  # type: ignore[assignment]
    kernel.ours.send(b"x")
    if code == errno.ENOBUFS:
        run_until(loop, lambda: calls)
        assert calls[0] is True
    else:
        run_until(loop, lambda: watch._sock is None)
    watch.close()


def test_a_system_without_rtnetlink(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_NETLINK")
    watch = NetworkWatch(loop, lambda _routes: None)
    assert not loop._handlers
    watch.close()


def test_the_real_one_can_be_opened(loop: Loop) -> None:
    watch = NetworkWatch(loop, lambda _routes: None)
    assert len(loop._handlers) == 1
    watch.close()


@pytest.mark.parametrize(
    ("source", "device"), [(None, None), (None, "lo"), ("127.0.0.2", None), ("127.0.0.2", "lo")]
)
def test_the_way_to_this_machine(source: str | None, device: str | None) -> None:
    way = route_to("127.0.0.3", source, device)
    assert way is not None
    assert (way.device, way.gateway) == (socket.if_nametoindex("lo"), b"")
    assert way == route_to("127.0.0.3", source, device)


@pytest.mark.parametrize(
    ("host", "source", "device"),
    [
        ("127.0.0.1", "192.0.2.77", None),
        ("127.0.0.1", None, "no-such-device"),
        ("name.example", None, None),
        ("", None, None),
    ],
)
def test_there_is_no_way(host: str, source: str | None, device: str | None) -> None:
    assert route_to(host, source, device) is None


def test_the_way_where_nobody_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", fail)
    with pytest.raises(OSError, match="Too many"):
        route_to("127.0.0.1")
    monkeypatch.delattr(socket, "AF_NETLINK")
    with pytest.raises(OSError, match="no rtnetlink"):
        route_to("127.0.0.1")


class TestWays:
    @pytest.fixture
    def routes(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Route]:
        """What leads where; the default for all others."""
        routes: dict[str, Route] = {}

        def look(host: str, _source: str | None, _device: str | None) -> Route | None:
            return routes.get(host, routes.get("default"))

        monkeypatch.setattr(ways, "route_to", look)
        return routes

    def test_a_number_has_one_way(self, routes: dict[str, Route]) -> None:
        found = Ways(PathSpec.parse("198.51.100.1:1"))
        assert not found.have_changed()
        routes["198.51.100.2"] = Route(1, b"", b"")
        assert not found.have_changed()
        routes["198.51.100.1"] = Route(1, b"", b"")
        assert found.have_changed()
        assert not found.have_changed()

    def test_a_cable_that_is_drawn_and_comes_back(self, routes: dict[str, Route]) -> None:
        routes["default"] = Route(3, b"", b"")
        found = Ways(PathSpec.parse("198.51.100.1:1"))
        assert not found.have_changed({1, 2, 4})
        assert found.have_changed({1, 3})

    def test_of_a_name_the_default_counts_until_it_is_known(self, routes: dict[str, Route]) -> None:
        found = Ways(PathSpec.parse("name.example:1"))
        routes["198.51.100.1"] = Route(1, b"", b"")
        assert not found.have_changed()
        routes["default"] = Route(2, b"", b"")
        assert found.have_changed()
        found.note("198.51.100.1")
        routes["default"] = Route(3, b"", b"")
        assert not found.have_changed()
        found.note("198.51.100.1")
        routes["198.51.100.1"] = Route(4, b"", b"")
        assert found.have_changed()

    def test_no_more_than_some_addresses_are_remembered(self, routes: dict[str, Route]) -> None:
        found = Ways(PathSpec.parse("name.example:1"))
        for number in range(100):
            found.note(f"198.51.100.{number}")
        routes["198.51.100.0"] = Route(1, b"", b"")
        assert not found.have_changed()
        routes["198.51.100.99"] = Route(1, b"", b"")
        assert found.have_changed()

    def test_what_cannot_be_asked_for_is_no_change(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No descriptor is left: that is no other way."""
        found = Ways(PathSpec.parse("127.0.0.1:1"))

        def fail(*_arguments: object) -> socket.socket:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", fail)
            assert not found.have_changed()
        assert not found.have_changed()
