"""An SSH tunnel: a local port whose connections come out at the server's target.

    python examples/ssh_tunnel.py --server vps.example.com:7700 --key-file fastmtcp.key 2222
    ssh -p 2222 -o HostKeyAlias=vps.example.com you@127.0.0.1

`fastmtcp-client` does this better; here it is in a few lines, to show how sockets are joined.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import threading

import fastmtcp


def copy(source: socket.socket, sink: socket.socket) -> None:
    """Bytes, then the half-close. A reset of one end breaks the other."""
    block = memoryview(bytearray(1 << 18))
    with contextlib.suppress(ConnectionError):
        while count := source.recv_into(block):
            sink.sendall(block[:count])
        sink.shutdown(socket.SHUT_WR)


def serve(client: fastmtcp.Client, local: socket.socket) -> None:
    with local, client.connect() as far:
        back = threading.Thread(target=copy, args=(far, local))
        back.start()
        copy(local, far)
        back.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--server", required=True, action="append")
    parser.add_argument("--key-file")
    given = parser.parse_args()
    with (
        fastmtcp.Client(given.server, key_file=given.key_file) as client,
        socket.create_server(("127.0.0.1", given.port)) as listener,
    ):
        print("listening on", listener.getsockname(), flush=True)
        while True:
            local, _ = listener.accept()
            threading.Thread(target=serve, args=(client, local), daemon=True).start()


if __name__ == "__main__":
    main()
