"""The PROXY protocol, versions 1 and 2: a header in front of a connection's bytes that says whose
it is (https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt). Sans-IO.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import Literal

from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import ConfigError, PeerError

Version = Literal["v1", "v2"]

MAX_V1 = 107
"""Bytes of a header of version 1, its end included (section 2.1)."""
MAX_V2 = 4096
"""Bytes behind the fixed part of a header of version 2. Addresses have up to 216; the rest are
extensions, which are skipped, and of which a hostile sender could make 64 KiB."""

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6 = 0x00, 0x11, 0x21
_BODIES = {_TCP4: struct.Struct("!4s4sHH"), _TCP6: struct.Struct("!16s16sHH")}
_UNIX, _UNIX_SIZE = 0x31, 216

_LINE = re.compile(r"PROXY (TCP4|TCP6) (\S+) (\S+) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4})", re.ASCII)
_UNKNOWN = re.compile(r"PROXY UNKNOWN( .*)?")
_NONE = "it sends no PROXY protocol header"


class HeaderReader:
    """Reads the header of a connection. It must be there: guessing would let anybody leave it out,
    or take another's bytes for one (section 2)."""

    def __init__(self) -> None:
        self.done = False
        self.source: Endpoint | None = None
        """Whose connection it is; None if the sender speaks for itself or does not know."""
        self._buffer = bytearray()

    @property
    def rest(self) -> bytes:
        """Bytes behind the header."""
        return bytes(self._buffer) if self.done else b""

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the connection; there is nothing to answer. Raises PeerError."""
        buffer = self._buffer
        buffer += data
        if self.done:
            return b""
        if buffer[:1] == _SIGNATURE[:1]:
            self._read_v2()
        elif buffer:
            self._read_v1()
        return b""

    def _read_v1(self) -> None:
        buffer = self._buffer
        start = b"PROXY "[: len(buffer)]
        end = buffer.find(b"\r\n", 0, MAX_V1)
        if not buffer.startswith(start) or (end < 0 and len(buffer) >= MAX_V1):
            raise PeerError(_NONE)
        if end < 0:
            return
        line = bytes(buffer[:end]).decode("latin-1")
        del buffer[: end + 2]
        match = _LINE.fullmatch(line)
        if match is not None:
            self.source = _endpoint(match[1], match[2], match[4])
            _endpoint(match[1], match[3], match[5])
        elif not _UNKNOWN.fullmatch(line):
            raise PeerError(_NONE)
        self.done = True

    def _read_v2(self) -> None:
        buffer = self._buffer
        if buffer[: len(_SIGNATURE)] != _SIGNATURE[: len(buffer)]:
            raise PeerError(_NONE)
        if len(buffer) < _FIXED.size:
            return
        _, command, family, size = _FIXED.unpack_from(buffer)
        body = _BODIES.get(family)
        least = body.size if body is not None else _UNIX_SIZE if family == _UNIX else 0
        if command not in (_LOCAL, _PROXY) or size > MAX_V2 or (command == _PROXY and size < least):
            raise PeerError(_NONE)
        if len(buffer) < _FIXED.size + size:
            return
        if command == _PROXY and body is not None:
            address, _, port, _ = body.unpack_from(buffer, _FIXED.size)
            self.source = Endpoint(str(_plain(ipaddress.ip_address(address))), port)
        del buffer[: _FIXED.size + size]
        self.done = True


def parse_source(text: str) -> Endpoint | None:
    """An address and port as they come over the wire; None if it is none."""
    try:
        source = Endpoint.parse(text)
    except ConfigError:
        return None
    if not source.is_numeric:
        return None
    return Endpoint(source.host.partition("%")[0], source.port)


def header(version: Version, source: Endpoint | None, destination: Endpoint | None) -> bytes:
    """The header for a connection of `source`, an address, to `destination`. If one of them is not
    known it says just that."""
    if source is None or destination is None:
        return b"PROXY UNKNOWN\r\n" if version == "v1" else _v2(_UNSPECIFIED, b"")
    here, there = (_plain(ipaddress.ip_address(e.host)) for e in (source, destination))
    kind = _TCP4
    if here.version == 6 or there.version == 6:
        # Both are of one kind, and IPv4 has a form in IPv6 (RFC 4291, 2.5.5.2).
        kind = _TCP6
        here, there = (
            ipaddress.IPv6Address(f"::ffff:{a}" if a.version == 4 else str(a))
            for a in (here, there)
        )
    if version == "v1":
        name = "TCP4" if kind == _TCP4 else "TCP6"
        return f"PROXY {name} {here} {there} {source.port} {destination.port}\r\n".encode()
    body = _BODIES[kind].pack(here.packed, there.packed, source.port, destination.port)
    return _v2(kind, body)


def _v2(family: int, body: bytes) -> bytes:
    return _FIXED.pack(_SIGNATURE, _PROXY, family, len(body)) + body


def _endpoint(kind: str, address: str, port: str) -> Endpoint:
    try:
        numeric = ipaddress.ip_address(address)
    except ValueError:
        raise PeerError(_NONE) from None
    if numeric.version != (4 if kind == "TCP4" else 6) or "%" in address or int(port) > 65535:
        raise PeerError(_NONE)
    return Endpoint(str(_plain(numeric)), int(port))


def _plain(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return getattr(address, "ipv4_mapped", None) or address
