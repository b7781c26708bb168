"""Socket options (tcp(7)) and the ends of connections. What a system lacks is left out."""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import struct
import sys
import termios

_LINUX = sys.platform == "linux"
_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", 18)
_CONGESTION = getattr(socket, "TCP_CONGESTION", 13)

_KEEPIDLE = getattr(socket, "TCP_KEEPIDLE", 0x10)
"""As TCP_KEEPALIVE of macOS, which Python has only lately."""
_KEEPINTVL = socket.TCP_KEEPINTVL
_KEEPCNT = socket.TCP_KEEPCNT
_PROBES = 4

_RTO_MAX = 44
"""TCP_RTO_MAX_MS, since Linux 6.15."""
_ABORT = struct.pack("ii", 1, 0)
_LINGER_OFF = struct.pack("ii", 0, 0)


def local_address(sock: socket.socket) -> str:
    """The IP address of its end on this machine, without a zone; empty if it has none."""
    try:
        return str(sock.getsockname()[0]).partition("%")[0]
    except OSError:
        return ""


def remote_address(sock: socket.socket) -> str:
    """The IP address of its other end, without a zone; empty if it has none."""
    try:
        return str(sock.getpeername()[0]).partition("%")[0]
    except OSError:
        return ""


def tune(sock: socket.socket) -> None:
    """Small frames leave at once. Buffer sizes stay untouched: setting one turns the kernel's
    auto-tuning off."""
    # EINVAL on macOS for a connection that is reset already; a unix socket has no such option.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def read_urgent_in_line(sock: socket.socket) -> None:
    """A byte that was sent as urgent data is read like any other, in its place, as RFC 6093 wants:
    else recv() skips it. What a listening TCP socket accepts has that from it."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def keep_alive(sock: socket.socket, idle: int) -> None:
    """Ask the peer's kernel whether it is there when nothing has come for `idle` seconds, and again
    four times in as many seconds; without an answer the connection fails. One that has forgotten
    the connection answers with an RST. 0 is off."""
    if not idle:
        return
    interval = max(1, idle // _PROBES)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((_KEEPIDLE, idle), (_KEEPINTVL, interval), (_KEEPCNT, _PROBES)):
        # A unix socket has none of them.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def tune_subflow(sock: socket.socket, lowat: int, timeout: float) -> None:
    """Options of a subflow: see `tune`; bbr where the kernel has it (at 1% loss it keeps 96% of
    the rate, cubic 4%), and a limit on how long sent bytes may stay unanswered, in seconds."""
    tune(sock)
    if not _LINUX:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, _CONGESTION, b"bbr")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, int(timeout * 1000))
    # After an outage the kernel would wait for up to two minutes before it tries again.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, _RTO_MAX, 1000)
    set_lowat(sock, lowat)


def set_lowat(sock: socket.socket, lowat: int) -> None:
    """TCP_NOTSENT_LOWAT: the socket takes bytes until this many are unsent, and asks for more
    when less than half of them are."""
    if _LINUX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, lowat)


def unacked(sock: socket.socket) -> int:
    """Bytes that the other end of a connection has not acknowledged: an RST would destroy them. 0
    where the system does not tell (SIOCOUTQ, tcp(7)), and for a unix socket, where what is sent has
    arrived."""
    if not _LINUX or sock.family == socket.AF_UNIX:
        return 0
    count = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(sock, termios.TIOCOUTQ, count)
    return count[0]


def text_address(name: object) -> str:
    """A name of a TCP socket, as getsockname(2) gives it, as HOST:PORT; else an empty text."""
    match name:
        case (str(host), int(port), *_):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return ""


def abort(sock: socket.socket) -> None:
    """Close with an RST: the peer must not take the end for a clean one (RFC 9293, 3.10.5)."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    sock.close()


def reset_unless_finished(sock: socket.socket, on: bool) -> None:
    """While this is on, however the socket is closed the peer gets an RST (SO_LINGER, socket(7)):
    the kernel would end the connections of a killed process with FINs, and a stream cut short
    would look complete."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT if on else _LINGER_OFF)
