"""Applications that wait: for the limits of a server, or for the one that replaces it."""

from __future__ import annotations

import signal
import socket

from tests.io.net import WAIT, free_port, read_all, read_exactly
from tests.process.programs import IN_BOTH_SETUPS, Programs
from tests.process.targets import Target

COUNT = 60


def begin(address: tuple[str, int]) -> socket.socket:
    """An application that says something, and that this is all."""
    sock = socket.create_connection(address, WAIT)
    sock.sendall(b"are you there?")
    sock.shutdown(socket.SHUT_WR)
    return sock


@IN_BOTH_SETUPS
def test_who_connects_while_the_server_ends_is_served_by_the_next(
    programs: Programs, echo_target: Target[int]
) -> None:
    port = free_port()
    workers = programs.fixed("--workers", 2)
    first = programs.server(echo_target.port, *workers, port=port)
    client = programs.client(first, *workers)
    with client.connect() as held:
        held.sendall(b"held")
        assert read_exactly(held, 4) == b"held"
        first.signal(signal.SIGTERM)
        # From before the client has heard of it until long after that.
        waiting = [begin(client.address) for _ in range(COUNT)]
        client.wait_for("new streams wait for another")
        waiting += [begin(client.address) for _ in range(COUNT)]
        held.sendall(b"still")
        assert read_exactly(held, 5) == b"still"
    first.wait()
    programs.server(echo_target.port, *workers, port=port)
    for sock in waiting:
        with sock:
            assert read_all(sock) == b"are you there?"


def test_more_than_the_server_lets_be_opened_wait_for_their_turns(
    programs: Programs, echo_target: Target[int]
) -> None:
    limits = programs.folder / "few.toml"
    limits.write_text("[limits]\nmax_streams = 8\nmax_client_streams = 8\nopens_per_second = 40\n")
    server = programs.server(echo_target.port, "--workers", 1, "--config", limits)
    client = programs.client(server, "--workers", 2)
    waiting = [begin(client.address) for _ in range(COUNT)]
    for sock in waiting:
        with sock:
            assert read_all(sock) == b"are you there?"
    assert "opens_per_second" not in server.log
    assert "max_streams" not in server.log
