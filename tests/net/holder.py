"""Keeps a network namespace alive, and makes sockets in it for the test. Run as a program.

Standard input is a unix socket: for each byte that comes, an address family, an unconnected TCP
socket goes back (SCM_RIGHTS). It stays in this namespace whoever uses it. Ends with its input.
"""

import socket


def main() -> None:
    control = socket.socket(fileno=0)
    control.sendall(b".")
    while family := control.recv(1):
        with socket.socket(socket.AddressFamily(family[0]), socket.SOCK_STREAM) as sock:
            socket.send_fds(control, [b"."], [sock.fileno()])


if __name__ == "__main__":
    main()
