"""Short connections and keep-alive requests per second: wrk to nginx through each forwarder."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
from fastmtcp.endpoint import Endpoint

from perf import chains, results, tools
from perf.command import repeat_option, seconds_option, skip_option, start
from perf.processes import Meter, need, running
from perf.results import Run, median_of

KINDS = (chains.DIRECT, chains.FASTMTCP, chains.FASTMTCP_QUICK_START, chains.HAPROXY)
MODES = {"close": "connections/s", "keep-alive": "requests/s"}


@contextlib.contextmanager
def nginx() -> Iterator[Endpoint]:
    """An nginx with one worker that answers every request with a few bytes."""
    need("nginx")
    listen = chains.free_endpoint()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nginx.conf"
        path.write_text(_nginx_config(listen, folder))
        command = ["nginx", "-p", folder, "-e", "stderr", "-c", str(path)]
        with running("nginx", command, ready=False) as process:
            process.wait_listening(listen.port)
            yield listen


def _nginx_config(listen: Endpoint, folder: str) -> str:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    return f"""\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
{paths}    access_log off;
    keepalive_requests 100000000;
    server {{
        listen {listen} backlog=4096;
        location / {{ return 200 "fastmtcp\\n"; }}
    }}
}}
"""


def measure(
    kind: str, open_chain: chains.OpenChain, target: Endpoint, seconds: int, connections: int
) -> list[Run]:
    """Both ways of using HTTP through a fresh chain."""
    runs = []
    with open_chain(target) as chain:
        for mode in MODES:
            with Meter(chain.pids) as meter:
                load = tools.wrk(chain.entry, seconds, connections, close=mode == "close")
            runs.append(
                {
                    "through": kind,
                    "mode": mode,
                    "per_s": load.rate,
                    "errors": load.errors,
                    "median_latency_ms": load.latency * 1e3,
                    "cpu_ms_each": meter.cpu / max(load.rate * seconds, 1) * 1e3,
                    "peak_pss_mb": meter.peak_pss / 1e6,
                }
            )
    return runs


def report(runs: list[Run], kinds: list[str]) -> str:
    """The medians, one row for each forwarder; errors are those of all runs together."""
    head = ["through"]
    for unit in MODES.values():
        head += [unit, "median ms", "errors"]
    rows = []
    for kind in kinds:
        row = [chains.DESCRIPTIONS[kind]]
        for mode in MODES:
            errors = sum(r["errors"] for r in runs if r["through"] == kind and r["mode"] == mode)
            latency = median_of(runs, "median_latency_ms", through=kind, mode=mode)
            rate = median_of(runs, "per_s", through=kind, mode=mode)
            row += [f"{rate:.0f}", f"{latency:.1f}", str(errors)]
        rows.append(row)
    return results.table(head, rows)


@click.command("connections.sh")
@seconds_option(5)
@click.option(
    "--connections",
    default=32,
    show_default=True,
    type=click.IntRange(1, 4000),
    help="Connections that wrk keeps busy.",
)
@repeat_option
@skip_option(*KINDS)
def main(seconds: int, connections: int, repeat: int, skip: tuple[str, ...]) -> None:
    """New connections and keep-alive requests per second, wrk to nginx.

    Two hops each: fastmtcp with 4 subflows (or as many as it finds right, in the set-up of its
    quick start), and two HAProxies.
    """
    kinds = [kind for kind in KINDS if kind not in skip]
    need("wrk", *(kind for kind in kinds if kind == chains.HAPROXY))
    runs: list[Run] = []
    with nginx() as target:
        for turn in range(repeat):
            for kind in kinds:
                results.progress(f"run {turn + 1} of {repeat}: {chains.DESCRIPTIONS[kind]}")
                runs += measure(kind, chains.CHAINS[kind], target, seconds, connections)
    settings = {"seconds": seconds, "repeat": repeat, "connections": connections}
    results.finish("connections", settings, runs, report(runs, kinds))


if __name__ == "__main__":
    start(main)
