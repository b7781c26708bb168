"""The names of listening unix sockets, asked of the kernel where there is no /proc/net/unix
(sock_diag(7)): containers and sandboxes may show a /proc of processes only, or none."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

_NETLINK_SOCK_DIAG = 4
_BY_FAMILY = 20
_DUMP_REQUEST = 0x301
_ERROR, _DONE = 2, 3
_LISTENING = 1 << 10
_SHOW_NAME = 1
_NAME = 0

_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_ATTRIBUTE = struct.Struct("=HH")
_BODY_SIZE = 16
_READ_SIZE = 1 << 18
_TIMEOUT = 2.0


def listening_names() -> Iterator[bytes]:
    """The names in the abstract namespace, without the byte that says so.

    Raises:
        OSError: this system does not tell.
    """
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _LISTENING, 0, _SHOW_NAME, 0, 0)
    header = _HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _DUMP_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as sock:
        sock.settimeout(_TIMEOUT)
        sock.send(header + request)
        while True:
            for kind, body in _messages(sock.recv(_READ_SIZE)):
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    raise OSError(-int.from_bytes(body[:4], "little", signed=True), "not told")
                name = _attribute(body[_BODY_SIZE:], _NAME)
                if name.startswith(b"\0"):
                    yield name[1:]


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        if length < _HEADER.size:
            return
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def _attribute(data: bytes, wanted: int) -> bytes:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        if kind == wanted:
            return data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
    return b""
