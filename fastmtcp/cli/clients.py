"""`fastmtcp client`: who may connect to a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from fastmtcp.cli.init import show_link
from fastmtcp.cli.options import EXIT_CODES
from fastmtcp.cli.taken import wait_until_taken
from fastmtcp.errors import FastmtcpError
from fastmtcp.server.directory import USUAL_NAME, ServerDir


def _dir_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--dir",
        "folder",
        default=USUAL_NAME,
        show_default=True,
        metavar="DIR",
        help="The server's directory, made by `fastmtcp init server`.",
    )(command)


@click.group(epilog=EXIT_CODES)
def client() -> None:
    """Say who may connect to a server; it need not be restarted for that."""


@client.command(epilog=EXIT_CODES)
@click.argument("name")
@_dir_option
def add(name: str, folder: str) -> None:
    """Let in a new client NAME and print its link, which is shown once and stored nowhere."""
    show_link(ServerDir(folder).add_client(name))


@client.command("list", epilog=EXIT_CODES)
@_dir_option
def list_clients(folder: str) -> None:
    """Print the names of all clients."""
    for name in ServerDir(folder).client_names():
        click.echo(name)


@client.command(epilog=EXIT_CODES)
@click.argument("name")
@_dir_option
def revoke(name: str, folder: str) -> None:
    """Let client NAME in no more; its sessions end within a second. Says whether the servers that
    run with this list have taken it; the exit code is 1 if one has not."""
    server = ServerDir(folder)
    server.revoke_client(name)
    try:
        taken = wait_until_taken(server.clients_file)
    except FastmtcpError as error:
        raise FastmtcpError(f"revoked {name}, but not everywhere: {error}") from None
    if taken:
        click.echo(f"revoked {name}; {', '.join(taken)} has taken it", err=True)
    else:
        click.echo(f"revoked {name}; no server was found here that runs with this list", err=True)
