"""Many connections to a server that do not prove anything.

python -m perf.unauthenticated --connect HOST:PORT --kind silent --count 10000
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import ssl
import sys
import time

import click
from fastmtcp.endpoint import Endpoint
from fastmtcp.security.handshake import NEW_SESSION, Preamble
from fastmtcp.security.tls import Tls

from perf.command import start

KINDS = ("silent", "garbage", "preamble", "half-tls")
"""Nothing; 300 random bytes; a right beginning and no more; the same with a ClientHello."""


def content(kind: str) -> bytes:
    """What one says."""
    if kind == "silent":
        return b""
    if kind == "garbage":
        return os.urandom(300)
    if kind == "preamble":
        return Preamble(False, NEW_SESSION).encode()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, hello = Tls(context).feed(b"")
    return Preamble(True, NEW_SESSION).encode() + hello


@click.command("unauthenticated")
@click.option("--connect", "where", type=Endpoint.parse, required=True)
@click.option("--kind", type=click.Choice(KINDS), required=True)
@click.option("--count", type=int, required=True)
@click.option("--at-once", default=1000, show_default=True, help="Open at the same time.")
@click.option("--rate", default=1000, show_default=True, help="New ones a second, at most.")
@click.option("--sources", default=1, show_default=True, help="Addresses of 127/8 to come from.")
def unauthenticated(
    where: Endpoint, kind: str, count: int, at_once: int, rate: int, sources: int
) -> None:
    """Make connections; each stays until the server closes it or, if too many are open, until it
    is the oldest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    said = content(kind)
    poll = select.epoll()
    alive: dict[int, socket.socket] = {}
    closed = made = 0
    begin = time.monotonic()

    def forget(fd: int) -> None:
        poll.unregister(fd)
        alive.pop(fd).close()

    print("ready", file=sys.stderr, flush=True)
    while made < count:
        due = min(count, int((time.monotonic() - begin) * rate) + 1)
        while made < due:
            sock = socket.socket()
            sock.setblocking(False)
            number = made % sources
            sock.bind((f"127.{1 + number // 65025}.{number // 255 % 255}.{1 + number % 255}", 0))
            sock.connect_ex((where.host, where.port))
            poll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
            alive[sock.fileno()] = sock
            made += 1
            if len(alive) > at_once:
                forget(next(iter(alive)))
        for fd, mask in poll.poll(0.01, 4096):
            if mask & select.EPOLLOUT and not mask & (select.EPOLLIN | select.EPOLLHUP):
                with contextlib.suppress(OSError):
                    alive[fd].send(said)
            else:
                with contextlib.suppress(OSError):
                    if alive[fd].recv(4096):
                        continue
                forget(fd)
                closed += 1
    print(f"{made} made in {time.monotonic() - begin:.1f} s, {closed} closed by the server")


if __name__ == "__main__":
    start(unauthenticated)
