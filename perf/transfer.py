"""Applications for the benchmarks: each handles one job and prints what it saw as JSON.

python -m perf.transfer ROLE (--listen|--connect) HOST:PORT ...
ROLE is send, receive, echo, ask, ask-library, serve, bulk or ping.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import fastmtcp
from fastmtcp.endpoint import Endpoint

from perf.command import start

CHUNK = 256 * 1024
STALL = 60.0
_FEWEST = 2
"""Connections that a client begins with if it is not told how many."""
ECHO, SEND, TAKE = b"e", b"d", b"u"
"""The first byte of a connection to `serve`."""

PERIOD = 4_000_037
"""After so many bytes the content comes again. A prime: no chunk of a forwarder's falls on the same
bytes again soon."""


@click.group()
def transfer() -> None:
    """One end of a transfer."""


def _ends(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--listen", type=Endpoint.parse)(function)
    return click.option("--connect", type=Endpoint.parse)(function)


@contextlib.contextmanager
def _listening(where: Endpoint) -> Iterator[socket.socket]:
    with socket.create_server((where.host, where.port), backlog=128) as listener:
        print("ready", file=sys.stderr, flush=True)
        yield listener


@contextlib.contextmanager
def _connected(listen: Endpoint | None, connect: Endpoint | None) -> Iterator[socket.socket]:
    if connect is not None:
        sock = socket.create_connection((connect.host, connect.port), STALL)
    elif listen is not None:
        with _listening(listen) as listener:
            sock, _ = listener.accept()
    else:
        raise click.UsageError("give --listen or --connect")
    sock.settimeout(STALL)
    with sock:
        yield sock


def _print(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


@transfer.command()
@_ends
@click.option("--size", type=int, required=True)
def send(listen: Endpoint | None, connect: Endpoint | None, size: int) -> None:
    """Send SIZE bytes and FIN, and wait for the other end's FIN."""
    data = random.Random(PERIOD).randbytes(PERIOD)
    view = memoryview(data + data[:CHUNK])
    digest = hashlib.sha256()
    with _connected(listen, connect) as sock:
        sent = 0
        while sent < size:
            offset = sent % PERIOD
            count = sock.send(view[offset : offset + min(CHUNK, size - sent)])
            digest.update(view[offset : offset + count])
            sent += count
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
    _print(bytes=sent, sha256=digest.hexdigest())


@transfer.command()
@_ends
@click.option("--stop-after", type=int, help="Stop reading there until a line comes on stdin.")
def receive(listen: Endpoint | None, connect: Endpoint | None, stop_after: int | None) -> None:
    """Read to the FIN, and note the longest pauses between two reads, up to that FIN."""
    buffer = memoryview(bytearray(CHUNK))
    digest = hashlib.sha256()
    pauses: list[tuple[float, float]] = []
    total, first, last = 0, 0.0, 0.0
    with _connected(listen, connect) as sock:
        while True:
            count = sock.recv_into(buffer)
            now = time.monotonic()
            if not total:
                first = last = now
            pauses.append((now - last, last - first))
            if len(pauses) > 1000:
                pauses = sorted(pauses, reverse=True)[:5]
            last = now
            if not count:
                break
            digest.update(buffer[:count])
            total += count
            if stop_after is not None and total >= stop_after:
                stop_after = None
                print("stopped", file=sys.stderr, flush=True)
                sys.stdin.readline()
                last = time.monotonic()
    _print(
        bytes=total,
        sha256=digest.hexdigest(),
        seconds=last - first,
        # Seconds, and when after the first byte.
        pauses=sorted(pauses, reverse=True)[:5],
    )


@transfer.command()
@click.option("--listen", type=Endpoint.parse, required=True)
def echo(listen: Endpoint) -> None:
    """Answer each connection's first bytes with one byte, until SIGTERM."""
    with _listening(listen) as listener:
        while True:
            sock, _ = listener.accept()
            with sock:
                if sock.recv(100):
                    sock.sendall(b"!")


@transfer.command()
@click.option("--listen", type=Endpoint.parse, required=True)
def serve(listen: Endpoint) -> None:
    """Do on each connection what its first byte says, until SIGTERM: `e` echoes, `d` sends
    without end, `u` takes without end."""
    with _listening(listen) as listener:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=_serve, args=(sock,), daemon=True).start()


def _serve(sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        kind = sock.recv(1)
        if kind == ECHO:
            while said := sock.recv(1000):
                sock.sendall(said)
        elif kind == SEND:
            _flood(sock)
        elif kind == TAKE:
            _drain(sock)


def _flood(sock: socket.socket) -> None:
    while True:
        sock.sendall(bytes(CHUNK))


def _drain(sock: socket.socket) -> None:
    buffer = bytearray(CHUNK)
    while sock.recv_into(buffer):
        pass


@transfer.command()
@click.option("--connect", type=Endpoint.parse, required=True)
@click.option("--direction", type=click.Choice(["up", "down"]), required=True)
def bulk(connect: Endpoint, direction: str) -> None:
    """Keep a connection to `serve` full, until SIGTERM."""
    with socket.create_connection((connect.host, connect.port), STALL) as sock:
        sock.sendall(TAKE if direction == "up" else SEND)
        (_flood if direction == "up" else _drain)(sock)


@transfer.command()
@click.option("--connect", type=Endpoint.parse, required=True)
@click.option("--count", type=int, required=True)
@click.option("--every", type=float, default=0.02, help="Seconds between two questions.")
def ping(connect: Endpoint, count: int, every: float) -> None:
    """Time COUNT questions of 64 bytes to `serve` and their answers, on one connection."""
    times = []
    with socket.create_connection((connect.host, connect.port), STALL) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(ECHO)
        for _ in range(count):
            begin = time.monotonic()
            sock.sendall(bytes(64))
            left = 64
            while left:
                left -= len(sock.recv(left)) or sys.exit("the connection ended")
            times.append(time.monotonic() - begin)
            time.sleep(every)
    _print(times=times)


@transfer.command()
@click.option("--connect", type=Endpoint.parse, required=True)
@click.option("--count", type=int, required=True)
def ask(connect: Endpoint, count: int) -> None:
    """Time COUNT new connections from connect() to the first byte of the answer."""
    _time_answers(lambda: socket.create_connection((connect.host, connect.port), STALL), count)


@transfer.command("ask-library")
@click.option("--connect", type=Endpoint.parse, required=True)
@click.option("--key-file")
@click.option("--link-file")
@click.option("--connections", type=int)
@click.option("--count", type=int, required=True)
@click.option("--wait/--no-wait", default=True)
def ask_library(
    connect: Endpoint,
    key_file: str | None,
    link_file: str | None,
    connections: int | None,
    count: int,
    wait: bool,
) -> None:
    """The same through a fastmtcp.Client whose pool is up."""
    address = (connect.host, connect.port)
    with fastmtcp.Client(
        address, key_file=key_file, link_file=link_file, connections=connections
    ) as client:
        least = connections or _FEWEST
        while sum(len(one.subflows) for one in client.status().sessions) <= least:
            time.sleep(0.05)  # the express subflow is one more
        _time_answers(lambda: client.connect(timeout=STALL, wait=wait), count)


def _time_answers(connect: Callable[[], socket.socket], count: int) -> None:
    times = []
    for _ in range(count):
        begin = time.monotonic()
        with connect() as sock:
            sock.sendall(b"?")
            if sock.recv(1) != b"!":
                raise click.ClickException("the connection ended without an answer")
            times.append(time.monotonic() - begin)
    _print(times=times)


if __name__ == "__main__":
    start(transfer)
