"""The command `fastmtcp`: all that is neither the server nor the client."""

from __future__ import annotations

import importlib
import platform
import shlex
from collections.abc import Sequence
from typing import NamedTuple

import click

from fastmtcp._version import __version__
from fastmtcp.cli.options import EXIT_CODES, run, version_option


class _Lazy(NamedTuple):
    module: str
    attribute: str
    summary: str


# Known by their summary here, so that `fastmtcp --help` imports none of them.
_LAZY = {
    "client": _Lazy(
        "fastmtcp.cli.clients", "client", "Say who may connect to a server: add, list, revoke."
    ),
    "connect": _Lazy(
        "fastmtcp.cli.connect", "connect", "Join standard input and output with a stream."
    ),
    "demo": _Lazy(
        "fastmtcp.cli.demo", "demo", "Show on this machine what N connections bring over one."
    ),
    "init": _Lazy("fastmtcp.cli.init", "init", "Set up a server with its first client."),
    "status": _Lazy(
        "fastmtcp.cli.status", "status", "Show what running servers and clients are doing."
    ),
    "throttle": _Lazy(
        "fastmtcp.cli.throttle", "throttle", "Relay TCP with a rate limit for each connection."
    ),
}


class LazyGroup(click.Group):
    """A group that imports some of its commands only when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_LAZY})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _LAZY:
            return super().get_command(ctx, cmd_name)
        lazy = _LAZY[cmd_name]
        found = getattr(importlib.import_module(lazy.module), lazy.attribute)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        summaries = {name: lazy.summary for name, lazy in _LAZY.items()}
        for name, command in self.commands.items():
            summaries[name] = command.get_short_help_str(limit=80)
        with formatter.section("Commands"):
            formatter.write_dl(sorted(summaries.items()))


@click.group(
    "fastmtcp",
    cls=LazyGroup,
    invoke_without_command=True,
    no_args_is_help=False,
    help="Tools for fastmtcp, which makes one TCP stream as fast as N connections. The forwarder "
    "itself is fastmtcp-server and fastmtcp-client.",
    epilog=EXIT_CODES,
    context_settings={"max_content_width": 100},
)
@click.pass_context
def _group(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        names = ", ".join(_group.list_commands(ctx))
        raise click.UsageError(f"a command is missing: {names}", ctx)


group = version_option(_group)


@_group.command(help="Make a new key in FILE, which must not exist, for --key-file on both sides.")
@click.argument("file")
def keygen(file: str) -> None:
    from fastmtcp.security import keys

    keys.generate(file)
    click.echo(
        f"wrote a new key to {click.format_filename(file)}; copy it to the other side by a safe "
        f"way and start both with --key-file {shlex.quote(file)}"
    )


@_group.command(help="Print the versions of fastmtcp, Python and the system.")
def version() -> None:
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    click.echo(f"fastmtcp {__version__} (Python {platform.python_version()}, {system})")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(group, args)


if __name__ == "__main__":
    raise SystemExit(main())
