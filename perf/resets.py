"""The connections between client and server: which there are, and an RST for one of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from perf.network import Network, server_endpoint
from perf.processes import BenchmarkError

_ESTABLISHED = "01"


def subflow_ports(names: Network) -> list[int]:
    """The client's ports of the connections that stand."""
    server = server_endpoint()
    command = ["ss", "-Htn", "state", "established", "dst", str(server)]
    done = subprocess.run(
        [*Network.inside(names.client), *command], capture_output=True, text=True, check=True
    )
    return sorted(int(line.split()[2].rpartition(":")[2]) for line in done.stdout.splitlines())


def standing(pid: int, port: int) -> int:
    """Connections from or to `port` that stand where the process runs (proc_net(5))."""
    count = 0
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            local, remote, state = line.split()[1:4]
            ports = {int(address.rpartition(":")[2], 16) for address in (local, remote)}
            count += state == _ESTABLISHED and port in ports
    return count


def reset(names: Network, port: int, *, at_server: bool) -> None:
    """Kill one TCP connection with a RST (ss -K, ss(8)). Raises BenchmarkError if it lives on."""
    server = server_endpoint()
    ends = ["src", str(server), "dport", "=", f":{port}"] if at_server else [
        "dst", str(server), "sport", "=", f":{port}"
    ]  # fmt: skip
    namespace = names.server if at_server else names.client
    subprocess.run(
        [*Network.inside(namespace), "ss", "-K", *ends], capture_output=True, check=False
    )
    if port in subflow_ports(names) and not at_server:
        raise BenchmarkError(
            "ss -K reset nothing: this kernel lacks CONFIG_INET_DIAG_DESTROY; use another kernel"
        )
