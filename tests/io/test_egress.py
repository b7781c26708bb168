"""`--egress auto`: which paths are made of which addresses."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import psutil
import pytest
from fastmtcp.client import egress
from fastmtcp.client.egress import Egress, LocalAddress, local_addresses
from fastmtcp.config.path import PathSpec
from fastmtcp.io.loop import Loop, Timer
from fastmtcp.io.resolver import Address, Answer

from tests.io.net import run_until, turn

LOCAL = (
    LocalAddress("lo", "127.0.0.1"),
    LocalAddress("eth0", "10.0.0.2"),
    LocalAddress("eth0", "169.254.1.1"),
    LocalAddress("eth1", "10.1.0.2"),
    LocalAddress("lo", "::1"),
    LocalAddress("eth0", "2001:db8::2"),
    LocalAddress("eth0", "fe80::2"),
)
V4: Address = (socket.AF_INET, ("192.0.2.1", 1))
V6: Address = (socket.AF_INET6, ("2001:db8::1", 1, 0, 0))


class Names:
    """Answers numeric hosts at once, as the real one does, and names when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, Answer]] = []

    def resolve(self, host: str, _port: int, answer: Answer, asker: str) -> None:
        assert asker == host
        if host[0].isdigit():
            answer([V6 if ":" in host else V4])
        else:
            self.waiting.append((host, answer))

    def answer(self, result: list[Address] | OSError) -> None:
        waiting, self.waiting = self.waiting, []
        for _, answer in waiting:
            answer(result)


class World:
    def __init__(self, loop: Loop, *servers: str, auto: bool = True) -> None:
        self.names = Names()
        self.published: list[list[str]] = []
        self.egress = Egress(
            loop,
            self.names,  # type: ignore[arg-type]
            [PathSpec.parse(server) for server in servers],
            auto,
            lambda paths: self.published.append([str(path) for path in paths]),
        )


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    monkeypatch.setattr(egress, "may_bind_to_device", lambda: True)
    loop = Loop()
    turn(loop, 1)
    yield loop
    loop.close()


def test_off_leaves_the_paths_alone(loop: Loop) -> None:
    world = World(loop, "name:1", "192.0.2.1:1,backup", auto=False)
    world.egress.refresh(LOCAL)
    world.egress.refresh(())
    assert world.published == [["name:1", "192.0.2.1:1,backup"]]
    assert world.names.waiting == []


def test_one_path_for_each_usable_address_of_the_same_kind(loop: Loop) -> None:
    world = World(loop, "192.0.2.1:1,connections=2", "2001:db8::1".join("[]") + ":1")
    world.egress.refresh(LOCAL)
    assert world.published[-1] == [
        "192.0.2.1:1,bind=10.0.0.2,dev=eth0,connections=2",
        "192.0.2.1:1,bind=10.1.0.2,dev=eth1,connections=2",
        "[2001:db8::1]:1,bind=2001:db8::2,dev=eth0",
    ]


def test_without_permission_for_devices_the_address_must_do(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress, "may_bind_to_device", lambda: False)
    world = World(loop, "192.0.2.1:1")
    world.egress.refresh(LOCAL)
    assert world.published == [["192.0.2.1:1,bind=10.0.0.2", "192.0.2.1:1,bind=10.1.0.2"]]


def test_who_has_a_way_out_or_is_on_this_machine_keeps_it(loop: Loop) -> None:
    kept = ["192.0.2.1:1,dev=eth1", "192.0.2.1:1,bind=10.0.0.2", "127.0.0.1:1"]
    kept.append("192.0.2.9:1,via=socks5://127.0.0.1:1080")
    world = World(loop, *kept)
    world.egress.refresh(LOCAL)
    assert world.published == [kept]


def test_a_proxy_is_what_must_be_reached(loop: Loop) -> None:
    world = World(loop, "name:1,via=http://192.0.2.1:8")
    world.egress.refresh(LOCAL[1:2])
    assert world.published == [["name:1,bind=10.0.0.2,dev=eth0,via=http://192.0.2.1:8"]]


def test_interfaces_come_and_go(loop: Loop) -> None:
    world = World(loop, "192.0.2.1:1")
    world.egress.refresh(LOCAL[1:2])
    world.egress.refresh(LOCAL[1:2])
    world.egress.refresh(LOCAL)
    world.egress.refresh(LOCAL[3:])
    world.egress.refresh(())
    assert [len(paths) for paths in world.published] == [1, 2, 1, 0]


def test_a_name_is_looked_up_for_its_kinds_of_address(loop: Loop) -> None:
    world = World(loop, "name:1")
    world.egress.refresh(LOCAL)
    assert world.published == []
    assert world.egress.paths is None
    world.names.answer([V6])
    assert world.published == [["name:1,bind=2001:db8::2,dev=eth0"]]
    # Looked up anew when the network has changed; meanwhile what is known is used.
    world.egress.refresh(LOCAL[:4])
    assert world.published[1:] == [[]]
    world.names.answer([V4, V6])
    assert world.published[2:] == [
        ["name:1,bind=10.0.0.2,dev=eth0", "name:1,bind=10.1.0.2,dev=eth1"]
    ]
    # A failure later on changes nothing.
    world.egress.refresh(LOCAL[:4])
    world.names.answer(OSError(1, "no"))
    assert len(world.published) == 3


def test_a_name_that_cannot_be_looked_up_is_tried_again(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(egress, "_FIRST_DELAY", 0.01)
    world = World(loop, "name:1", "192.0.2.1:1")
    world.egress.refresh(LOCAL[1:2])
    world.names.answer(OSError(1, "Temporary failure"))
    assert "cannot look up name: Temporary failure; trying again" in caplog.text
    # The other server does not wait for it.
    assert world.published == [["192.0.2.1:1,bind=10.0.0.2,dev=eth0"]]
    run_until(loop, lambda: world.names.waiting)
    world.names.answer([V4])
    assert len(world.published[-1]) == 2


def test_an_answer_counts_however_often_the_network_has_changed_since(loop: Loop) -> None:
    world = World(loop, "name:1")
    world.egress.refresh(LOCAL)
    (first,) = world.names.waiting
    for _ in range(5):
        world.egress.refresh(LOCAL)
    # One beside another, and no more.
    assert len(world.names.waiting) == 2
    world.names.waiting.remove(first)
    first[1]([V4])
    assert len(world.published[-1]) == 2
    # It has changed since the second was asked: once more.
    assert len(world.names.waiting) == 2
    world.names.answer([V6])
    assert world.published[-1] == ["name:1,bind=2001:db8::2,dev=eth0"]
    assert world.names.waiting == []


def test_an_answer_after_the_end_is_ignored(loop: Loop) -> None:
    world = World(loop, "name:1")
    world.egress.refresh(LOCAL)
    world.egress.refresh(LOCAL)
    world.egress.refresh(LOCAL)
    world.egress.close()
    world.names.answer([V4])
    assert world.published == []
    assert world.names.waiting == []


def test_one_timer_tries_again_however_often_the_network_changes(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    timers: list[Timer] = []

    def call_later(delay: float, callback: Callable[[], None]) -> Timer:
        timers.append(Timer(loop.now + delay, callback))
        return timers[-1]

    monkeypatch.setattr(loop, "call_later", call_later)
    world = World(loop, "name:1")
    for _ in range(12):
        world.egress.refresh(LOCAL)
        world.names.answer(OSError(1, "Temporary failure"))
    assert len(timers) == 12
    assert [timer.callback is None for timer in timers] == [True] * 11 + [False]
    world.egress.close()
    assert timers[-1].callback is None


def test_local_addresses_are_those_of_interfaces_that_are_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def entry(family: int, address: str) -> SimpleNamespace:
        return SimpleNamespace(family=family, address=address)

    v4, v6, link = socket.AF_INET, socket.AF_INET6, socket.AF_PACKET
    interfaces = {
        "eth1": [entry(v4, "10.1.0.2"), entry(link, "00:00:00:00:00:01")],
        "eth0": [entry(v6, "fe80::2%eth0"), entry(v4, "10.0.0.2")],
        "off0": [entry(v4, "10.9.0.2")],
        "gone0": [entry(v4, "10.8.0.2")],
    }
    states = {"eth0": True, "eth1": True, "off0": False}
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(2, "eth0"), (7, "eth1")])
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)
    monkeypatch.setattr(
        psutil,
        "net_if_stats",
        lambda: {name: SimpleNamespace(isup=up) for name, up in states.items()},
    )
    assert local_addresses() == (
        LocalAddress("eth0", "10.0.0.2", 2),
        LocalAddress("eth1", "10.1.0.2", 7),
        LocalAddress("eth0", "fe80::2", 2),
    )
    assert [local.is_usable for local in local_addresses() or ()] == [True, True, False]


def no_proc(*_: object) -> None:
    raise FileNotFoundError(2, "No such file or directory")


def test_local_addresses_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = local_addresses()
    assert usual
    monkeypatch.setattr(psutil, "net_if_stats", no_proc)
    assert local_addresses() == usual


def test_local_addresses_that_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptor(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(psutil, "net_if_addrs", no_descriptor)
    assert local_addresses() is None
