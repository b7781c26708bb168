"""TLS on top: what travels on the connections is encrypted, whatever is between the two ends.

python examples/tls.py serve 127.0.0.1:7700 certificate.pem key.pem
python examples/tls.py ask 127.0.0.1:7700 host.example ca.pem "hello there"
"""

from __future__ import annotations

import socket
import ssl
import sys

import fastmtcp


def serve(listen: str, certificate: str, key: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    def answer(sock: socket.socket, _address: tuple[str, int]) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            tls.sendall(tls.recv(1 << 16).upper())

    with fastmtcp.Server(listen) as server:
        print("listening on", *server.addresses, flush=True)
        server.serve_forever(answer)


def ask(server: str, name: str, authority: str, text: str) -> None:
    context = ssl.create_default_context(cafile=authority)
    with (
        fastmtcp.create_connection(None, timeout=30, server=server) as sock,
        context.wrap_socket(sock, server_hostname=name) as tls,
    ):
        tls.sendall(text.encode())
        print(tls.version(), tls.recv(1 << 16).decode())


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "serve":
        serve(*arguments)
    else:
        ask(*arguments)
