"""Notices that the network of this machine has changed: addresses, links, routes (rtnetlink(7)).
Tells which way packets to an address go.

The kernel tells every change at once and in many messages. What they say in detail does not
matter here: whoever is told looks at the network anew.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fastmtcp.io.loop import Loop, Timer

log = logging.getLogger("fastmtcp.network")

SETTLE = 0.1
"""Seconds from the first message to the call: one change makes many messages."""

_PAUSE = 0.5
"""Seconds between two calls at least, on a machine whose network changes all the time."""

# linux/rtnetlink.h. Python has no names for them.
_LINK, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV6_ADDRESS, _IPV6_ROUTE = 0x1, 0x10, 0x40, 0x100, 0x400
_IPV4_RULE, _IPV6_RULE = 0x80, 0x40000
_GROUPS_OF_IPV4 = _IPV4_ADDRESS | _IPV4_ROUTE | _IPV4_RULE
_GROUPS = _LINK | _GROUPS_OF_IPV4 | _IPV6_ADDRESS | _IPV6_ROUTE | _IPV6_RULE
_NEW_LINK, _DEL_LINK, _NEW_ADDRESS, _DEL_ADDRESS, _NEW_ROUTE, _DEL_ROUTE = 16, 17, 20, 21, 24, 25
_RULES = (32, 33)
_ADDRESSES_AND_LINKS = (_NEW_LINK, _DEL_LINK, _NEW_ADDRESS, _DEL_ADDRESS)
_GET_ROUTE, _REQUEST = 26, 1
_DESTINATION, _SOURCE, _DEVICE, _GATEWAY, _PREFERRED_SOURCE, _VIA = 1, 2, 4, 5, 7, 18
_LOCAL_TABLE = 255
_CLONED = 0x200
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_READ_SIZE = 65536


class Route(NamedTuple):
    """What the kernel does with packets to an address."""

    device: int
    gateway: bytes
    source: bytes


def route_to(host: str, source: str | None = None, device: str | None = None) -> Route | None:
    """The way to an address, from `source` and out of `device` if they are given; None if there is
    none. The kernel answers at once.

    Raises:
        OSError: it cannot be asked: there is no rtnetlink, or no descriptor left.
    """
    family = getattr(socket, "AF_NETLINK", None)
    if family is None:
        raise OSError(errno.EAFNOSUPPORT, "no rtnetlink")
    with socket.socket(family, socket.SOCK_RAW, 0) as sock:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.send(_question(host, source, device))
            for kind, body in _messages(sock.recv(_READ_SIZE)):
                if kind == _NEW_ROUTE:
                    found = dict(_attributes(body[_ROUTE.size :]))
                    return Route(
                        int.from_bytes(found.get(_DEVICE, b""), sys.byteorder),
                        found.get(_GATEWAY, b"") or found.get(_VIA, b""),
                        found.get(_PREFERRED_SOURCE, b""),
                    )
    return None


def _question(host: str, source: str | None, device: str | None) -> bytes:
    family, to = _packed(host)
    attributes = [(_DESTINATION, to)]
    source_bits = 0
    if source is not None:
        _, of = _packed(source)
        attributes.append((_SOURCE, of))
        source_bits = 8 * len(of)
    if device is not None:
        attributes.append((_DEVICE, socket.if_nametoindex(device).to_bytes(4, sys.byteorder)))
    body = _ROUTE.pack(family, 8 * len(to), source_bits, 0, 0, 0, 0, 0, 0)
    for kind, value in attributes:
        body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
    return _HEADER.pack(_HEADER.size + len(body), _GET_ROUTE, _REQUEST, 1, 0) + body


def _packed(host: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return family, socket.inet_pton(family, host.partition("%")[0])


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


class NetworkWatch:
    """Calls `changed(routes)` soon after a change; `routes` is true if one of them came or went.

    Links also report what concerns nobody (a radio's statistics, say): if `routes` is false, look
    at the addresses and compare. Where the system has no rtnetlink, `changed` is never called.
    """

    def __init__(self, loop: Loop, changed: Callable[[bool], None]) -> None:
        self._loop = loop
        self._changed = changed
        self._routes = False
        self._timer: Timer | None = None
        self._called_at = float("-inf")
        self._sock = _open()
        if self._sock is not None:
            loop.watch_level(self._sock.fileno(), self._on_event)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._sock is not None:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _on_event(self, _mask: int) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            kinds = kinds_of_change(sock.recv(_READ_SIZE))
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                log.warning("changes of the network are not noticed any more: %s", error.strerror)
                self.close()
                return
            # More messages than the socket could hold: it may have been anything.
            kinds = {"address", "route"}
        self._routes |= "route" in kinds
        if kinds and self._timer is None:
            when = max(self._loop.now + SETTLE, self._called_at + _PAUSE)
            self._timer = self._loop.call_at(when, self._call)

    def _call(self) -> None:
        self._timer = None
        self._called_at = self._loop.now
        routes, self._routes = self._routes, False
        self._changed(routes)


def kinds_of_change(data: bytes) -> set[str]:
    """What netlink messages tell of that somebody may use: `address` (or link), `route`."""
    return {kind for number, body in _messages(data) if (kind := _kind(number, body))}


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, _flags, _number, _port = _HEADER.unpack_from(data)
        if length < _HEADER.size:
            return
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def _kind(number: int, body: bytes) -> str:
    if number in _ADDRESSES_AND_LINKS:
        return "address"
    if number in _RULES:
        return "route"
    if number not in (_NEW_ROUTE, _DEL_ROUTE) or len(body) < _ROUTE.size:
        return ""
    # The kernel's own routes come with addresses; cloned ones are its notes on destinations.
    _, _, _, _, table, _, _, _, flags = _ROUTE.unpack_from(body)
    return "" if table == _LOCAL_TABLE or flags & _CLONED else "route"


def _open() -> socket.socket | None:
    family = getattr(socket, "AF_NETLINK", None)
    if family is None:
        return None
    try:
        sock = socket.socket(family, socket.SOCK_RAW, 0)  # 0 is NETLINK_ROUTE
        try:
            sock.setblocking(False)
            sock.bind((0, _GROUPS))
        except OSError:
            sock.close()
            raise
    except OSError as error:
        log.info("changes of the network are not noticed: %s", error.strerror)
        return None
    return sock
