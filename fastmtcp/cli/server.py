"""The command `fastmtcp-server`."""

from __future__ import annotations

from collections.abc import Sequence

from fastmtcp.cli.options import run, settings_command
from fastmtcp.config.server import ServerConfig


def _serve(config: ServerConfig) -> int:
    from fastmtcp.server.program import run_server

    return run_server(config)


command = settings_command(
    ServerConfig,
    _serve,
    help="Accept the connections of fastmtcp-client, put each stream together again and forward "
    "it to the target.",
    epilog="""\b
Examples:
  fastmtcp-server
  fastmtcp-server --listen '*:7700' --target 127.0.0.1:22 --key-file fastmtcp.key
  fastmtcp-server --listen '*:7700' --allow '*:443' --allow 10.1.0.0/16:22 --key-file fastmtcp.key
  fastmtcp-server --listen '[::1]:7700' --listen 127.0.0.1:7700 --workers 4""",
)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(command, args)


if __name__ == "__main__":
    raise SystemExit(main())
