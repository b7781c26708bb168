"""Fixtures for tests of the library: servers in this process, and a count of what is left."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator

import fastmtcp
import pytest

from tests.library.echo import echo, serve
from tests.process.programs import eventually

KEY = bytes(range(32))


def open_files() -> set[str]:
    """What the descriptors of this process are; the one that lists them not counted."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except OSError:
            continue
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Whatever a test does, afterwards there are the threads and descriptors of before."""
    gc.collect()
    threads = set(threading.enumerate())
    files = open_files()
    yield
    gc.collect()
    eventually(lambda: set(threading.enumerate()) <= threads, "the threads end")
    eventually(lambda: open_files() <= files, "the descriptors are closed")


@pytest.fixture
def server() -> Iterator[fastmtcp.Server]:
    """A Server of which the test accepts."""
    with fastmtcp.Server("127.0.0.1:0", key=KEY) as server:
        yield server


@pytest.fixture
def echo_server() -> Iterator[fastmtcp.Server]:
    """A Server that sends everything back."""
    with fastmtcp.Server("127.0.0.1:0", key=KEY) as server, serve(server, echo):
        yield server


@pytest.fixture
def client(server: fastmtcp.Server) -> Iterator[fastmtcp.Client]:
    with fastmtcp.Client(server.addresses, key=KEY, connections=2) as client:
        yield client


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs(server: fastmtcp.Server, client: fastmtcp.Client) -> Iterator[Callable[[], Pair]]:
    """Makes joined sockets, the library at both ends: one that connected, one that accepted."""
    made: list[socket.socket] = []

    def make() -> Pair:
        near = client.connect(timeout=30)
        far, _ = server.accept(timeout=30)
        far.settimeout(30)
        made.extend((near, far))
        return near, far

    yield make
    for sock in made:
        sock.close()
