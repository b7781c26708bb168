"""A transfer through a server to which many connect that prove nothing."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

import click

from perf import chains, results, tools
from perf.command import repeat_option, start
from perf.processes import Meter, need, running
from perf.results import Run, median_of
from perf.unauthenticated import KINDS

NOBODY = "nobody"
_LEAD = 3.0
"""Seconds of transfer before the flood comes: its window has grown by then."""


def measure(kind: str, security: str, count: int, sources: int, rate: str, seconds: int) -> Run:
    """One transfer with a fixed rate, and what it got."""
    target = chains.free_endpoint()
    server = ["iperf3", "-s", "-B", target.host, "-p", str(target.port)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(running("iperf3", server, ready=False)).wait_listening(target.port)
        chain = stack.enter_context(chains.CHAINS[security](target))
        assert chain.middle is not None
        transfers: list[tools.Transfer] = []

        def transfer() -> None:
            more = ("-b", rate)
            transfers.append(tools.iperf3(chain.entry, tools.UP, seconds, omit=3, more=more))

        thread = threading.Thread(target=transfer)
        thread.start()
        time.sleep(_LEAD)
        with Meter([chain.pids[1]]) as before:
            time.sleep(1)
        said = ""
        with Meter([chain.pids[1]]) as during:
            if kind != NOBODY:
                command = [
                    sys.executable,
                    "-m",
                    "perf.unauthenticated",
                    "--connect",
                    str(chain.middle),
                ]
                command += ["--kind", kind, "--count", str(count), "--sources", str(sources)]
                with running("unauthenticated", command, stdout=True) as flood:
                    said = flood.output(120).strip()
            thread.join()
    return {
        "unauthenticated": kind,
        "security": security,
        "sources": sources,
        "mbit_per_s": transfers[0].rate / 1e6,
        "memory_before_mb": before.peak_pss / 1e6,
        "memory_more_mb": (during.peak_pss - before.peak_pss) / 1e6,
        "said": said,
    }


@click.command("flood.sh")
@click.option("--count", default=10_000, show_default=True, help="Connections that prove nothing.")
@click.option("--sources", default=1, show_default=True, help="Addresses that they come from.")
@click.option("--rate", default="400M", show_default=True, help="Of the transfer, as of iperf3.")
@click.option("--seconds", default=15, show_default=True, help="Length of the transfer.")
@repeat_option
def flood(count: int, sources: int, rate: str, seconds: int, repeat: int) -> None:
    """What a transfer of a fixed rate loses, and how much memory a server takes, when 10,000
    connections come that say nothing, or garbage, or begin a handshake and stop."""
    need("iperf3")
    runs: list[Run] = []
    cases = [
        (security, kind)
        for security in (chains.FASTMTCP, chains.FASTMTCP_TLS)
        for kind in (NOBODY, *KINDS)
        if not (security == chains.FASTMTCP and kind == "half-tls")
    ]
    for turn in range(repeat):
        for security, kind in cases:
            results.progress(f"run {turn + 1} of {repeat}: {security}, flood of {kind}")
            runs.append(measure(kind, security, count, sources, rate, seconds))
            results.progress(str(runs[-1]))
    rows = []
    for security, kind in cases:
        alone = median_of(runs, "mbit_per_s", unauthenticated=NOBODY, security=security)
        got = median_of(runs, "mbit_per_s", unauthenticated=kind, security=security)
        more = median_of(runs, "memory_more_mb", unauthenticated=kind, security=security)
        rows.append([f"{security}: {kind}", f"{got:.0f}", f"{got / alone:.3f}", f"{more:+.1f}"])
    head = ["unauthenticated", "transfer Mbit/s", "of that alone", "server's PSS, MB more"]
    settings = {"count": count, "sources": sources, "rate": rate, "seconds": seconds}
    results.finish("flood", settings | {"repeat": repeat}, runs, results.table(head, rows))


if __name__ == "__main__":
    start(flood)
