"""One stream over loopback, as fast as the CPUs allow, through each forwarder in turn."""

from __future__ import annotations

import click

from perf import chains, results, tools
from perf.command import repeat_option, seconds_option, skip_option, start
from perf.processes import Meter, need, running
from perf.results import Run, median_of

KINDS = (
    chains.DIRECT,
    chains.FASTMTCP,
    chains.FASTMTCP_TLS,
    chains.FASTMTCP_QUICK_START,
    chains.HAPROXY,
    chains.HAPROXY_TLS,
    chains.SOCAT,
)


def measure(kind: str, open_chain: chains.OpenChain, seconds: int) -> list[Run]:
    """Both directions through a fresh chain."""
    target = chains.free_endpoint()
    server = ["iperf3", "-s", "-B", target.host, "-p", str(target.port)]
    runs = []
    with running("iperf3", server, ready=False) as iperf3:
        iperf3.wait_listening(target.port)
        with open_chain(target) as chain:
            for direction in tools.DIRECTIONS:
                with Meter(chain.pids) as meter:
                    transfer = tools.iperf3(chain.entry, direction, seconds)
                runs.append(
                    {
                        "through": kind,
                        "direction": direction,
                        "gbit_per_s": transfer.rate / 1e9,
                        "cpu_s_per_gb": meter.cpu / (transfer.total / 1e9),
                        "peak_pss_mb": meter.peak_pss / 1e6,
                        "peak_rss_mb": meter.peak_rss / 1e6,
                    }
                )
    return runs


def report(runs: list[Run], kinds: list[str]) -> str:
    """The medians, one row for each forwarder."""
    head = ["through"]
    for direction in tools.DIRECTIONS:
        head += [f"{direction} Gbit/s", "CPU-s/GB", "PSS MB"]
    rows = []
    for kind in kinds:
        row = [chains.DESCRIPTIONS[kind]]
        for direction in tools.DIRECTIONS:
            for figure, digits in (("gbit_per_s", 2), ("cpu_s_per_gb", 2), ("peak_pss_mb", 0)):
                value = median_of(runs, figure, through=kind, direction=direction)
                forwarded = kind != chains.DIRECT or figure == "gbit_per_s"
                row.append(f"{value:.{digits}f}" if forwarded else "-")
        rows.append(row)
    return results.table(head, rows)


@click.command("loopback.sh")
@seconds_option(6)
@repeat_option
@skip_option(*KINDS)
def loopback(seconds: int, repeat: int, skip: tuple[str, ...]) -> None:
    """Throughput, CPU time and memory of one stream on loopback.

    Two hops each: fastmtcp with 4 subflows (or as many as it finds right, in the set-up of its
    quick start), two HAProxies and two socats. CPU-seconds per GB and
    memory (peak PSS) are those of all processes of the forwarder, without iperf3.
    """
    kinds = [kind for kind in KINDS if kind not in skip]
    programs = {kind.partition("-")[0] for kind in kinds}
    need("iperf3", *(name for name in (chains.HAPROXY, chains.SOCAT) if name in programs))
    runs: list[Run] = []
    for turn in range(repeat):
        # In turns, so that a slow spell of the machine meets all of them.
        for kind in kinds:
            results.progress(f"run {turn + 1} of {repeat}: {chains.DESCRIPTIONS[kind]}")
            runs += measure(kind, chains.CHAINS[kind], seconds)
    settings = {"seconds": seconds, "repeat": repeat, "connections": 4}
    results.finish("loopback", settings, runs, report(runs, kinds))


if __name__ == "__main__":
    start(loopback)
