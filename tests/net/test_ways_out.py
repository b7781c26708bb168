"""Several uplinks: bind, dev, egress, and what happens when one of them goes and comes back."""

from __future__ import annotations

import re

import pytest

from tests.net.lab import Host, Lab, Running, eventually
from tests.net.traffic import Transfer

SERVER = "10.99.0.1"


def key(lab: Lab) -> str:
    path = lab.folder / "k.key"
    if not path.exists():
        path.write_text("0123456789abcdef" * 4 + "\n")
        path.chmod(0o600)
    return str(path)


class Net:
    """A client with two lines to the server, which has an address that both reach."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.client = lab.host("client")
        self.server = lab.host("server")
        self.add_line(1)
        self.add_line(2)
        self.server.ip("address", "add", f"{SERVER}/32", "dev", "lo")

    def add_line(self, number: int) -> None:
        net = f"10.{number}.0"
        devices = (f"up{number}", f"down{number}")
        self.lab.line(self.client, self.server, *devices, f"{net}.2/24", f"{net}.1/24")
        self.route(number)

    def route(self, number: int) -> None:
        """The kernel drops it when the link goes down."""
        where = ("via", f"10.{number}.0.1", "dev", f"up{number}", "metric", number)
        self.client.ip("route", "replace", f"{SERVER}/32", *where)

    def start(self, *arguments: object) -> Running:
        """Start both programs; returns the client."""
        safe = ("--key-file", key(self.lab))
        self.lab.server(self.server, "--listen", "*:7700", *safe)
        return self.lab.client(self.client, *safe, *arguments)

    def used(self) -> dict[str, int]:
        """Subflows by the client's address."""
        found: dict[str, int] = {}
        for line in self.server.subflows("sport", "=", ":7700"):
            address = line.split()[3].rpartition(":")[0].strip("[]").removeprefix("::ffff:")
            found[address] = found.get(address, 0) + 1
        return found

    def carried(self) -> dict[str, tuple[int, int]]:
        """Bytes up and down of the subflows that are there, by the client's address."""
        found: dict[str, tuple[int, int]] = {}
        for line in self.server.subflows("sport", "=", ":7700"):
            address = line.split()[3].rpartition(":")[0].strip("[]").removeprefix("::ffff:")
            up, down = found.get(address, (0, 0))
            for name, number in re.findall(r"bytes_(received|sent):(\d+)", line):
                up += int(number) if name == "received" else 0
                down += int(number) if name == "sent" else 0
            found[address] = (up, down)
        return found

    def silence(self, host: Host, *match: str) -> None:
        """Drop what `host` gets and matches, without a word to anybody."""
        host.nft("add table inet t")
        host.nft("add chain inet t in { type filter hook input priority 0 ; }")
        host.nft(f"add rule inet t in {' '.join(match)} counter drop")

    def speak(self, host: Host) -> None:
        host.nft("delete table inet t")


@pytest.fixture
def net(lab: Lab) -> Net:
    return Net(lab)


PATHS = (
    *("--server", f"{SERVER}:7700,dev=up1,connections=4"),
    *("--server", f"{SERVER}:7700,dev=up2,connections=2"),
)


def test_bind_and_dev_choose_the_line(net: Net) -> None:
    client = net.start(
        *("--server", f"{SERVER}:7700,dev=up1,connections=3"),
        *("--server", f"{SERVER}:7700,bind=10.2.0.2,dev=up2,connections=2"),
        *("--server", "10.1.0.1:7700,bind=10.2.0.2,connections=1"),
    )
    assert "6 of 6 subflows up" in client.wait_for("ready")
    client.wait_for(f"path {SERVER}:7700 via up1: up")
    client.wait_for(f"path {SERVER}:7700 via up2 from 10.2.0.2: up")
    client.wait_for(r"path 10\.1\.0\.1:7700 from 10\.2\.0\.2: up")
    # One more on the first path is for small streams.
    eventually(lambda: net.used() == {"10.1.0.2": 4, "10.2.0.2": 3}, f"{net.used()}")
    Transfer(net.client, net.server, up=False, size=4_000_000, rate=1e9).check()


def test_what_is_not_there_is_said_in_words_and_does_not_keep_the_rest_waiting(net: Net) -> None:
    client = net.start(
        *("--server", f"{SERVER}:7700,dev=up9"),
        *("--server", f"{SERVER}:7700,bind=10.9.0.9"),
        *("--server", f"{SERVER}:7799,dev=up1"),
        *("--server", f"{SERVER}:7700,dev=up2,connections=3", "--no-express"),
    )
    client.wait_for("via up9: down: no interface up9; trying again")
    client.wait_for("from 10.9.0.9: down: this machine does not have the address 10.9.0.9; trying")
    client.wait_for("7799 via up1: down: connection refused; trying again")
    client.wait_for("via up2: up")
    eventually(lambda: net.used() == {"10.2.0.2": 3}, "the path that works is used")
    net.add_line(9)
    net.client.ip("address", "add", "10.9.0.9/24", "dev", "up9")
    # Not after the next pause, which may be half a minute: as soon as the interface is there.
    client.wait_for("via up9: up")
    client.wait_for("from 10.9.0.9: up")
    assert [len(client.lines(f"via {name}: down")) for name in ("up9", "up1")] == [1, 1]


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_a_link_goes_down_and_comes_back(net: Net, up: bool) -> None:
    client = net.start(*PATHS)
    transfer = Transfer(net.client, net.server, up=up)
    eventually(lambda: transfer.received > 2_000_000, "the transfer is under way")
    net.client.ip("link", "set", "up1", "down")
    client.wait_for("via up1: down: this machine lost the address 10.1.0.2; trying again")
    eventually(lambda: transfer.received > 6_000_000, "it goes on over the other line")
    net.client.ip("link", "set", "up1", "up")
    net.route(1)
    client.wait_for("via up1: up", 2)
    transfer.check()
    assert len(client.lines("via up1: down")) == 1
    assert not client.lines("via up2: down")


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
@pytest.mark.parametrize("egress", ["off", "auto"])
def test_roaming_to_another_address(net: Net, up: bool, egress: str) -> None:
    net.client.ip("link", "set", "up2", "down")
    client = net.start("--server", f"{SERVER}:7700,connections=4", "--egress", egress)
    transfer = Transfer(net.client, net.server, up=up)
    eventually(lambda: transfer.received > 2_000_000, "the transfer is under way")
    net.client.ip("address", "del", "10.1.0.2/24", "dev", "up1")
    client.wait_for("subflow to .* lost: this machine lost the address 10.1.0.2; 0 left")
    net.client.ip("address", "add", "10.1.0.77/24", "dev", "up1")
    net.route(1)
    transfer.check()
    eventually(lambda: net.used() == {"10.1.0.77": 5}, "the server has lost the old ones too")
    assert not client.lines("session ended")


def test_from_one_line_to_the_other_with_nothing_in_between(net: Net) -> None:
    """Out of the range of one network, and only later into that of the next."""
    net.client.ip("link", "set", "up2", "down")
    client = net.start("--server", f"{SERVER}:7700,connections=4", "--egress", "auto")
    transfer = Transfer(net.client, net.server, up=True)
    eventually(lambda: transfer.received > 2_000_000, "the transfer is under way")
    net.client.ip("link", "set", "up1", "down")
    client.wait_for("no usable local address; waiting for one")
    net.client.ip("link", "set", "up2", "up")
    net.route(2)
    transfer.check()
    eventually(lambda: net.used() == {"10.2.0.2": 5}, "the server has lost the old ones too")


def test_egress_auto_follows_the_interfaces(net: Net) -> None:
    # Neither of these is of use for a server with an IPv4 address.
    net.client.ip("address", "add", "fd00:1::2/64", "dev", "up1", "nodad")
    net.client.ip("address", "add", "169.254.7.7/16", "dev", "up1")
    client = net.start("--server", f"{SERVER}:7700,connections=2", "--egress", "auto")
    client.wait_for("via up1 from 10.1.0.2: up")
    client.wait_for("via up2 from 10.2.0.2: up")
    assert "4 of 4 subflows up" in client.wait_for("ready")
    net.add_line(3)
    client.wait_for("via up3 from 10.3.0.2: up")
    eventually(lambda: net.used() == {"10.1.0.2": 3, "10.2.0.2": 2, "10.3.0.2": 2}, "one more")
    net.client.ip("link", "del", "up2")
    client.wait_for("via up2 from 10.2.0.2: gone")
    eventually(lambda: set(net.used()) >= {"10.1.0.2", "10.3.0.2"}, "the others stay")
    Transfer(net.client, net.server, up=True, size=4_000_000, rate=1e9).check()


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_subflows_killed_by_the_administrator(net: Net, up: bool) -> None:
    client = net.start(*PATHS)
    transfer = Transfer(net.client, net.server, up=up)
    for count in (1, 2):
        eventually(lambda: sum(net.used().values()) == 7, "all are there")
        mark = transfer.received
        eventually(lambda: transfer.received > mark + 2_000_000, "it is under way")  # noqa: B023
        net.client.run("ss", "-K", "dst", SERVER)
        client.wait_for("subflow to .* lost: ", 7 * count)
    transfer.check()


def test_a_line_that_falls_silent_and_speaks_again(net: Net) -> None:
    client = net.start(*PATHS)
    transfer = Transfer(net.client, net.server, up=False, size=30_000_000, rate=1.5e6)
    eventually(lambda: transfer.received > 2_000_000, "the transfer is under way")
    net.silence(net.server, "iifname", "down1")
    client.wait_for("via up1: down: ")
    net.speak(net.server)
    client.wait_for("via up1: up", 2)
    transfer.check()


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_all_lines_silent_for_a_while(net: Net, up: bool) -> None:
    client = net.start(*PATHS)
    transfer = Transfer(net.client, net.server, up=up)
    eventually(lambda: transfer.received > 2_000_000, "the transfer is under way")
    net.silence(net.server, "tcp", "dport", "7700")
    client.wait_for("lost: .*; 0 left")
    mark = transfer.received
    net.speak(net.server)
    transfer.check()
    assert mark < transfer.received
    assert not client.lines("session ended")


def test_after_the_session_timeout_both_ends_are_reset(net: Net) -> None:
    safe = ("--key-file", key(net.lab), "--session-timeout", 2)
    server = net.lab.server(net.server, "--listen", "*:7700", *safe)
    client = net.lab.client(net.client, *safe, "--server", f"{SERVER}:7700")
    with net.server.listen(5201) as listener, net.client.connect(7701) as near:
        near.sendall(b"hello")
        far, _ = listener.accept()
        with far:
            assert far.recv(10) == b"hello"
            net.silence(net.server, "tcp", "dport", "7700")
            net.client.run("ss", "-K", "dst", SERVER)
            net.server.run("ss", "-K", "sport", "=", ":7700")
            with pytest.raises(ConnectionResetError):
                near.recv(1)
            with pytest.raises(ConnectionResetError):
                far.recv(1)
    client.wait_for("session ended: no subflow for too long; starting a new one")
    server.wait_for("session .* ended: no subflow for too long")
    net.speak(net.server)
    client.wait_for("path .*: up", 2)


def test_ipv6_beside_ipv4(net: Net) -> None:
    net.lab.line(net.client, net.server, "up6", "down6", "fd00:6::2/64", "fd00:6::1/64")
    client = net.start(
        *("--server", f"{SERVER}:7700,dev=up1,connections=2"),
        *("--server", "[fd00:6::1]:7700,connections=2", "--no-express"),
    )
    client.wait_for(r"path \[fd00:6::1\]:7700: up")
    assert "4 of 4 subflows up" in client.wait_for("ready")
    assert net.used() == {"10.1.0.2": 2, "fd00:6::2": 2}
    Transfer(net.client, net.server, up=True, size=4_000_000, rate=1e9).check()


def test_two_ports_of_one_server(net: Net) -> None:
    safe = ("--key-file", key(net.lab))
    ports = ("--listen", "*:7700", "--listen", "*:443", "--workers", 3)
    server = net.lab.server(net.server, *ports, *safe)
    client = net.lab.client(
        net.client,
        *("--server", f"{SERVER}:7700,connections=2", "--server", f"{SERVER}:443,connections=2"),
        *safe,
    )
    assert "4 of 4 subflows up" in client.wait_for("ready")
    assert len(net.server.subflows("sport", "=", ":443")) == 2
    # The third is for small streams.
    eventually(lambda: len(net.server.subflows("sport", "=", ":7700")) == 3, "the first has three")
    Transfer(net.client, net.server, up=False, size=4_000_000, rate=1e9).check()
    client.stop()
    server.wait_for("session .* ended: the client is shutting down")
    assert len(server.lines("session .* ended")) == 1


FEW = 200_000
"""Bytes that the handshakes, acknowledgements and the like of a transfer stay below."""


def test_upload_and_download_on_lines_of_their_own(net: Net) -> None:
    net.start(
        *("--server", f"{SERVER}:7700,dev=up1,direction=up,connections=2"),
        *("--server", f"{SERVER}:7700,dev=up2,direction=down,connections=2"),
    )
    size = 8_000_000
    Transfer(net.client, net.server, up=True, size=size, rate=1e9).check()
    carried = net.carried()
    assert carried["10.1.0.2"][0] >= size
    assert carried["10.2.0.2"][0] < FEW
    assert max(carried["10.1.0.2"][1], carried["10.2.0.2"][1]) < FEW
    Transfer(net.client, net.server, up=False, size=size, rate=1e9).check()
    before, carried = carried, net.carried()
    assert carried["10.2.0.2"][1] >= size
    assert carried["10.1.0.2"][1] < 2 * FEW
    assert carried["10.1.0.2"][0] - before["10.1.0.2"][0] < FEW
    assert carried["10.2.0.2"][0] < 2 * FEW


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_a_backup_carries_data_only_while_nothing_else_works(net: Net, up: bool) -> None:
    client = net.start(
        *("--server", f"{SERVER}:7700,dev=up1,connections=2"),
        *("--server", f"{SERVER}:7700,dev=up2,connections=2,backup"),
    )
    client.wait_for(r"via up2 \(backup\): up")
    size = 8_000_000
    way = 0 if up else 1
    Transfer(net.client, net.server, up=up, size=size, rate=1e9).check()
    assert net.carried()["10.1.0.2"][way] >= size
    assert net.carried()["10.2.0.2"][way] < FEW
    net.client.ip("link", "set", "up1", "down")
    client.wait_for("via up1: down")
    Transfer(net.client, net.server, up=up, size=size, rate=1e9).check()
    used = net.carried()["10.2.0.2"][way]
    assert used >= size
    net.client.ip("link", "set", "up1", "up")
    net.route(1)
    client.wait_for("via up1: up", 2)
    eventually(lambda: net.used().get("10.1.0.2", 0) >= 2, "both are there again")
    Transfer(net.client, net.server, up=up, size=size, rate=1e9).check()
    assert net.carried()["10.2.0.2"][way] - used < FEW


@pytest.mark.parametrize("egress", ["off", "auto"])
def test_an_interface_made_anew_with_the_same_address(net: Net, egress: str) -> None:
    """As ppp, wwan and wg do: what is bound to the old one is dead, and nothing else tells so."""
    net.client.ip("link", "del", "up2")
    bound = ",dev=up1" if egress == "off" else ""
    client = net.start("--server", f"{SERVER}:7700,connections=4{bound}", "--egress", egress)
    transfer = Transfer(net.client, net.server, up=True)
    eventually(lambda: transfer.received > 2_000_000, "the transfer is under way")
    # At once, so that nobody sees the machine without it.
    net.client.ip("link", "set", "up1", "name", "old1")
    net.client.ip("link", "set", "old1", "netns", net.server.pid)
    net.server.ip("link", "del", "old1")
    net.add_line(1)
    client.wait_for("subflow to .* lost: this machine lost the address 10.1.0.2; 0 left")
    transfer.check()
    eventually(lambda: net.used() == {"10.1.0.2": 5}, "the server has lost the old ones too")
    assert not client.lines("session ended")


def test_routes_that_lead_elsewhere_concern_nobody(net: Net) -> None:
    client = net.start("--server", f"{SERVER}:7700,connections=2", "--server", "10.1.0.1:7799")
    client.wait_for("7799: down")
    eventually(lambda: _refusals(net) >= 5, "the pauses between two attempts have become long")
    before = net.used()
    asked = _refusals(net)
    for number in range(30):
        net.client.ip("route", "replace", f"10.200.{number}.0/24", "via", "10.1.0.1")
        net.client.ip("address", "add", f"10.201.{number}.1/32", "dev", "lo")
    assert net.used() == before
    # Each change that was taken for ours began with the shortest pause again.
    assert _refusals(net) - asked <= 3


def _refusals(net: Net) -> int:
    """How many connections the server's kernel has refused."""
    fields, values = net.server.run("nstat", "-asz", "TcpOutRsts").splitlines()[-1].split()[:2]
    assert fields == "TcpOutRsts"
    return int(values)


def test_the_route_to_the_server_moves_to_another_interface(net: Net) -> None:
    """The addresses are all still there: what comes from the old one goes out on the new line."""
    net.silence(net.server, "iifname", "down2", "ip", "saddr", "10.1.0.0/24")
    client = net.start("--server", f"{SERVER}:7700,connections=4")
    transfer = Transfer(net.client, net.server, up=True)
    eventually(lambda: transfer.received > 2_000_000, "the transfer is under way")
    assert net.used() == {"10.1.0.2": 5}
    net.client.ip("route", "del", f"{SERVER}/32", "metric", 1)
    client.wait_for("subflow to .* lost: the way to the server has changed", 4)
    transfer.check()
    eventually(lambda: net.used().get("10.2.0.2") == 5, "all go the new way")
    assert not client.lines("session ended")
