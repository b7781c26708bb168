"""The program `fastmtcp-server`: its files, its ports, and the service of each worker."""

from __future__ import annotations

import os
from functools import partial

from fastmtcp.config import credentials
from fastmtcp.config.limits import within
from fastmtcp.config.server import ServerConfig
from fastmtcp.errors import ConfigError, StartError
from fastmtcp.io import cgroup
from fastmtcp.io.file_watch import FileWatch
from fastmtcp.io.loop import Loop
from fastmtcp.server.service import ServerService
from fastmtcp.workers.channel import Channel
from fastmtcp.workers.handoff import Inbox, WorkerHandoff
from fastmtcp.workers.start import prepare
from fastmtcp.workers.supervisor import Supervisor


def run_server(config: ServerConfig) -> int:
    """Run until it is stopped; returns the exit code.

    Raises:
        FastmtcpError: it cannot start.
    """
    # A bad file is wrong usage, and is told before anything has been started.
    clients, certificates = credentials.of_server(config)
    ports = prepare(config, config.listen, partial(_check_files, config))
    limits = within(config.session_limits(), cgroup.memory_limit(), config.worker_count())
    inboxes = [Inbox() for _ in range(config.worker_count())]

    def make(index: int, loop: Loop, _channel: Channel) -> ServerService:
        handoff = WorkerHandoff(loop, inboxes, index)
        current = clients
        if config.clients_file is not None:
            current = credentials.read_clients_again(config)
        service = ServerService(
            loop, config, current, index, ports.of(index), handoff, limits, certificates
        )
        handoff.on_handoff = service.reception.on_handoff
        _watch_files(loop, config, service)
        return service

    clients_file = os.path.realpath(config.clients_file) if config.clients_file else ""
    return Supervisor("server", config, ports, make, clients_file=clients_file).run()


def _check_files(config: ServerConfig) -> None:
    """As the user that the program has become: what it cannot read again would let in those that
    are revoked. Raises StartError."""
    if config.user is None or config.clients_file is None:
        return
    try:
        credentials.read_clients(config)
    except ConfigError as error:
        raise StartError(
            f"{error} (as user {config.user}, and nobody could be revoked; make it that user's)"
        ) from None


def _watch_files(loop: Loop, config: ServerConfig, service: ServerService) -> None:
    """Let the service know when the list of clients or the certificate has changed."""
    if config.clients_file is not None:
        read = partial(credentials.read_clients, config)
        FileWatch(loop, [config.clients_file], read, service.set_clients)
    if config.tls:
        names = [config.certificate, config.certificate_key, config.client_ca_file]
        FileWatch(
            loop,
            [name for name in names if name is not None],
            partial(credentials.read_certificate, config),
            service.set_certificates,
        )
