"""What a program does before its first worker is there."""

from __future__ import annotations

import codecs
import contextlib
import resource
import sys
from collections.abc import Callable, Sequence

from fastmtcp.config.common import Config
from fastmtcp.config.ingress import Place
from fastmtcp.errors import StartError
from fastmtcp.io import signals
from fastmtcp.workers import privileges
from fastmtcp.workers.ports import Ports

_CODECS = ("ascii", "idna", "latin-1", "punycode", "utf-8")
"""Of names, passwords and texts of others. The one of names belongs to getaddrinfo()."""


def prepare(
    config: Config, places: Sequence[Place], check: Callable[[], None] | None = None
) -> Ports:
    """Do what may need root, give it up if there is a user to become, and then `check` that nothing
    that is needed later needs root. Signals that end the process are held back from here on: the
    Supervisor hears them.

    Raises:
        FastmtcpError: it cannot be done; nothing is left behind.
    """
    if sys.platform != "linux":
        raise StartError("the commands need Linux (epoll, pidfd)")
    account = privileges.find(config.user) if config.user is not None else None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signals.hold_back()
    try:
        return _bind(config, places, account, check)
    except BaseException:
        signals.let_through()
        raise


def _bind(
    config: Config,
    places: Sequence[Place],
    account: privileges.Account | None,
    check: Callable[[], None] | None,
) -> Ports:
    ports = Ports(places, config.worker_count())
    try:
        _load_codecs()
        if account is not None:
            privileges.drop(account)
        if check is not None:
            check()
        ports.bind_files(for_group=account is not None and account.has_group)
    except BaseException:
        ports.close()
        raise
    return ports


def _load_codecs() -> None:
    """Python imports them when they are first needed, and the user that the program becomes may not
    be able to read their files."""
    for name in _CODECS:
        codecs.lookup(name)
