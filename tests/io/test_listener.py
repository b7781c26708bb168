"""Listening sockets: sharing a port, and what happens when descriptors run out."""

from __future__ import annotations

import errno
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from fastmtcp.api.server import bind_all
from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import StartError
from fastmtcp.io.listener import Listener, addresses, bind
from fastmtcp.io.loop import Loop
from fastmtcp.io.resolver import Address
from fastmtcp.workers.ports import Ports

from tests.io.net import WAIT, run_until, turn


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


class Accepted:
    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.peers: list[str] = []

    def __call__(self, sock: socket.socket, peer: str) -> None:
        self.sockets.append(sock)
        self.peers.append(peer)


HERE: Address = (socket.AF_INET, ("127.0.0.1", 0))
GONE: Address = (socket.AF_INET6, ("2001:db8::1", 0, 0, 0))
"""No machine has it: it is for documents."""


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Address]]:
    """What names stand for on this machine."""
    known: dict[str, list[Address]] = {}

    def look_up(host: str | None, _port: int, _flags: int = 0) -> list[Address]:
        return known[host or "*"]

    monkeypatch.setattr("fastmtcp.io.listener.look_up", look_up)
    return known


class TestWhatIsHere:
    @pytest.mark.parametrize("found", [[GONE, HERE], [HERE, GONE], [HERE]])
    @pytest.mark.parametrize("host", ["both.example", "*"])
    def test_it_listens_there_and_says_what_was_left_out(
        self, names: dict[str, list[Address]], host: str, found: list[Address]
    ) -> None:
        names[host] = found
        ports = Ports((Endpoint(host, 0),), 2)
        try:
            assert [len(ports.of(index)) for index in range(2)] == [1, 1]
            assert {sock.getsockname()[0] for sock in ports.of(0)} == {"127.0.0.1"}
            assert ports.names == [f"127.0.0.1:{ports.first_port}"]
            # Nobody has asked for the IPv6 of a machine without it who has written *.
            missing = GONE in found and host != "*"
            assert len(ports.left_out) == missing
            assert ("[2001:db8::1]:0, an address of both.example" in "".join(ports.left_out)) == (
                missing
            )
        finally:
            for index in range(2):
                for sock in ports.of(index):
                    sock.close()

    @pytest.mark.parametrize("host", ["gone.example", "*"])
    def test_nothing_there_is_an_error(self, names: dict[str, list[Address]], host: str) -> None:
        names[host] = [GONE]
        with pytest.raises(StartError, match=r"cannot listen on .*:0: Cannot assign"):
            Ports((Endpoint(host, 0),), 2)
        with pytest.raises(OSError, match="Cannot assign"):
            bind_all((Endpoint(host, 0),))

    def test_the_library(
        self, names: dict[str, list[Address]], caplog: pytest.LogCaptureFixture
    ) -> None:
        names["both.example"] = [GONE, HERE]
        (sock,) = bind_all((Endpoint("both.example", 0),))
        assert sock.getsockname()[0] == "127.0.0.1"
        sock.close()
        (record,) = caplog.records
        assert "not listening on [2001:db8::1]:0" in record.getMessage()

    def test_another_error_is_one(self, names: dict[str, list[Address]]) -> None:
        with bind(HERE, shared=False) as taken:
            taken.listen()
            names["both.example"] = [(socket.AF_INET, taken.getsockname()), GONE]
            with pytest.raises(StartError, match="in use"):
                Ports((Endpoint("both.example", 80),), 1)


class TestBind:
    def test_addresses(self) -> None:
        assert addresses(Endpoint("127.0.0.1", 80)) == [(socket.AF_INET, ("127.0.0.1", 80))]
        assert addresses(Endpoint("::1", 80)) == [(socket.AF_INET6, ("::1", 80, 0, 0))]
        families = {family for family, _ in addresses(Endpoint("*", 80))}
        assert socket.AF_INET in families
        with pytest.raises(StartError, match=r"cannot listen on no-such-host\.invalid:80: "):
            addresses(Endpoint("no-such-host.invalid", 80))

    def test_shared_sockets_share_and_others_do_not(self) -> None:
        with bind((socket.AF_INET, ("127.0.0.1", 0)), shared=True) as first:
            where = (socket.AF_INET, first.getsockname())
            with bind(where, shared=True) as second:
                assert not second.getblocking()
                first.listen()
                second.listen()
                with pytest.raises(OSError, match="in use"):
                    bind(where, shared=False)

    def test_the_wildcards_of_both_families_can_have_one_port(self) -> None:
        with bind((socket.AF_INET6, ("::", 0)), shared=False) as six:
            six.listen()
            with bind((socket.AF_INET, ("0.0.0.0", six.getsockname()[1])), shared=False) as four:
                four.listen()

    def test_a_failed_bind_closes_its_socket(self) -> None:
        with bind((socket.AF_INET, ("127.0.0.1", 0)), shared=False) as taken:
            taken.listen()
            where = (socket.AF_INET, taken.getsockname())
            numbers = set()
            for _ in range(3):
                with pytest.raises(OSError, match="in use"):
                    bind(where, shared=False)
                with socket.socket() as probe:
                    numbers.add(probe.fileno())
            assert len(numbers) == 1


@pytest.mark.parametrize(
    ("family", "host", "shown"),
    [(socket.AF_INET, "127.0.0.1", "127.0.0.1:"), (socket.AF_INET6, "::1", "[::1]:")],
)
def test_accepts_non_blocking_sockets_and_names_the_peer(
    loop: Loop, family: socket.AddressFamily, host: str, shown: str
) -> None:
    accepted = Accepted()
    sock = bind((family, (host, 0)), shared=True)
    listener = Listener(loop, sock, accepted)
    peers = [socket.create_connection(sock.getsockname()[:2], WAIT) for _ in range(100)]
    run_until(loop, lambda: len(accepted.sockets) == 100)
    assert all(not s.getblocking() for s in accepted.sockets)
    assert sorted(accepted.peers) == sorted(f"{shown}{p.getsockname()[1]}" for p in peers)
    for used in (*peers, *accepted.sockets):
        used.close()
    listener.close()


def test_after_close_nobody_is_accepted_and_the_port_is_free(loop: Loop) -> None:
    accepted = Accepted()
    sock = bind((socket.AF_INET, ("127.0.0.1", 0)), shared=True)
    where = sock.getsockname()
    listener = Listener(loop, sock, accepted)
    listener.close()
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(where, WAIT)
    turn(loop)
    assert accepted.sockets == []


def test_a_connection_that_cannot_be_taken_is_closed_and_the_next_one_served(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[socket.socket] = []

    def on_accept(sock: socket.socket, _peer: str) -> None:
        if not taken:
            taken.append(sock)
            raise OSError(errno.ENOSPC, "No space left on device")
        taken.append(sock)

    sock = bind((socket.AF_INET, ("127.0.0.1", 0)), shared=True)
    listener = Listener(loop, sock, on_accept)
    with socket.create_connection(sock.getsockname(), WAIT) as first:
        run_until(loop, lambda: taken)
        assert first.recv(1) == b""
    with socket.create_connection(sock.getsockname(), WAIT):
        run_until(loop, lambda: len(taken) == 2)
        assert taken[1].fileno() >= 0
    assert "dropped: No space left on device" in caplog.text
    taken[1].close()
    listener.close()


# In a process of its own: lowering the limit would hit the test runner as well.
_EXHAUSTED = """
import logging, resource, socket, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from fastmtcp.io.listener import Listener, bind
from fastmtcp.io.loop import Loop
from fastmtcp.io.resolver import Address
from fastmtcp.workers.ports import Ports

loop = Loop()
accepted = []
wakes = [0]
sock = bind((socket.AF_INET, ("127.0.0.1", 0)), shared=True)
listener = Listener(loop, sock, lambda s, peer: accepted.append(s))
peers = [socket.create_connection(sock.getsockname()) for _ in range(50)]
used = len(__import__("os").listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, used + 50))
real = listener._on_event
def counted(mask):
    wakes[0] += 1
    real(mask)
listener._on_event = counted
loop.unwatch(sock.fileno())
loop.watch_level(sock.fileno(), counted)

loop.call_later(1.0, loop.stop)
loop.run()
print("accepted", len(accepted), "wakes", wakes[0])
early = len(accepted)
while accepted:
    accepted.pop().close()
total = [early]
def look():
    total[0] += len(accepted)
    while accepted:
        accepted.pop().close()
    if total[0] < 50:
        loop.call_later(0.01, look)
    else:
        loop.stop()
loop.call_soon(look)
loop.run()
print("in the end", total[0])
"""


def test_out_of_descriptors_it_pauses_without_spinning_and_resumes() -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 200
    result = subprocess.run(
        [sys.executable, "-c", _EXHAUSTED], capture_output=True, text=True, timeout=WAIT, check=True
    )
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "cannot accept connections: Too many open files; waiting for others to end "
        "(raise the limit with ulimit -n)"
    )
    words = lines[1].split()
    assert 5 <= int(words[1]) < 50
    # Every 0.2 seconds, not all the time.
    assert 2 <= int(words[3]) <= 10
    assert lines[2] == "in the end 50"
    assert len(lines) == 3


# As above: with all descriptors gone for good, those that wait hear it.
_FULL = """
import resource, socket, sys
from fastmtcp.io import listener as module
from fastmtcp.io.listener import Listener, bind
from fastmtcp.io.loop import Loop
from tests.io.net import is_reset, run_until

module._PATIENCE = 0.5
loop = Loop()
accepted = []
sock = bind((socket.AF_INET, ("127.0.0.1", 0)), shared=True)
listener = Listener(loop, sock, lambda s, peer: accepted.append(s))
peers = [socket.create_connection(sock.getsockname()) for _ in range(50)]
used = len(__import__("os").listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, used + 50))
run_until(loop, lambda: sum(map(is_reset, peers)) + len(accepted) == 50)
assert 5 <= len(accepted) < 50, len(accepted)
held = {s.getpeername() for s in accepted}
assert all((peer.getsockname() in held) != is_reset(peer) for peer in peers)
for gone in (*peers, *accepted):
    gone.close()
count = len(accepted)
# It has room again, and its descriptor for the next time.
late = socket.create_connection(sock.getsockname())
run_until(loop, lambda: len(accepted) > count)
assert not is_reset(late)
assert listener._spare >= 0
"""


def test_out_of_descriptors_for_long_it_resets_those_that_wait() -> None:
    result = subprocess.run(
        [sys.executable, "-c", _FULL], capture_output=True, text=True, timeout=2 * WAIT, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("connections reset that could not be accepted") == 1


def test_one_on_hold_is_still_a_descriptor_of_the_loop(loop: Loop) -> None:
    """A forked child closes those, or it would keep the port."""
    accepted = Accepted()
    sock = bind((socket.AF_INET, ("127.0.0.1", 0)), shared=True)
    listener = Listener(loop, sock, accepted)
    listener.hold(True)
    assert sock.fileno() in loop.descriptors
    with socket.create_connection(sock.getsockname(), WAIT):
        turn(loop, 3)
        assert not accepted.sockets
        listener.hold(False)
        run_until(loop, lambda: accepted.sockets)
    accepted.sockets[0].close()
    number = sock.fileno()
    listener.close()
    assert number not in loop.descriptors
