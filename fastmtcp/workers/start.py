"""What a program does before its first worker is there."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Sequence

from fastmtcp.config.common import Config
from fastmtcp.config.ingress import Place
from fastmtcp.errors import StartError
from fastmtcp.workers import privileges
from fastmtcp.workers.ports import Ports


def prepare(config: Config, places: Sequence[Place]) -> Ports:
    """Do what may need root, and give it up if there is a user to become."""
    if sys.platform != "linux":
        raise StartError("the commands need Linux (epoll, pidfd)")
    account = privileges.find(config.user) if config.user is not None else None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ports = Ports(places, config.worker_count())
    if account is not None:
        privileges.drop(account)
    return ports
