"""What the kernel knows of a connection: TCP_INFO (tcp(7), linux/tcp.h)."""

from __future__ import annotations

import socket
import struct
import sys

from fastmtcp.engine.subflows.rate import Sample

_LINUX = sys.platform == "linux"
_TCP_INFO = getattr(socket, "TCP_INFO", 11)

# struct tcp_info: 8 bytes of flags, 24 u32, then u64 and u32 in groups.
_LENGTH = 168
_SEGMENTS = struct.Struct("=16xI4xI")  # the size of one, how many are not acknowledged
_RTT = struct.Struct("=68xI")
_ACKED = struct.Struct("=120xQ")
_NOTSENT = struct.Struct("=144xI")
_RATE = struct.Struct("=160xQ")
_PEER_WINDOW = struct.Struct("=228xI")
_LONG = 232
_MICRO = 1e-6


def sample(sock: socket.socket) -> Sample | None:
    """What the kernel knows of the connection, or None where it does not tell."""
    if not _LINUX:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _LONG)
    except OSError:
        return None
    if len(info) < _LENGTH:
        return None
    size, unacked = _SEGMENTS.unpack_from(info)
    return Sample(
        _RTT.unpack_from(info)[0] * _MICRO,
        float(_RATE.unpack_from(info)[0]),
        bool(info[7] & 1),
        _NOTSENT.unpack_from(info)[0],
        size * unacked,
        _ACKED.unpack_from(info)[0],
        _PEER_WINDOW.unpack_from(info)[0] if len(info) >= _LONG else -1,
    )
