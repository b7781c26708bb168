"""`fastmtcp status`: what the running servers and clients of this user are doing."""

from __future__ import annotations

import time

import click

from fastmtcp.cli.options import EXIT_CODES, report
from fastmtcp.errors import FastmtcpError
from fastmtcp.status.control_name import ControlName
from fastmtcp.status.document import FORMAT, InstanceStatus
from fastmtcp.status.query import TIMEOUT, NoAnswerError, NotRunningError, ask, running

_ALL = 15.0
"""Seconds for all answers together: somebody else's sockets must not hold up root for long."""


@click.command(epilog=EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--socket",
    metavar="NAME",
    help="Ask only this one: a --control name, as client-7701, or fastmtcp/UID/client-7701.",
)
@click.option("--client", is_flag=True, help="Ask only running clients.")
@click.option("--server", is_flag=True, help="Ask only running servers.")
def status(as_json: bool, socket: str | None, client: bool, server: bool) -> int:
    """Show what fastmtcp-server and fastmtcp-client are doing: workers, sessions, paths, subflows
    and streams, with rates, round-trip times and counters.

    Without options it asks all that run as this user in this network namespace; root asks those
    of all users. `up` is from the client to the server and `down` the other way.
    """
    if sum((socket is not None, client, server)) > 1:
        raise _usage("--socket, --client and --server exclude one another; use one")
    if socket is not None:
        instances, failed = [ask(_name(socket))], False
    else:
        wanted = "fastmtcp-client" if client else "fastmtcp-server" if server else ""
        instances, failed = _ask_all(wanted)
    if as_json:
        _print_json(instances)
    else:
        from fastmtcp.status.text import format_instances

        click.echo(format_instances(instances))
    return 1 if failed else 0


def _name(text: str) -> ControlName:
    name = ControlName.parse(text)
    if name is None:
        raise _usage(
            f"--socket: {text!r} is no name; write it like client-7701 or fastmtcp/1000/client-7701"
        )
    return name


def _usage(message: str) -> click.UsageError:
    return click.UsageError(message, click.get_current_context())


def _ask_all(wanted: str) -> tuple[list[InstanceStatus], bool]:
    """Those of the program `wanted`, or all, and whether any of them did not answer."""
    deadline = time.monotonic() + _ALL
    found: list[InstanceStatus] = []
    failed = False
    for name in running():
        left = deadline - time.monotonic()
        try:
            if left <= 0:
                raise NoAnswerError(f"{name} was not asked: the others took too long")
            one = ask(name, min(left, TIMEOUT))
        except NotRunningError:
            continue  # it has ended since it was listed
        except NoAnswerError as error:
            report("fastmtcp status", str(error))
            failed = True
            continue
        if wanted in ("", one.program):
            found.append(one)
    if not found:
        what = wanted or "fastmtcp-server or fastmtcp-client"
        raise FastmtcpError(f"no {what} runs here; start one, or name its socket with --socket")
    return found, failed


def _print_json(instances: list[InstanceStatus]) -> None:
    import msgspec

    document = msgspec.json.encode({"format": FORMAT, "instances": instances})
    click.echo(msgspec.json.format(document, indent=2))
