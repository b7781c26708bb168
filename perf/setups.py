"""How fastmtcp is set up for a benchmark: the commands of a server and of its client.

Plain has no TLS, one worker a side and as many connections as the benchmark says, so that it is
known what is measured. The quick start's set-up is what users have: `fastmtcp init server`, a link,
TLS, and workers and connections as many as the programs find right. All benchmarks take the two
from here.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fastmtcp.endpoint import Endpoint

from perf.processes import BenchmarkError

PLAIN = "plain"
TLS = "tls"
"""Plain, but for the link and its TLS."""

QUICK_START = "quick-start"
SETUPS = (PLAIN, TLS, QUICK_START)

# A benchmark has nothing to wait for at its end.
_DRAIN = ("--drain-timeout", "1")


class Commands(NamedTuple):
    """How fastmtcp's three commands are called."""

    main: tuple[str, ...] = (sys.executable, "-m", "fastmtcp.cli.main")
    server: tuple[str, ...] = (sys.executable, "-m", "fastmtcp.cli.server")
    client: tuple[str, ...] = (sys.executable, "-m", "fastmtcp.cli.client")


OURS = Commands()
"""Those of the fastmtcp that the benchmark itself uses."""


class Setup:
    """A server at `listen` that forwards to `target`, and its clients; see set_up()."""

    def __init__(
        self, kind: str, listen: Endpoint, target: Endpoint, folder: Path, commands: Commands
    ) -> None:
        """Made by the commands alone: those of another version may be measured."""
        self.kind = kind
        self._commands = commands
        self._listen = listen
        self.credentials: tuple[str, ...] = ()
        """Options by which a client is let in."""
        if kind == PLAIN:
            if not listen.is_loopback:
                key = str(folder / "fastmtcp.key")
                self._run("keygen", key)
                self.credentials = ("--key-file", key)
            where = ("--listen", str(listen), "--target", str(target), *self.credentials)
        else:
            made, link = folder / "server", folder / "fastmtcp.link"
            to = ("--public-address", str(listen), "--target", str(target))
            link.touch(mode=0o600)
            link.write_text(self._run("init", "server", "--dir", str(made), *to))
            self.credentials = ("--link-file", str(link))
            where = ("--listen", str(listen), "--config", str(made / "server.toml"))
        self.server = [*commands.server, *_DRAIN, *self._workers(), *where]

    def _run(self, *words: str) -> str:
        """What `fastmtcp WORDS...` prints."""
        done = subprocess.run([*self._commands.main, *words], capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkError(f"fastmtcp {words[0]}: {done.stderr.strip()}")
        return done.stdout

    def client(self, entry: Endpoint, connections: int, paths: Sequence[str] = ()) -> list[str]:
        """A client that listens at `entry`. `paths` lead to the server, straight if there are
        none; each has so many `connections`, or those it finds right in a quick start."""
        command = [*self._commands.client, *_DRAIN, *self._workers()]
        command += ["--listen", str(entry), *self.credentials]
        if self.kind == PLAIN:
            paths = paths or (str(self._listen),)
        if self.kind != QUICK_START:
            command += ["--connections", str(connections)]
        return [*command, *(word for path in paths for word in ("--server", path))]

    def _workers(self) -> tuple[str, ...]:
        return () if self.kind == QUICK_START else ("--workers", "1")


@contextlib.contextmanager
def set_up(
    kind: str, listen: Endpoint, target: Endpoint, commands: Commands = OURS
) -> Iterator[Setup]:
    """A Setup of this kind, whose files are there for the time of the `with` block."""
    with tempfile.TemporaryDirectory() as folder:
        yield Setup(kind, listen, target, Path(folder), commands)
