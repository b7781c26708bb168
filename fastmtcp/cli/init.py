"""`fastmtcp init`: sets up a server, with its first client."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from fastmtcp.cli.options import EXIT_CODES
from fastmtcp.endpoint import Endpoint
from fastmtcp.security.link import Link
from fastmtcp.server.directory import CONFIG, USUAL_NAME, ServerDir, check_client_name

LINK_FILE = "fastmtcp.link"


@click.group(epilog=EXIT_CODES)
def init() -> None:
    """Set up a server."""


@init.command(epilog=EXIT_CODES)
@click.option(
    "--public-address",
    required=True,
    metavar="HOST:PORT",
    help="Where clients will reach the server.",
)
@click.option(
    "--dir",
    "folder",
    default=USUAL_NAME,
    show_default=True,
    metavar="DIR",
    help="The directory to make; it must not exist.",
)
@click.option(
    "--target",
    default="127.0.0.1:5201",
    show_default=True,
    metavar="HOST:PORT",
    help="Where the server forwards every stream to.",
)
@click.option(
    "--client",
    default="first",
    show_default=True,
    metavar="NAME",
    help="Name of the first client.",
)
def server(public_address: str, folder: str, target: str, client: str) -> None:
    """Make a directory with a server's configuration, certificate and list of clients, and print
    the link of the first client.

    The link goes to standard output, all else to standard error. Whoever has the link can use the
    server: it is shown once and stored nowhere.
    """
    check_client_name(client)
    made = ServerDir.create(folder, Endpoint.parse(public_address), Endpoint.parse(target))
    config = shlex.quote(str(Path(folder) / CONFIG))
    click.echo(f"made {click.format_filename(folder)}; start the server with", err=True)
    click.echo(f"    fastmtcp-server --config {config}", err=True)
    show_link(made.add_client(client))


def show_link(link: Link) -> None:
    """Print a new link, and what its client does with it."""
    click.echo(
        f"on the client {link.name}, paste the link below into a file of mode 0600:", err=True
    )
    click.echo(f"    (umask 077; cat > {LINK_FILE})        # paste, Enter, Ctrl-D", err=True)
    click.echo(f"    fastmtcp-client --link-file {LINK_FILE}", err=True)
    click.echo(link.text())
