"""The program `fastmtcp-client`: its files, its ports, and the service of each worker."""

from __future__ import annotations

from fastmtcp.client.service import ClientService
from fastmtcp.config import credentials
from fastmtcp.config.client import ClientConfig
from fastmtcp.config.ingress import UnixPath
from fastmtcp.config.limits import within
from fastmtcp.io import cgroup
from fastmtcp.io.file_watch import FileWatch
from fastmtcp.io.loop import Loop
from fastmtcp.proxy import login
from fastmtcp.workers.channel import Channel, PoolState, Sessions
from fastmtcp.workers.start import prepare
from fastmtcp.workers.supervisor import Supervisor


def run_client(config: ClientConfig) -> int:
    """Run until it is stopped; returns the exit code.

    Raises:
        FastmtcpError: it cannot start.
    """
    # A bad file is wrong usage, and is told before anything has been started.
    config, own = credentials.of_client(config)
    proxy_login = login.load(config.proxy_login_file) if config.proxy_login_file else None
    # Ports has the unix sockets last.
    ways = sorted(config.ways_in, key=lambda way: isinstance(way.place, UnixPath))
    ports = prepare(config, [way.place for way in ways])
    workers = config.worker_count()
    limits = within(config.session_limits(), cgroup.memory_limit(), workers)

    def make(index: int, loop: Loop, channel: Channel) -> ClientService:
        def on_pool(up: int, wanted: int, trouble: str) -> None:
            channel.send(PoolState(up, wanted, trouble))

        sockets = zip(ports.owners, ports.of(index), strict=True)
        ways_in = [(ways[owner], sock) for owner, sock in sockets]
        service = ClientService(loop, config, own, ways_in, on_pool, limits, proxy_login, workers)
        service.on_sessions = lambda sessions: channel.send(Sessions(sessions))
        channel.on_left = service.end_left
        if own.tls is not None and own.tls.files:
            FileWatch(loop, own.tls.files, own.tls.again, service.set_certificates)
        return service

    return Supervisor("client", config, ports, make, waits_for_subflows=True).run()
