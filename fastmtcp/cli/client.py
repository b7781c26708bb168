"""The command `fastmtcp-client`."""

from __future__ import annotations

from collections.abc import Sequence

from fastmtcp.cli.options import run, settings_command
from fastmtcp.config.client import ClientConfig


def _serve(config: ClientConfig) -> int:
    from fastmtcp.client.program import run_client

    return run_client(config)


command = settings_command(
    ClientConfig,
    _serve,
    help="Accept connections of applications and carry each one's bytes over many TCP connections "
    "to fastmtcp-server.",
    epilog="""\b
Examples:
  fastmtcp-client
  fastmtcp-client --server example.com:7700 --connections 2-32 --key-file fastmtcp.key
  fastmtcp-client --server example.com:7700 --proxy 127.0.0.1:1080 --forward 2222:10.1.0.5:22
  fastmtcp-client --listen '[::1]:7701' --server '[2001:db8::1]:7700' --workers 2""",
)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(command, args)


if __name__ == "__main__":
    raise SystemExit(main())
