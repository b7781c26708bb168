"""One end of a stream for library.py: `python -m perf.library_end tcp|library HOST:PORT`.

Serves connections at HOST:PORT, plain ones or as a fastmtcp.Server. The first byte of each says
what the other end wants: `u` sends and is told how much arrived, `d` receives for as many seconds
as the second byte says, `e` has every byte sent back.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time

import fastmtcp
from fastmtcp.endpoint import Endpoint

BLOCK = 1 << 18


def serve(sock: socket.socket, _address: object = None) -> None:
    with sock, contextlib.suppress(ConnectionError):
        match sock.recv(1):
            case b"u":
                sock.sendall(receive(sock).to_bytes(8, "big"))
            case b"d":
                send(sock, sock.recv(1)[0])
            case b"e":
                while part := sock.recv(BLOCK):
                    sock.sendall(part)


def send(sock: socket.socket, seconds: float) -> None:
    """As much as goes in this time, and the end."""
    block = bytes(BLOCK)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)


def receive(sock: socket.socket) -> int:
    """Up to the end; how many bytes came."""
    space = bytearray(BLOCK)
    count = 0
    while got := sock.recv_into(space):
        count += got
    return count


def main(kind: str, where: str) -> None:
    endpoint = Endpoint.parse(where)
    address = (endpoint.host, endpoint.port)
    if kind == "library":
        with fastmtcp.Server(address, backlog=2048) as server:
            print("ready", file=sys.stderr, flush=True)
            server.serve_forever(serve)
    with socket.create_server(address, backlog=2048) as listener:
        print("ready", file=sys.stderr, flush=True)
        while True:
            threading.Thread(target=serve, args=listener.accept(), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
