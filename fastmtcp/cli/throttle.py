"""`fastmtcp throttle`: the per-connection rate limit of the demo and the tests, as a command."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import click

from fastmtcp.cli.options import EXIT_CODES, run
from fastmtcp.demo.throttle import Throttle
from fastmtcp.endpoint import Endpoint
from fastmtcp.units import parse_delay, parse_rate


@click.command(epilog=EXIT_CODES)
@click.option(
    "--listen",
    default="127.0.0.1:7702",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to accept connections; port 0 means any free port.",
)
@click.option(
    "--target",
    default="127.0.0.1:7700",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to relay every connection to.",
)
@click.option(
    "--rate",
    default="20MB",
    show_default=True,
    metavar="RATE",
    help="Limit of each connection in each direction, per second: 20MB, 160mbit, 500000.",
)
@click.option(
    "--delay",
    default="0",
    show_default=True,
    metavar="TIME",
    help="Delay added to all bytes, one way: 20ms, 0.2s.",
)
def throttle(listen: str, target: str, rate: str, delay: str) -> None:
    """Relay TCP connections, each held to a rate of its own (for trying fastmtcp out).

    It plays a network that limits every connection by itself. Put it between fastmtcp-client
    and fastmtcp-server. It is no part of fastmtcp's data path and checks no key.
    """
    relay = Throttle(
        Endpoint.parse(target),
        Endpoint.parse(listen),
        rate=parse_rate(rate),
        delay=parse_delay(delay),
    )
    relay.bind()

    def stop(number: int, frame: FrameType | None) -> None:
        relay.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    click.echo(f"ready: {relay.address} to {target}, {rate} per second and connection", err=True)
    relay.run()


if __name__ == "__main__":
    sys.exit(run(throttle))
