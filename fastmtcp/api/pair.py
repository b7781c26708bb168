"""Two joined sockets: one for the user of the library, one for a relay.

They are a TCP connection over loopback, and no unix socket pair: programs set TCP_NODELAY on what
they take for a TCP socket and do not forgive EOPNOTSUPP, and a reset, a half-close and a close with
unread data then are those of TCP.
"""

from __future__ import annotations

import socket

from fastmtcp.io.tcp import read_urgent_in_line, tune

_HOST = "127.0.0.1"


def make_pair() -> tuple[socket.socket, socket.socket]:
    """The user's end, blocking, and the relay's, non-blocking. Takes some 100 us.

    Raises:
        OSError: no descriptors are left, or no loopback interface is up.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        # Ports of closed pairs that are still in TIME_WAIT may be used.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, 0))
        read_urgent_in_line(listener)
        listener.listen(8)
        outer = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            outer.settimeout(None)
            outer.connect(listener.getsockname())
            inner = _accept(listener, outer)
        except BaseException:
            outer.close()
            raise
    tune(outer)
    inner.setblocking(False)
    return outer, inner


def _accept(listener: socket.socket, outer: socket.socket) -> socket.socket:
    """The other end of `outer`, and of nothing else: any process on this machine may connect."""
    listener.settimeout(None)
    wanted = outer.getsockname()
    while True:
        sock, peer = listener.accept()
        if peer == wanted:
            return sock
        sock.close()
