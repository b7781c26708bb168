"""fastmtcp between two namespaces, and the applications at its ends."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fastmtcp.endpoint import Endpoint

from perf import tools
from perf.network import Network, server_endpoint
from perf.processes import Process, running
from perf.results import Run
from perf.setups import Setup, set_up

ENTRY = Endpoint("127.0.0.1", 7701)
TARGET = Endpoint("127.0.0.1", 5201)
"""In the server namespace."""

APPLICATION = (sys.executable, "-m", "perf.transfer")


class Forwarder(NamedTuple):
    """A running fastmtcp: how it was set up, and its two programs."""

    made: Setup
    server: Process
    client: Process


@contextlib.contextmanager
def forwarder(
    names: Network,
    setup: str,
    target: Endpoint,
    connections: int,
    paths: Sequence[str] = (),
    logs: Path | None = None,
) -> Iterator[Forwarder]:
    """fastmtcp-server and -client, one in each namespace; the rest is as in Setup.

    What the two log goes into `server.log` and `client.log` in the folder `logs`.
    """
    with set_up(setup, server_endpoint(), target) as made, contextlib.ExitStack() as stack:

        def begin(side: str, namespace: str, command: Sequence[str]) -> Process:
            log = logs / f"{side}.log" if logs else None
            inside = [*Network.inside(namespace), *command]
            return stack.enter_context(running(f"fastmtcp-{side}", inside, log=log))

        server = begin("server", names.server, made.server)
        client = begin("client", names.client, made.client(ENTRY, connections, paths))
        yield Forwarder(made, server, client)


def application(names: Network, role: str, at_server: bool, *arguments: str) -> Process:
    """Start one end of a transfer in a namespace."""
    namespace = names.server if at_server else names.client
    command = [*Network.inside(namespace), *APPLICATION, role, *arguments]
    return Process(role, command, stdout=True)


def transfer(
    names: Network,
    direction: str,
    size: int,
    disturb: Callable[[Process], None] | None = None,
    timeout: float = 300,
) -> Run:
    """Send `size` bytes from ENTRY to TARGET or back through a running forwarder.

    `disturb` is called with the process at the client's end while it runs.
    """
    up = direction == tools.UP
    with contextlib.ExitStack() as stack:
        jobs = {"send": ("--size", str(size)), "receive": ()}
        server_role, client_role = ("receive", "send") if up else ("send", "receive")
        far = application(names, server_role, True, "--listen", str(TARGET), *jobs[server_role])
        stack.callback(far.stop)
        far.wait_ready()
        near = application(names, client_role, False, "--connect", str(ENTRY), *jobs[client_role])
        stack.callback(near.stop)
        if disturb is not None:
            disturb(near)
        ends = {
            client_role: json.loads(near.output(timeout)),
            server_role: json.loads(far.output(60)),
        }
    received = ends["receive"]
    equal = all(ends["send"][part] == received[part] for part in ("sha256", "bytes"))
    pauses = [(seconds * 1e3, at) for seconds, at in received["pauses"]]
    return {
        "direction": direction,
        "equal": equal,
        "longest_pause_ms": pauses[0][0],
        "pauses_ms_at_s": pauses,
        "mb_per_s": received["bytes"] / received["seconds"] / 1e6,
    }
