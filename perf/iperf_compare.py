"""What N connections bring where each connection has a rate limit of its own, by iperf3."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence

import click
from fastmtcp.demo.demo import parse_connections
from fastmtcp.endpoint import Endpoint
from fastmtcp.units import parse_delay, parse_rate

from perf import plot, results, setups, tools
from perf.command import repeat_option, seconds_option, start
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
from perf.processes import need, running
from perf.results import Run, median_of

PLAIN = "plain"
FASTMTCP = "fastmtcp"
TARGET = Endpoint("127.0.0.1", 5201)
DIRECT = Endpoint(SERVER_ADDRESS, 5201)
ENTRY = Endpoint("127.0.0.1", 7701)
OMIT = 1


class Comparison:
    """Runs the measurements in two namespaces and collects their figures."""

    def __init__(self, names: Network, seconds: int, setup: setups.Setup) -> None:
        self._names = names
        self._seconds = seconds
        self._setup = setup
        self.runs: list[Run] = []

    @contextlib.contextmanager
    def servers(self, *, forwarder: bool) -> Iterator[None]:
        """iperf3 and, if wanted, fastmtcp-server in the server namespace."""
        inside = Network.inside(self._names.server)
        with contextlib.ExitStack() as stack:
            iperf3 = stack.enter_context(
                running("iperf3", [*inside, "iperf3", "-s", "-p", str(TARGET.port)], ready=False)
            )
            iperf3.wait_listening(TARGET.port)
            if forwarder:
                stack.enter_context(running("fastmtcp-server", [*inside, *self._setup.server]))
            yield

    def plain(self, connections: int) -> None:
        """N plain connections (`iperf3 -P N`): the ceiling."""
        self._measure(PLAIN, connections, DIRECT, parallel=connections)

    def fastmtcp(self, connections: int) -> None:
        """One stream through fastmtcp with N connections."""
        command = self._setup.client(ENTRY, connections)
        inside = Network.inside(self._names.client)
        with running("fastmtcp-client", [*inside, *command]):
            self._measure(FASTMTCP, connections, ENTRY, parallel=1)

    def _measure(self, through: str, connections: int, entry: Endpoint, *, parallel: int) -> None:
        for direction in tools.DIRECTIONS:
            transfer = tools.iperf3(
                entry,
                direction,
                self._seconds,
                parallel=parallel,
                omit=OMIT,
                inside=Network.inside(self._names.client),
            )
            results.progress(
                f"  {through}, {connections} x, {direction}: {transfer.rate / 1e6:.0f} Mbit/s"
            )
            self.runs.append(
                {
                    "through": through,
                    "connections": connections,
                    "direction": direction,
                    "mbit_per_s": transfer.rate / 1e6,
                }
            )


def report(runs: list[Run], counts: Sequence[int], *, forwarder: bool = True) -> str:
    """Medians in Mbit/s; speed-up is over one plain connection, efficiency over N of them."""
    head = ["connections"]
    for direction in tools.DIRECTIONS:
        head += [f"{direction}: N plain"]
        head += ["fastmtcp", "speed-up", "efficiency"] if forwarder else []
    rows = []
    for count in counts:
        row = [str(count)]
        for direction in tools.DIRECTIONS:
            way = {"direction": direction}
            one = median_of(runs, "mbit_per_s", through=PLAIN, connections=1, **way)
            ceiling = median_of(runs, "mbit_per_s", through=PLAIN, connections=count, **way)
            row.append(f"{ceiling:.0f}")
            if forwarder:
                rate = median_of(runs, "mbit_per_s", through=FASTMTCP, connections=count, **way)
                row += [f"{rate:.0f}", f"{rate / one:.2f}", f"{rate / ceiling:.3f}"]
        rows.append(row)
    return results.table(head, rows)


@click.command("iperf_compare.sh")
@click.option(
    "--rate",
    default="160mbit",
    show_default=True,
    help="Limit of each connection, each way: 160mbit, 20MB (per second).",
)
@click.option(
    "--connections",
    default="1,3,4,5,8",
    show_default=True,
    metavar="N,...",
    help="Numbers of connections to try.",
)
@click.option("--rtt", default="0", show_default=True, help="Round-trip time, such as 40ms.")
@seconds_option(5)
@repeat_option
@click.option("--plain-only", is_flag=True, help="Measure plain connections only.")
@wan_option
def main(
    rate: str,
    connections: str,
    rtt: str,
    seconds: int,
    repeat: int,
    plain_only: bool,
    wan: str | None,
) -> None:
    """One stream over N connections where each connection has a rate limit of its own.

    Builds two network namespaces and measures with iperf3, in both directions: N plain
    connections (iperf3 -P N, the ceiling) and one stream through fastmtcp with N. The first
    second of each run is left out.
    """
    try:
        counts = parse_connections(connections)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--connections") from None
    line = Line(parse_rate(rate), parse_delay(rtt), wan)
    become_root("perf.iperf_compare", sys.argv[1:])
    need("iperf3")
    check_netem(line.rtt, line.wan)
    with (
        setups.set_up(setups.PLAIN, server_endpoint(), TARGET) as made,
        network(line) as names,
    ):
        comparison = Comparison(names, seconds, made)
        with comparison.servers(forwarder=not plain_only):
            for turn in range(repeat):
                results.progress(f"run {turn + 1} of {repeat}")
                for count in sorted({1, *counts}):
                    comparison.plain(count)
                    if count in counts and not plain_only:
                        comparison.fastmtcp(count)
    settings = {
        "rate_bytes_per_s": line.rate,
        "rtt_s": line.rtt,
        "connections": list(counts),
        "seconds": seconds,
        "repeat": repeat,
    }
    text = report(comparison.runs, counts, forwarder=not plain_only)
    path = results.finish("iperf_compare", settings, comparison.runs, text)
    if not plain_only:
        plot.throttled(comparison.runs, counts, path.with_suffix(".svg"))


if __name__ == "__main__":
    start(main)
