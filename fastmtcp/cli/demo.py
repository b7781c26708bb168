"""`fastmtcp demo`: the main job on a built-in default, shown and measured in about a minute."""

from __future__ import annotations

import sys

import click

from fastmtcp.cli.options import EXIT_CODES
from fastmtcp.demo.demo import WARM_UP, Demo, Row, format_table, parse_connections
from fastmtcp.demo.demo import stop_signals_as_interrupt as stop_signals
from fastmtcp.demo.traffic import Sample
from fastmtcp.units import parse_rate

_BAR = 24


class _Display:
    """Live progress: one line rewritten on a terminal, one line for each row elsewhere."""

    def __init__(self, seconds: float) -> None:
        self._end = WARM_UP + seconds
        self._live = sys.stdout.isatty()
        self._before = Sample(0.0, 0)

    def __call__(self, name: str, direction: str, sample: Sample) -> None:
        if not self._live:
            return
        if sample.at < self._before.at:
            self._before = Sample(0.0, 0)
        passed = sample.at - self._before.at
        if passed <= 0:
            return
        speed = (sample.total - self._before.total) / passed / 1e6
        self._before = sample
        done = round(min(1.0, sample.at / self._end) * _BAR)
        bar = "#" * done + "." * (_BAR - done)
        self._write(f"{name:<24} {direction:<4} [{bar}] {speed:7.1f} MB/s")

    def row(self, row: Row) -> None:
        rates = "   ".join(f"{way} {rate / 1e6:6.1f} MB/s" for way, rate in row.rates.items())
        self._write(f"{row.name:<24} {rates}")
        click.echo()

    def _write(self, text: str) -> None:
        click.echo(f"\r\x1b[K{text}" if self._live else text, nl=False)


@click.command(epilog=EXIT_CODES)
@click.option(
    "--rate",
    default="20MB",
    show_default=True,
    metavar="RATE",
    help="What the simulated network gives to each connection, per second: 20MB, 160mbit.",
)
@click.option(
    "--seconds",
    default=3.0,
    show_default=True,
    type=click.FloatRange(0.5, 60),
    help="How long each transfer is measured, after one second that is not.",
)
@click.option(
    "--connections",
    default="1,3,4,5,8",
    show_default=True,
    metavar="N,...",
    help="Numbers of connections to try.",
)
def demo(rate: str, seconds: float, connections: str) -> None:
    """Show on this machine what N connections bring over one.

    Starts a target, fastmtcp-server, fastmtcp-client and, between the two, a simulated network
    that holds each TCP connection to a rate of its own. Measures one plain connection through
    that network, then one stream through fastmtcp with N connections, both ways. Needs no root
    and no other software, and takes about a minute.
    """
    try:
        counts = parse_connections(connections)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--connections") from None
    limit = parse_rate(rate)
    display = _Display(seconds)
    click.echo(f"Each connection is limited to {limit / 1e6:g} MB/s, each way by itself.\n")
    rows = []
    with stop_signals():
        for row in Demo(limit, seconds, display).run(counts):
            display.row(row)
            rows.append(row)
    click.echo(f"\n{format_table(rows)}\n")
    click.echo(
        f"Measured: what reached the receiving application in {seconds:g} s of one transfer, after "
        f"{WARM_UP:g} s\nof warm-up. Every byte was compared with what was sent; none was wrong, "
        "missing or repeated."
    )
