"""Unequal, lossy, policed, silent and flapping lines: what fastmtcp makes of them."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import quantiles
from typing import NamedTuple

import click
from fastmtcp.endpoint import Endpoint

from perf import results, tools
from perf.command import repeat_option, seconds_option, setup_option, start
from perf.ends import APPLICATION, ENTRY, TARGET, application, forwarder, transfer
from perf.network import (
    SERVER_ADDRESS,
    Network,
    become_root,
    check_netem,
    server_endpoint,
    wan_option,
)
from perf.processes import BenchmarkError, Process, need, running
from perf.results import Run, median_of
from perf.uplinks import Uplink, Uplinks, uplinks

OMIT = 3
SILENT_FROM = 2.5
SILENCE = 15.0
FLAP = 2.0
FLAP_FOR = 60.0


def line(mbit: float, rtt_ms: float, **more: float | bool) -> Uplink:
    return Uplink(int(mbit * 1e6 / 8), rtt_ms / 1e3, **more)  # type: ignore[arg-type]


PLAIN = line(160, 40)
FOUR = [PLAIN] * 4
UNEQUAL_4 = [line(160, 20, queue=0.2), line(80, 40, queue=0.2), line(40, 100, queue=0.2),
             line(10, 200, queue=0.2)]  # fmt: skip
UNEQUAL_8 = [line(mbit, rtt, queue=0.2) for mbit, rtt in (
    (50, 20), (40, 40), (35, 60), (25, 80), (20, 100), (15, 120), (10, 140), (5, 160)
)]  # fmt: skip
FAST_AND_SLOW = [line(100, 20, queue=0.2), line(5, 300, queue=0.2)]
LOSSY = [line(160, 40, loss=0.005)] * 4
FAST_AND_AWFUL = [line(100, 20, queue=0.2), line(1, 2000, queue=0.5)]
BRIDGED = [line(100, 20, queue=0.2), line(20, 100, queue=0.2)]
POLICED = [line(160, 40, policed=True, queue=0.02)] * 4
VERY_LOSSY = [line(160, 40, loss=0.01)] * 4


class Bench(NamedTuple):
    """What a scenario needs to run."""

    wan: str | None
    setup: str
    seconds: int
    runs: list[Run]

    def forwarder(
        self, net: Uplinks, paths: Sequence[str]
    ) -> contextlib.AbstractContextManager[object]:
        """fastmtcp with a subflow on each of `paths`."""
        return forwarder(net.names, self.setup, TARGET, 1, paths)

    def note(self, scenario: str, through: str, direction: str, figure: str, value: float) -> None:
        results.progress(f"  {scenario}, {through}, {direction}: {value:.4g} {figure}")
        self.runs.append(
            {"scenario": scenario, "through": through, "direction": direction, figure: value}
        )


@contextlib.contextmanager
def iperf_servers(names: Network, count: int) -> Iterator[None]:
    """An iperf3 server for each line: one serves one test at a time."""
    with contextlib.ExitStack() as stack:
        for port in range(TARGET.port, TARGET.port + count):
            command = [*Network.inside(names.server), "iperf3", "-s", "-p", str(port)]
            server = stack.enter_context(running("iperf3", command, ready=False))
            server.wait_listening(port)
        yield


def plain(net: Uplinks, direction: str, seconds: int, indexes: Sequence[int], *more: str) -> float:
    """One plain connection on each of these lines at the same time: the sum in Mbit/s."""

    def one(index: int) -> float:
        return tools.iperf3(
            Endpoint(SERVER_ADDRESS, TARGET.port + index),
            direction,
            seconds,
            omit=OMIT,
            inside=Network.inside(net.names.client),
            more=("-B", net.addresses[index], *more),
        ).rate

    with ThreadPoolExecutor(len(indexes)) as pool:
        return sum(pool.map(one, indexes)) / 1e6


def through(bench: Bench, net: Uplinks, direction: str, indexes: Sequence[int]) -> float:
    """One stream over one subflow on each of these lines, in Mbit/s."""
    with bench.forwarder(net, paths(net, indexes)):
        return one_stream(net, direction, bench.seconds)


def one_stream(net: Uplinks, direction: str, seconds: int) -> float:
    inside = Network.inside(net.names.client)
    return tools.iperf3(ENTRY, direction, seconds, omit=OMIT, inside=inside).rate / 1e6


def paths(net: Uplinks, indexes: Sequence[int]) -> list[str]:
    return [f"{server_endpoint()},bind={net.addresses[index]}" for index in indexes]


def aggregate(name: str, lines: Sequence[Uplink]) -> Callable[[Bench], None]:
    """One stream over all lines, against the sum of their rates."""

    def run(bench: Bench) -> None:
        everything = range(len(lines))
        with uplinks(lines, bench.wan) as net, iperf_servers(net.names, 1):
            for direction in tools.DIRECTIONS:
                rate = through(bench, net, direction, everything)
                bench.note(name, "fastmtcp", direction, "mbit_per_s", rate)
                total = sum(line.mbit for line in lines)
                bench.note(name, "beside", direction, "mbit_per_s", total)

    return run


def against_plain(name: str, lines: Sequence[Uplink], *more: str) -> Callable[[Bench], None]:
    """One stream over all lines, against a plain connection on each of them."""

    def run(bench: Bench) -> None:
        everything = range(len(lines))
        with uplinks(lines, bench.wan) as net, iperf_servers(net.names, len(lines)):
            for direction in tools.DIRECTIONS:
                rate = through(bench, net, direction, everything)
                bench.note(name, "fastmtcp", direction, "mbit_per_s", rate)
                rate = plain(net, direction, bench.seconds, everything, *more)
                bench.note(name, "beside", direction, "mbit_per_s", rate)

    return run


def best_alone(name: str, lines: Sequence[Uplink]) -> Callable[[Bench], None]:
    """One stream over all lines, against fastmtcp over the first one alone."""

    def run(bench: Bench) -> None:
        with uplinks(lines, bench.wan) as net, iperf_servers(net.names, 1):
            for direction in tools.DIRECTIONS:
                rate = through(bench, net, direction, range(len(lines)))
                bench.note(name, "fastmtcp", direction, "mbit_per_s", rate)
                rate = through(bench, net, direction, [0])
                bench.note(name, "beside", direction, "mbit_per_s", rate)

    return run


@contextlib.contextmanager
def bridge(net: Uplinks, index: int) -> Iterator[str]:
    """A socat that passes connections on over a line; a path that leads through it.

    It is next to the client: what the client's kernel knows of the connection is the first hop.
    """
    where = Endpoint("127.0.0.1", 7709)
    listen = f"TCP-LISTEN:{where.port},bind={where.host},fork,reuseaddr"
    to = f"TCP:{server_endpoint()},bind={net.addresses[index]}"
    command = [*Network.inside(net.names.client), "socat", "-b", "65536", listen, to]
    with running("socat", command, ready=False) as process:
        process.wait_listening(where.port)
        yield str(where)


def bridged(name: str, lines: list[Uplink]) -> Callable[[Bench], None]:
    """One stream over a direct line and one behind a bridge, against their sum."""

    def run(bench: Bench) -> None:
        with uplinks(lines, bench.wan) as net, iperf_servers(net.names, 1), bridge(net, 1) as over:
            total = sum(line.mbit for line in lines)
            for direction in tools.DIRECTIONS:
                with bench.forwarder(net, [*paths(net, [0]), over]):
                    rate = one_stream(net, direction, bench.seconds)
                bench.note(name, "fastmtcp", direction, "mbit_per_s", rate)
                bench.note(name, "beside", direction, "mbit_per_s", total)

    return run


def silent_bridged(bench: Bench) -> None:
    """The line behind a bridge goes silent: the longest pause at the receiver."""
    name = "silence behind a bridge"
    with uplinks([PLAIN, PLAIN], bench.wan) as net, bridge(net, 1) as over:
        pauses(bench, name, net, [*paths(net, [0]), over], 1, 200_000_000)


def silent(bench: Bench) -> None:
    """One of four lines goes silent: the longest pause at the receiver."""
    name = "one of four goes silent"
    with uplinks(FOUR, bench.wan) as net:
        pauses(bench, name, net, paths(net, range(4)), 2, 400_000_000)


def pauses(
    bench: Bench, name: str, net: Uplinks, over: Sequence[str], victim: int, size: int
) -> None:
    """Silence the line `victim` while `size` bytes travel over the paths `over`."""

    def cut(process: Process) -> None:
        time.sleep(SILENT_FROM)
        net.silence(victim)

    for direction in tools.DIRECTIONS:
        with bench.forwarder(net, over):
            run = transfer(net.names, direction, size, cut)
        net.restore()
        check(run, name)
        bench.note(name, "fastmtcp", direction, "pause_ms", run["longest_pause_ms"])


def all_silent(bench: Bench) -> None:
    """All four lines are silent for 15 s: how long after that the receiver gets more."""
    name = "all four silent for 15 s"
    with uplinks(FOUR, bench.wan) as net:
        for direction in tools.DIRECTIONS:

            def cut(process: Process) -> None:
                time.sleep(SILENT_FROM)
                net.silence(0, 1, 2, 3)
                time.sleep(SILENCE)
                net.restore()

            with bench.forwarder(net, paths(net, range(4))):
                run = transfer(net.names, direction, 400_000_000, cut)
            check(run, name)
            late = run["longest_pause_ms"] - SILENCE * 1e3
            bench.note(name, "fastmtcp", direction, "pause_ms", late)


def flapping(bench: Bench) -> None:
    """Two of four lines go silent and come back every 2 s, for a minute, against the steady two."""
    name = "two of four flap every 2 s"
    size = int(2 * PLAIN.rate * FLAP_FOR)
    with uplinks(FOUR, bench.wan) as net:
        for direction in tools.DIRECTIONS:
            with bench.forwarder(net, paths(net, [0, 1])):
                run = transfer(net.names, direction, size // 4)
            bench.note(name, "beside", direction, "mbit_per_s", run["mb_per_s"] * 8)

            def flap(process: Process) -> None:
                while process.popen.poll() is None:
                    net.silence(2, 3)
                    time.sleep(FLAP)
                    net.restore()
                    time.sleep(FLAP)

            with bench.forwarder(net, paths(net, range(4))):
                run = transfer(net.names, direction, size, flap)
            check(run, name)
            bench.note(name, "fastmtcp", direction, "mbit_per_s", run["mb_per_s"] * 8)


def check(run: Run, name: str) -> None:
    if not run["equal"]:
        raise BenchmarkError(f"{name}: what arrived is not what was sent")


def ping_pong(bench: Bench) -> None:
    """Questions and answers of 64 bytes, idle and beside a stream that fills all four lines."""
    name = "questions beside bulk"
    with uplinks(FOUR, bench.wan) as net:
        inside = Network.inside(net.names.server)
        serve = [*inside, *APPLICATION, "serve", "--listen", str(TARGET)]
        with (
            running("serve", serve),
            bench.forwarder(net, paths(net, range(4))),
        ):
            for direction in tools.DIRECTIONS:
                bench.note(name, "beside", direction, "p98_ms", ask(net))
                bulk = application(net.names, "bulk", False, "--connect", str(ENTRY),
                                   "--direction", direction)  # fmt: skip
                try:
                    time.sleep(OMIT)
                    bench.note(name, "fastmtcp", direction, "p98_ms", ask(net))
                finally:
                    bulk.stop()
                time.sleep(1)


def ask(net: Uplinks) -> float:
    """98th percentile of the answer times, in ms."""
    asker = application(net.names, "ping", False, "--connect", str(ENTRY), "--count", "150")
    try:
        times = json.loads(asker.output(120))["times"]
    finally:
        asker.stop()
    return float(quantiles(times, n=50)[-1]) * 1e3


class Scenario(NamedTuple):
    run: Callable[[Bench], None]
    text: str
    beside: str
    wanted: str


SCENARIOS = {
    "single": Scenario(
        against_plain("one line", [PLAIN]), "one line", "a plain connection", ">= 0.98"
    ),
    "unequal4": Scenario(
        aggregate("four unequal lines", UNEQUAL_4), "four unequal lines", "their sum", ">= 0.95"
    ),
    "unequal8": Scenario(
        aggregate("eight unequal lines", UNEQUAL_8), "eight unequal lines", "their sum", ">= 0.90"
    ),
    "slow": Scenario(
        aggregate("a fast and a slow line", FAST_AND_SLOW),
        "a fast and a slow line",
        "their sum",
        ">= 0.90",
    ),
    "slow-alone": Scenario(
        best_alone("the slow line beside the fast one", FAST_AND_SLOW),
        "the slow line beside the fast one",
        "the fast one alone",
        ">= 0.97",
    ),
    "awful-alone": Scenario(
        best_alone("an awful line beside the fast one", FAST_AND_AWFUL),
        "an awful line beside the fast one",
        "the fast one alone",
        ">= 0.97",
    ),
    "bridge": Scenario(
        bridged("the slower one behind a bridge", BRIDGED),
        "the slower one behind a bridge",
        "their sum",
        ">= 0.90",
    ),
    "bridge-equal": Scenario(
        bridged("one of two equal ones behind a bridge", [PLAIN, PLAIN]),
        "one of two equal ones behind a bridge",
        "their sum",
        ">= 0.90",
    ),
    "loss": Scenario(
        against_plain("0.5% loss", LOSSY), "0.5% loss", "4 plain connections", ">= 0.97"
    ),
    "policed": Scenario(
        against_plain("policed", POLICED), "policed", "4 plain connections", ">= 0.97"
    ),
    "cubic": Scenario(
        against_plain("1% loss, cubic beside", VERY_LOSSY, "-C", "cubic"),
        "1% loss, cubic beside",
        "4 plain connections with cubic",
        ">= 1",
    ),
    "silent": Scenario(silent, "one of four goes silent", "", "<= 350 ms"),
    "silent-bridge": Scenario(silent_bridged, "silence behind a bridge", "", "<= 1000 ms"),
    "all-silent": Scenario(all_silent, "all four silent for 15 s", "", "<= 1500 ms"),
    "flapping": Scenario(flapping, "two of four flap every 2 s", "the steady two", ">= 0.90"),
    "ping-pong": Scenario(ping_pong, "questions beside bulk", "idle", "<= 80 ms"),
}


def report(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Medians: Mbit/s, or ms; the ratio is fastmtcp over what is beside it."""
    rows = []
    for name in names:
        scenario = SCENARIOS[name]
        for direction in tools.DIRECTIONS:
            of = {"scenario": scenario.text, "direction": direction}
            figure = next(
                key
                for run in runs
                if run["scenario"] == scenario.text
                for key in ("mbit_per_s", "pause_ms", "p98_ms")
                if key in run
            )
            value = median_of(runs, figure, through="fastmtcp", **of)
            unit = "Mbit/s" if figure == "mbit_per_s" else "ms"
            beside, ratio = "-", "-"
            if scenario.beside:
                other = median_of(runs, figure, through="beside", **of)
                beside = f"{other:.0f} {scenario.beside}"
                ratio = f"{value / other:.3f}"
            rows.append(
                [scenario.text, direction, f"{value:.0f} {unit}", beside, ratio, scenario.wanted]
            )
    return results.table(["lines", "", "fastmtcp", "beside", "ratio", "wanted"], rows)


@click.command("paths.sh")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(SCENARIOS)),
    help="Measure only this; may be repeated.",
)
@seconds_option(10)
@repeat_option
@setup_option
@wan_option
def main(only: tuple[str, ...], seconds: int, repeat: int, setup: str, wan: str | None) -> None:
    """One stream over several lines that are unequal, lossy, policed, silent or flapping.

    Builds two network namespaces with a line for each address of the client, and measures both
    directions. Needs root or user namespaces, and a kernel with netem or a program given by --wan.
    """
    become_root("perf.paths", sys.argv[1:])
    need("iperf3", "socat")
    check_netem(PLAIN.rtt, wan)
    names = only or tuple(SCENARIOS)
    bench = Bench(wan, setup, seconds, [])
    for turn in range(repeat):
        results.progress(f"run {turn + 1} of {repeat}")
        for name in names:
            SCENARIOS[name].run(bench)
    settings = {"seconds": seconds, "repeat": repeat, "setup": setup,
                "scenarios": list(names)}  # fmt: skip
    results.finish("paths", settings, bench.runs, report(bench.runs, names))


if __name__ == "__main__":
    start(main)
