"""Applications and targets on hosts that vanish, or that have forgotten their connection."""

from __future__ import annotations

import socket

import pytest

from tests.io.net import WAIT, is_reset, read_exactly
from tests.net.lab import Host, Lab, Running, eventually

APPLICATION, NEAR = "10.1.0.1", "10.1.0.2"
FAR, TARGET = "10.2.0.1", "10.2.0.2"


class Chain:
    """An application's host, one for both programs, and a target's."""

    def __init__(self, lab: Lab) -> None:
        self.application = lab.host("application")
        self.middle = lab.host("middle")
        self.target = lab.host("target")
        self.lab = lab
        lab.line(self.application, self.middle, "app0", "near0", f"{APPLICATION}/24", f"{NEAR}/24")
        lab.line(self.middle, self.target, "far0", "target0", f"{FAR}/24", f"{TARGET}/24")

    def start(self, *arguments: object) -> Running:
        target = ("--target", f"{TARGET}:5201")
        self.lab.server(self.middle, "--listen", "127.0.0.1:7700", *target, *arguments)
        listen = ("--listen", f"{NEAR}:7701")
        return self.lab.client(self.middle, *listen, *arguments)

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """The application's end of a stream that works, and the target's."""
        with self.target.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((TARGET, 5201))
            listener.listen()
            near = self.application.socket()
            near.connect((NEAR, 7701))
            near.sendall(b"hello")
            far, _ = listener.accept()
        far.settimeout(WAIT)
        assert read_exactly(far, 5) == b"hello"
        far.sendall(b"there")
        assert read_exactly(near, 5) == b"there"
        return near, far

    def cut_off(self, host: Host) -> None:
        """Nothing comes from `host` any more, and nobody says so."""
        address = APPLICATION if host is self.application else TARGET
        self.middle.nft(
            "add table ip test",
            "add chain ip test in { type filter hook input priority 0; }",
            f"add rule ip test in ip saddr {address} drop",
        )


@pytest.fixture
def chain(lab: Lab) -> Chain:
    return Chain(lab)


def test_the_other_end_of_an_idle_stream_hears_that_a_host_has_vanished(chain: Chain) -> None:
    chain.start("--keepalive", 1)
    for gone in (chain.application, chain.target):
        near, far = chain.connect()
        with near, far:
            chain.cut_off(gone)
            other = far if gone is chain.application else near
            eventually(lambda: is_reset(other), "the other end is reset")  # noqa: B023
        chain.middle.nft("delete table ip test")


def test_an_application_that_is_gone_keeps_no_place_at_a_target_that_pays_no_attention(
    chain: Chain,
) -> None:
    chain.application.run("sysctl", "-qw", "net.ipv4.tcp_fin_timeout=1")
    chain.start("--keepalive", 1)
    near, far = chain.connect()
    near.close()
    with far:
        assert far.recv(1) == b""
        eventually(lambda: is_reset(far), "the target is reset")


def test_hosts_that_are_there_may_be_silent(chain: Chain) -> None:
    chain.start("--keepalive", 1)
    near, far = chain.connect()
    with near, far:
        near.settimeout(8)
        with pytest.raises(TimeoutError):
            near.recv(1)
        far.sendall(b"still")
        assert read_exactly(near, 5) == b"still"
