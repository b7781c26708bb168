"""Copy a file to another machine and show the progress.

python examples/copy_file.py receive 127.0.0.1:7700 folder
python examples/copy_file.py send 127.0.0.1:7700 big.tar
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from pathlib import Path

import fastmtcp

HEAD = struct.Struct("!QH")  # size of the file, length of its name


def receive(listen: str, folder: str) -> None:
    def store(sock: socket.socket, address: tuple[str, int]) -> None:
        with sock.makefile("rb") as stream:
            size, length = HEAD.unpack(stream.read(HEAD.size))
            name = Path(os.fsdecode(stream.read(length))).name  # never a path
            with open(Path(folder) / name, "wb") as file:
                while block := stream.read(1 << 18):
                    file.write(block)
                complete = file.tell() == size
        sock.sendall(b"complete" if complete else b"cut short")
        print(name, "from", address[0], "complete" if complete else "cut short", flush=True)

    with fastmtcp.Server(listen) as server:
        print("listening on", *server.addresses, flush=True)
        server.serve_forever(store)


def send(server: str, path: str) -> None:
    name = os.fsencode(Path(path).name)
    size = os.path.getsize(path)
    with fastmtcp.create_connection(None, server=server) as sock, open(path, "rb") as file:
        sock.sendall(HEAD.pack(size, len(name)) + name)
        sent = 0
        while count := sock.sendfile(file, sent, 1 << 22):
            sent += count
            rates = fastmtcp.info(sock).session.totals
            print(f"\r{sent / size:4.0%} {rates.rate_up / 1e6:6.1f} MB/s", end="", flush=True)
        sock.shutdown(socket.SHUT_WR)
        print("\r", sock.recv(100).decode(), "              ")


if __name__ == "__main__":
    what, where, name = sys.argv[1:]
    {"receive": receive, "send": send}[what](where, name)
