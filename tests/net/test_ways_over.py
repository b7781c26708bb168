"""Paths over relays and proxies: the client has no other way to the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.net.lab import Host, Lab, Running, eventually, tool
from tests.net.traffic import Transfer

MIDDLE = "10.1.0.1"
"""The host in the middle, as the client sees it."""
SERVER = "10.2.0.1"
SIZE = 8_000_000
LOGIN = "bob", "p,w:@/%"
ENCODED = "bob:p%2Cw%3A%40%2F%25"


class Chain:
    """A client, a host in the middle that forwards no packets, and a server behind it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.client = lab.host("client")
        self.middle = lab.host("middle")
        self.server = lab.host("server")
        lab.line(self.client, self.middle, "cm", "mc", "10.1.0.2/24", f"{MIDDLE}/24")
        lab.line(self.middle, self.server, "ms", "sm", "10.2.0.2/24", f"{SERVER}/24")
        self.safe = ("--key-file", self.file("k.key", "0123456789abcdef" * 4))
        listen = ("--listen", f"{SERVER}:7700", "--listen", "127.0.0.1:7700")
        lab.server(self.server, *listen, *self.safe)

    def file(self, name: str, text: str) -> Path:
        path = self.lab.folder / name
        path.write_text(f"{text}\n")
        path.chmod(0o600)
        return path

    def join(self, *arguments: object) -> Running:
        return self.lab.client(self.client, *arguments, *self.safe)

    def check_transfers(self) -> None:
        for up in (True, False):
            Transfer(self.client, self.server, up=up, size=SIZE, rate=1e9).check()

    def wait_for_port(self, host: Host, port: int) -> None:
        def listening() -> bool:
            return bool(host.run("ss", "-Htln", "sport", "=", f":{port}"))

        eventually(listening, f"somebody listens on port {port} of {host.name}")

    def socat(self, port: int, target: str = f"{SERVER}:7700") -> Running:
        relay = self.middle.start(
            tool("socat"), f"TCP-LISTEN:{port},fork,reuseaddr,nodelay", f"TCP:{target},nodelay"
        )
        self.wait_for_port(self.middle, port)
        return relay

    def haproxy(self, port: int) -> Running:
        config = self.file(
            f"haproxy-{port}.cfg",
            f"""
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen bridge
  bind :{port}
  server s {SERVER}:7700
""",
        )
        relay = self.middle.start(tool("haproxy"), "-db", "-f", config)
        self.wait_for_port(self.middle, port)
        return relay

    def microsocks(self, host: Host, *arguments: str) -> Running:
        proxy = host.start(tool("microsocks"), "-i", "0.0.0.0", "-p", "1080", *arguments)
        self.wait_for_port(host, 1080)
        return proxy

    def tinyproxy(self, *lines: str) -> Running:
        config = self.file(
            "tinyproxy.conf",
            "\n".join(["Port 8888", "Timeout 3600", "MaxClients 100", *lines]),
        )
        proxy = self.middle.start(tool("tinyproxy"), "-d", "-c", config)
        self.wait_for_port(self.middle, 8888)
        return proxy


@pytest.fixture
def chain(lab: Lab) -> Chain:
    return Chain(lab)


def test_bridges_of_socat_and_haproxy_side_by_side(chain: Chain) -> None:
    chain.socat(7001)
    chain.haproxy(7002)
    client = chain.join(
        *("--server", f"{MIDDLE}:7001,connections=2", "--server", f"{MIDDLE}:7002,connections=3")
    )
    assert "5 of 5 subflows up" in client.wait_for("ready")
    client.wait_for("path 10.1.0.1:7001: up")
    client.wait_for("path 10.1.0.1:7002: up")
    chain.check_transfers()


def test_a_bridge_ends_and_comes_back_under_load(chain: Chain) -> None:
    bridge = chain.socat(7001)
    chain.haproxy(7002)
    client = chain.join("--server", f"{MIDDLE}:7001", "--server", f"{MIDDLE}:7002")
    transfer = Transfer(chain.client, chain.server, up=True)
    eventually(lambda: transfer.received > 1_000_000, "the transfer is under way")
    bridge.stop()
    client.wait_for("7001: down: .*; trying again")
    chain.socat(7001)
    client.wait_for("7001: up", 2)
    transfer.check()
    # Each attempt failed, but a state that lasts is said once.
    assert len(client.lines("7001: down")) == 1


def test_a_bridge_that_leads_nowhere_keeps_nobody_waiting(chain: Chain) -> None:
    """It accepts connections, and closes them when it finds nobody; or holds them for ever."""
    chain.socat(7001, f"{SERVER}:7777")
    chain.middle.start(tool("socat"), "TCP-LISTEN:7003,fork,reuseaddr", "EXEC:sleep 1000")
    chain.wait_for_port(chain.middle, 7003)
    chain.socat(7002)
    servers = [word for n in (1, 3, 2) for word in ("--server", f"{MIDDLE}:700{n},connections=1")]
    client = chain.join(*servers)
    client.wait_for("path 10.1.0.1:7002: up")
    chain.check_transfers()
    client.wait_for("7001: down: ")
    client.wait_for("7003: down: no answer to the handshake; trying again")


@pytest.mark.parametrize("login", [False, True], ids=["open", "login"])
def test_socks5(chain: Chain, login: bool) -> None:
    chain.microsocks(chain.middle, *(("-u", LOGIN[0], "-P", LOGIN[1]) if login else ()))
    via = f"socks5://{ENCODED + '@' if login else ''}{MIDDLE}:1080"
    client = chain.join("--server", f"{SERVER}:7700,via={via}")
    assert "2 of 2 subflows up" in client.wait_for("ready")
    client.wait_for(rf"path {SERVER}:7700 through socks5 proxy {MIDDLE}:1080: up")
    chain.check_transfers()
    assert LOGIN[1] not in client.log
    assert ENCODED not in client.log


def test_a_name_is_looked_up_by_the_proxy(chain: Chain) -> None:
    """`localhost` is the proxy's own host, not the client's."""
    # A proxy on the server's host, and a bridge to it: the client reaches nothing else.
    chain.microsocks(chain.server)
    chain.socat(1080, f"{SERVER}:1080")
    client = chain.join("--server", f"localhost:7700,via=socks5://{MIDDLE}:1080")
    client.wait_for("path localhost:7700 through .*: up")
    chain.check_transfers()


def test_http_connect(chain: Chain) -> None:
    chain.tinyproxy()
    client = chain.join("--server", f"{SERVER}:7700,via=http://{MIDDLE}:8888")
    assert "2 of 2 subflows up" in client.wait_for("ready")
    chain.check_transfers()


def test_http_connect_with_a_login(chain: Chain) -> None:
    chain.tinyproxy("BasicAuth bob s3cret")
    path = chain.file(
        "client.toml",
        f"""
[[server]]
address = "{SERVER}:7700"
via = "http://bob:s3cret@{MIDDLE}:8888"
connections = 2
""",
    )
    client = chain.join("--config", path)
    assert "2 of 2 subflows up" in client.wait_for("ready")
    chain.check_transfers()
    assert "s3cret" not in client.log


@pytest.mark.parametrize(
    ("kind", "login", "said"),
    [
        ("socks5", "bob:wrong@", "it refuses the user name or password"),
        (
            "socks5",
            "",
            "it wants a user name and password; write via=socks5://USER:PASSWORD@HOST:PORT",
        ),
        ("http", "bob:wrong@", "it refuses the user name or password"),
        ("http", "", "it wants a user name and password; write via=http://USER:PASSWORD@HOST:PORT"),
    ],
)
def test_what_a_proxy_refuses_is_said_once(chain: Chain, kind: str, login: str, said: str) -> None:
    if kind == "http":
        chain.tinyproxy("BasicAuth bob right")
        port = 8888
    else:
        chain.microsocks(chain.middle, "-u", "bob", "-P", "right")
        port = 1080
    client = chain.join("--server", f"{SERVER}:7700,via={kind}://{login}{MIDDLE}:{port}")
    line = client.wait_for("down: ")
    path = f"path {SERVER}:7700 through {kind} proxy {MIDDLE}:{port}"
    assert line.endswith(f"{path}: down: proxy: {said}; trying again")
    assert "wrong" not in client.log


def test_a_proxy_that_finds_nobody(chain: Chain) -> None:
    chain.microsocks(chain.middle)
    client = chain.join("--server", f"{SERVER}:7799,via=socks5://{MIDDLE}:1080")
    client.wait_for("down: proxy: connection refused; trying again")


def test_a_proxy_that_is_not_there(chain: Chain) -> None:
    client = chain.join("--server", f"{SERVER}:7700,via=http://{MIDDLE}:8888")
    client.wait_for("down: cannot reach the proxy: Connection refused; trying again")
