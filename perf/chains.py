"""The forwarders that are compared: each takes an application's stream over two hops."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fastmtcp.endpoint import Endpoint
from fastmtcp.security import self_signed

from perf.processes import Process, need, running
from perf.setups import OURS, PLAIN, QUICK_START, TLS, Commands, set_up

FASTMTCP = "fastmtcp"
FASTMTCP_TLS = "fastmtcp-tls"
FASTMTCP_QUICK_START = "fastmtcp-quick-start"
HAPROXY = "haproxy"
HAPROXY_TLS = "haproxy-tls"
SOCAT = "socat"
DIRECT = "direct"

DESCRIPTIONS = {
    DIRECT: "no forwarder",
    FASTMTCP: "fastmtcp-client and -server, 1 worker each",
    FASTMTCP_TLS: "the same with TLS 1.3 between the two",
    FASTMTCP_QUICK_START: "fastmtcp as in its quick start",
    HAPROXY: "two HAProxies in a row, mode tcp, nbthread 1 each",
    HAPROXY_TLS: "the same HAProxies with TLS 1.3 between the two",
    SOCAT: "two socats in a row, -b 262144",
}


class Chain(NamedTuple):
    """A running forwarder: where applications connect, and its processes from there on."""

    entry: Endpoint
    processes: tuple[Process, ...]
    middle: Endpoint | None = None
    """Where the second hop listens, if anybody wants to know."""

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]


OpenChain = Callable[[Endpoint], contextlib.AbstractContextManager[Chain]]
"""Makes a chain to a target."""


def free_endpoint() -> Endpoint:
    """A port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Endpoint("127.0.0.1", probe.getsockname()[1])


@contextlib.contextmanager
def direct(target: Endpoint) -> Iterator[Chain]:
    yield Chain(target, ())


@contextlib.contextmanager
def fastmtcp(
    target: Endpoint, setup: str = PLAIN, connections: int = 4, commands: Commands = OURS
) -> Iterator[Chain]:
    """fastmtcp over loopback; `connections` are subflows between client and server."""
    middle, entry = free_endpoint(), free_endpoint()
    with (
        set_up(setup, middle, target, commands) as made,
        running("fastmtcp-server", made.server) as server,
        running("fastmtcp-client", made.client(entry, connections)) as client,
    ):
        yield Chain(entry, (client, server), middle)


@contextlib.contextmanager
def haproxy(target: Endpoint, tls: bool = False) -> Iterator[Chain]:
    """Two HAProxy processes in a row, each copying on one thread; with `tls` between them."""
    need("haproxy")
    middle, entry = free_endpoint(), free_endpoint()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = []
        secure = ("", "")
        if tls:
            pem, key = folder / "c.pem", folder / "c.key"
            self_signed.generate(middle.host, pem, key)
            (folder / "both.pem").write_bytes(pem.read_bytes() + key.read_bytes())
            secure = (f" ssl crt {folder / 'both.pem'} ssl-min-ver TLSv1.3", " ssl verify none")
        for number, (listen, to) in enumerate([(middle, target), (entry, middle)]):
            path = folder / f"haproxy-{number}.cfg"
            bind, server = (secure[0], "") if number == 0 else ("", secure[1])
            path.write_text(_haproxy_config(f"{listen}{bind}", f"{to}{server}"))
            name = f"haproxy {number + 1}"
            process = running(name, ["haproxy", "-db", "-f", str(path)], ready=False)
            processes.append(stack.enter_context(process))
            processes[-1].wait_listening(listen.port)
        yield Chain(entry, tuple(reversed(processes)))


def _haproxy_config(listen: str, target: str) -> str:
    return f"""\
global
    nbthread 1
    maxconn 4096
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen hop
    bind {listen}
    server next {target}
"""


@contextlib.contextmanager
def socat(target: Endpoint) -> Iterator[Chain]:
    """Two socats in a row, with larger buffers than the default 8 KiB."""
    need("socat")
    middle, entry = free_endpoint(), free_endpoint()
    with contextlib.ExitStack() as stack:
        processes = []
        for number, (listen, to) in enumerate([(middle, target), (entry, middle)]):
            listening = f"TCP-LISTEN:{listen.port},bind={listen.host},fork,reuseaddr,nodelay"
            command = ["socat", "-b", "262144", listening, f"TCP:{to},nodelay"]
            name = f"socat {number + 1}"
            processes.append(stack.enter_context(running(name, command, ready=False)))
            processes[-1].wait_listening(listen.port)
        yield Chain(entry, tuple(reversed(processes)))


CHAINS: dict[str, OpenChain] = {
    DIRECT: direct,
    FASTMTCP: fastmtcp,
    FASTMTCP_TLS: partial(fastmtcp, setup=TLS),
    FASTMTCP_QUICK_START: partial(fastmtcp, setup=QUICK_START),
    HAPROXY: haproxy,
    HAPROXY_TLS: partial(haproxy, tls=True),
    SOCAT: socat,
}
