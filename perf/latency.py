"""First answer on a long line, and the pause when a subflow is reset."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from statistics import median

import click
from fastmtcp.endpoint import Endpoint
from fastmtcp.units import parse_delay, parse_rate

from perf import results, tools
from perf.command import repeat_option, setup_option, start
from perf.ends import APPLICATION, ENTRY, TARGET, application, forwarder, transfer
from perf.network import (
    SERVER_ADDRESS,
    Line,
    Network,
    become_root,
    check_netem,
    network,
    server_endpoint,
    wan_option,
)
from perf.processes import BenchmarkError, Process, running
from perf.resets import reset, subflow_ports
from perf.results import Run, median_of
from perf.setups import QUICK_START

CONNECTIONS = 4
SETTLE = 2.0


@click.group("latency.sh", context_settings={"show_default": True})
def latency() -> None:
    """Times that matter on a long line: `first-byte` and `recovery`.

    Both need root or user namespaces, and a kernel with netem or a program given by --wan.
    """


def _prepare(line: Line) -> None:
    become_root("perf.latency", sys.argv[1:])
    check_netem(line.rtt, line.wan)


@latency.command("first-byte")
@click.option("--rtt", default="200ms", help="Round-trip time of the line.")
@click.option("--count", default=10, type=click.IntRange(1, 1000), help="Connections in each run.")
@repeat_option
@setup_option
@wan_option
def first_byte(rtt: str, count: int, repeat: int, setup: str, wan: str | None) -> None:
    """Time from connect() to the first byte of the answer, on new connections."""
    line = Line(0, parse_delay(rtt), wan)
    _prepare(line)
    runs: list[Run] = []
    # On all addresses of the namespace: direct connections come from the other one.
    target = Endpoint("0.0.0.0", TARGET.port)
    with network(line) as names:
        echo = [*Network.inside(names.server), *APPLICATION, "echo", "--listen", str(target)]
        with (
            running("echo", echo),
            forwarder(names, setup, TARGET, CONNECTIONS) as forwarding,
        ):
            library = (
                "ask-library",
                "--connect",
                str(server_endpoint()),
                *forwarding.made.credentials,
            )
            if setup != QUICK_START:
                library += ("--connections", str(CONNECTIONS))
            askers = {
                "direct": ("ask", "--connect", str(Endpoint(SERVER_ADDRESS, target.port))),
                "fastmtcp": ("ask", "--connect", str(ENTRY)),
                "library": library,
                "library, not waiting": (*library, "--no-wait"),
            }
            for _ in range(repeat):
                for through, asker in askers.items():
                    runs.append(_ask(names, through, asker, count))
    rows = []
    for through in askers:
        times = [time for run in runs if run["through"] == through for time in run["times_ms"]]
        rows.append([through, f"{median(times):.1f}", f"{min(times):.1f}", f"{max(times):.1f}"])
    head = ["first answer byte", "median ms", "least", "most"]
    settings = {"rtt_s": line.rtt, "count": count, "repeat": repeat, "setup": setup}
    results.finish("first_byte", settings, runs, results.table(head, rows))


def _ask(names: Network, through: str, words: tuple[str, ...], count: int) -> Run:
    asker = application(names, words[0], False, *words[1:], "--count", str(count))
    try:
        times = json.loads(asker.output(60 + count))["times"]
    finally:
        asker.stop()
    milliseconds = [seconds * 1e3 for seconds in times]
    results.progress(f"{through}: {median(milliseconds):.1f} ms")
    return {"through": through, "times_ms": milliseconds}


@latency.command("recovery")
@click.option("--rtt", default="40ms", help="Round-trip time of the line.")
@click.option("--rate", default="160mbit", help="Limit of each connection, each way.")
@click.option("--size", default=600, type=click.IntRange(1), metavar="MB", help="To transfer.")
@click.option("--every", default=1.0, type=click.FloatRange(0.1), help="Seconds between resets.")
@repeat_option
@setup_option
@wan_option
def recovery(
    rtt: str, rate: str, size: int, every: float, repeat: int, setup: str, wan: str | None
) -> None:
    """Reset one of four subflows again and again during a transfer, from either side.

    Compares SHA-256 at both ends, and reports the longest pause between two reads at the
    receiver, to the FIN. `none` is the same transfer without resets.
    """
    line = Line(parse_rate(rate), parse_delay(rtt), wan)
    _prepare(line)
    runs: list[Run] = []
    with network(line) as names:
        for _ in range(repeat):
            for direction in tools.DIRECTIONS:
                for interval in (None, every):
                    runs.append(_transfer(names, setup, direction, size * 1_000_000, interval))
    rows = []
    for direction in tools.DIRECTIONS:
        for resets in (False, True):
            chosen = {"direction": direction, "with_resets": resets}
            matching = [run for run in runs if chosen.items() <= run.items()]
            rows.append(
                [
                    direction,
                    str(sum(run["resets"] for run in matching)) if resets else "none",
                    "equal" if all(run["equal"] for run in matching) else "DIFFERENT",
                    f"{median_of(runs, 'longest_pause_ms', **chosen):.0f}",
                    f"{max(run['longest_pause_ms'] for run in matching):.0f}",
                    f"{median_of(runs, 'mb_per_s', **chosen):.1f}",
                ]
            )
    head = ["direction", "resets", "SHA-256", "longest pause ms", "of all runs", "MB/s"]
    settings = {"rtt_s": line.rtt, "rate_bytes_per_s": line.rate, "size_mb": size,
                "every_s": every, "repeat": repeat, "setup": setup,
                "connections": CONNECTIONS}  # fmt: skip
    results.finish("recovery", settings, runs, results.table(head, rows))
    if not all(run["equal"] for run in runs):
        raise BenchmarkError("what arrived is not what was sent")


def _transfer(names: Network, setup: str, direction: str, size: int, every: float | None) -> Run:
    resets = 0

    def disturb(near: Process) -> None:
        nonlocal resets
        if every is not None:
            resets = _reset_subflows(names, near, every)

    with forwarder(names, setup, TARGET, CONNECTIONS):
        run = transfer(names, direction, size, disturb)
    run |= {"with_resets": every is not None, "resets": resets}
    results.progress(
        f"{direction}: {resets} resets, longest pause {run['longest_pause_ms']:.0f} ms, "
        f"{run['mb_per_s']:.1f} MB/s, SHA-256 {'equal' if run['equal'] else 'DIFFERENT'}"
    )
    return run


def _reset_subflows(names: Network, transfer: Process, every: float) -> int:
    """Reset a subflow every so often while the transfer runs; return how many were."""
    chance = random.Random(1)
    count = 0
    deadline = time.monotonic() + SETTLE
    while not _ended_by(transfer, deadline):
        ports = subflow_ports(names)
        if ports:
            # In turns at the client's end and at the server's.
            reset(names, chance.choice(ports), at_server=count % 2 == 1)
            count += 1
        deadline = max(deadline + every, time.monotonic())
    if not count:
        raise BenchmarkError("the transfer was over before any reset; use a larger --size")
    return count


def _ended_by(process: Process, deadline: float) -> bool:
    """Wait for the end of a process until `deadline` (monotonic); False if it runs on."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.popen.wait(max(0.0, deadline - time.monotonic()))
        return True
    return False


if __name__ == "__main__":
    start(latency)
