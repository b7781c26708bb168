"""The throttle: rate by rate on virtual time, and everything else over real sockets."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from fastmtcp.demo.throttle import BURST, MAX_LATE, Throttle, TokenBucket
from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import StartError

FAST = 1_000_000_000
WAIT = 20.0


@pytest.fixture
def target() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT)
        yield listener


@contextlib.contextmanager
def relayed(
    target: socket.socket, *, rate: float = FAST, delay: float = 0.0
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """An application's socket and the target's, with a throttle between them."""
    with Throttle(port_of(target), rate=rate, delay=delay) as throttle:
        near = connect(throttle)
        far, _ = target.accept()
        far.settimeout(WAIT)
        with near, far:
            yield near, far


def port_of(listener: socket.socket) -> Endpoint:
    return Endpoint("127.0.0.1", listener.getsockname()[1])


def connect(throttle: Throttle) -> socket.socket:
    return socket.create_connection((throttle.address.host, throttle.address.port), WAIT)


def abort(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def send_in_background(sock: socket.socket, data: bytes) -> threading.Thread:
    def send() -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def send_until_broken(sock: socket.socket) -> None:
    """Write a little now and then: after a FIN was read only that tells of a reset."""
    for _ in range(1000):
        sock.sendall(b"y")
        select.select([], [], [], 0.01)


class TestTokenBucket:
    def test_waiting_bytes_get_the_rate_exactly_however_late_the_ticks_are(self) -> None:
        bucket = TokenBucket(1000.0, 0.0)
        bucket.spend(bucket.available(0.0, waiting=False))
        passed = 0
        for now in (0.003, 0.009, 0.2, 0.2004, 0.44, 1.0 - MAX_LATE / 2, 1.0):
            allowed = bucket.available(now, waiting=True)
            bucket.spend(allowed)
            passed += allowed
        assert passed == 1000

    def test_an_idle_connection_saves_up_one_burst_only(self) -> None:
        bucket = TokenBucket(1_000_000.0, 0.0)
        assert bucket.available(3600.0, waiting=False) == int(1_000_000 * BURST)

    def test_a_stall_of_this_process_is_made_up_for_to_a_limit(self) -> None:
        bucket = TokenBucket(1_000_000.0, 0.0)
        assert bucket.available(3600.0, waiting=True) == int(1_000_000 * MAX_LATE)


@pytest.mark.parametrize("delay", [0.0, 0.002])
def test_bytes_pass_both_ways_unchanged_and_each_fin_by_itself(
    target: socket.socket, delay: float
) -> None:
    up, down = bytes(range(251)) * 20_000, bytes(range(256)) * 9_000
    with relayed(target, delay=delay) as (near, far):
        sender = send_in_background(near, up)
        assert read_all(far) == up
        sender.join(WAIT)
        # The way back stays open after the FIN of the other.
        sender = send_in_background(far, down)
        assert read_all(near) == down
        sender.join(WAIT)


def test_no_connection_is_faster_than_its_rate_and_each_has_its_own(target: socket.socket) -> None:
    rate, size = 1_000_000, 300_000
    with Throttle(port_of(target), rate=rate) as throttle, contextlib.ExitStack() as stack:
        start = time.monotonic()
        pairs = []
        for _ in range(8):
            near = stack.enter_context(connect(throttle))
            far = stack.enter_context(target.accept()[0])
            far.settimeout(WAIT)
            pairs.append((send_in_background(near, bytes(size)), far))
        for sender, far in pairs:
            assert len(read_all(far)) == size
            assert time.monotonic() - start >= (size - rate * BURST) / rate
            sender.join(WAIT)


def test_a_delay_holds_every_byte_back(target: socket.socket) -> None:
    with relayed(target, delay=0.15) as (near, far):
        start = time.monotonic()
        near.sendall(b"ping")
        assert far.recv(10) == b"ping"
        far.sendall(b"pong")
        assert near.recv(10) == b"pong"
        assert time.monotonic() - start >= 0.3


@pytest.mark.parametrize("from_target", [False, True])
@pytest.mark.parametrize("half_closed", [False, True])
def test_a_reset_passes_through(
    target: socket.socket, from_target: bool, half_closed: bool
) -> None:
    with relayed(target) as pair:
        broken, other = reversed(pair) if from_target else pair
        broken.sendall(b"x")
        assert other.recv(1) == b"x"
        if half_closed:
            broken.shutdown(socket.SHUT_WR)
            assert other.recv(1) == b""
        abort(broken)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_until_broken(other)


def test_a_refused_target_resets_the_application() -> None:
    with socket.socket() as bound_only:
        bound_only.bind(("127.0.0.1", 0))
        # The reset may come before connect() has returned.
        with Throttle(port_of(bound_only)) as throttle, pytest.raises(ConnectionResetError):
            connect(throttle).recv(1)


def name_of(*found: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    """A name that has these addresses."""

    def look_up(host: str, port: int, *_: object, **__: object) -> list[object]:
        answers = found if host == "name.example" else [(host, port)]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", where) for where in answers]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return Endpoint("name.example", 1)


def test_of_a_targets_addresses_the_first_that_takes_the_connection(
    target: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = target.getsockname()
    with socket.socket() as bound_only:
        bound_only.bind(("127.0.0.1", 0))
        refuses = bound_only.getsockname()
        # To the second one connect() fails at once.
        name = name_of(refuses, ("255.255.255.255", 9), refuses, good, monkeypatch=monkeypatch)
        with Throttle(name, rate=FAST) as throttle:
            for _ in range(2):
                with connect(throttle) as near, target.accept()[0] as far:
                    far.settimeout(WAIT)
                    near.sendall(b"ping")
                    assert far.recv(10) == b"ping"
                    far.sendall(b"pong")
                    assert near.recv(10) == b"pong"


def test_a_target_none_of_whose_addresses_takes_it_resets_the_application(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as bound_only:
        bound_only.bind(("127.0.0.1", 0))
        refuses = bound_only.getsockname()
        name = name_of(refuses, refuses, monkeypatch=monkeypatch)
        with Throttle(name) as throttle, pytest.raises(ConnectionResetError):
            connect(throttle).recv(1)


def test_it_listens_on_the_first_address_that_this_machine_has(
    target: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = port_of(target)
    name = name_of(("192.0.2.1", 0), ("127.0.0.1", 0), monkeypatch=monkeypatch)
    with Throttle(to, name) as throttle:
        assert throttle.address.host == "127.0.0.1"
        with connect(throttle) as near, target.accept()[0] as far:
            far.sendall(b"x")
            assert near.recv(1) == b"x"
    name = name_of(("192.0.2.1", 0), monkeypatch=monkeypatch)
    with pytest.raises(StartError, match=r"cannot listen on name\.example:1: .*--listen"):
        Throttle(to, name).start()
    # One that is in use is not left for another.
    name = name_of(target.getsockname(), ("127.0.0.1", 0), monkeypatch=monkeypatch)
    with pytest.raises(StartError, match="in use"):
        Throttle(to, name).start()


def test_a_reader_that_stops_holds_its_sender_and_nobody_else(target: socket.socket) -> None:
    with Throttle(port_of(target), rate=FAST) as throttle, connect(throttle) as stuck:
        still, _ = target.accept()
        with still, connect(throttle) as near, target.accept()[0] as far:
            stuck.setblocking(False)
            accepted = 0
            block = bytes(1 << 20)
            while select.select([], [stuck], [], 0.5)[1]:
                accepted += stuck.send(block)
                assert accepted < 512 << 20
            near.sendall(b"hello")
            far.settimeout(WAIT)
            assert far.recv(5) == b"hello"
            still.settimeout(WAIT)
            got = 0
            while got < accepted:
                got += len(still.recv(1 << 20))


def test_closing_the_throttle_resets_what_is_open(target: socket.socket) -> None:
    throttle = Throttle(port_of(target))
    throttle.start()
    with connect(throttle) as near, target.accept()[0]:
        throttle.close()
        throttle.close()
        with pytest.raises(ConnectionResetError):
            near.recv(1)


def test_a_port_in_use_is_one_line_with_the_remedy(target: socket.socket) -> None:
    with pytest.raises(StartError, match=r"cannot listen on 127\.0\.0\.1:\d+: .*--listen"):
        Throttle(port_of(target), port_of(target)).start()


class TestCommand:
    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fastmtcp.cli.throttle", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)

    def test_it_serves_until_sigterm_and_exits_clean(self, target: socket.socket) -> None:
        arguments = ["--listen", "127.0.0.1:0", "--target", str(port_of(target)), "--rate", "1GB"]
        with subprocess.Popen(
            [sys.executable, "-m", "fastmtcp.cli.throttle", *arguments],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            ready = process.stderr.readline()
            assert "ready" in ready
            address = Endpoint.parse(ready.split()[1])
            with socket.create_connection((address.host, address.port), WAIT) as near:
                near.sendall(b"through")
                far, _ = target.accept()
                with far:
                    far.settimeout(WAIT)
                    assert far.recv(7) == b"through"
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT) == 0

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (["--rate", "20Mb"], 2),
            (["--delay", "5"], 2),
            (["--target", "nowhere"], 2),
            (["--nonsense"], 2),
        ],
    )
    def test_wrong_usage_is_exit_2(self, arguments: list[str], code: int) -> None:
        result = self.run(*arguments)
        assert result.returncode == code
        assert "Traceback" not in result.stderr

    def test_a_port_in_use_is_exit_1_and_one_line(self, target: socket.socket) -> None:
        result = self.run("--listen", str(port_of(target)))
        assert result.returncode == 1
        assert len(result.stderr.splitlines()) == 1
