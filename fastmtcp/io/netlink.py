"""Notices that the network of this machine has changed: addresses, links, routes (rtnetlink(7)).

The kernel tells every change at once and in many messages. What they say in detail does not
matter here: whoever is told looks at the network anew.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterator

from fastmtcp.io.loop import Loop, Timer

log = logging.getLogger("fastmtcp.network")

SETTLE = 0.2
"""Seconds from the first message to the call: one change makes many messages."""

_PAUSE = 1.0
"""Seconds between two calls at least, on a machine whose network changes all the time."""

# linux/rtnetlink.h. Python has no names for them.
_LINK, _IPV4_ADDRESS, _IPV4_ROUTE, _IPV6_ADDRESS, _IPV6_ROUTE = 0x1, 0x10, 0x40, 0x100, 0x400
_GROUPS = _LINK | _IPV4_ADDRESS | _IPV4_ROUTE | _IPV6_ADDRESS | _IPV6_ROUTE
_NEW_LINK, _DEL_LINK, _NEW_ADDRESS, _DEL_ADDRESS, _NEW_ROUTE, _DEL_ROUTE = 16, 17, 20, 21, 24, 25
_ADDRESSES_AND_LINKS = (_NEW_LINK, _DEL_LINK, _NEW_ADDRESS, _DEL_ADDRESS)
_LOCAL_TABLE = 255
_CLONED = 0x200
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_READ_SIZE = 65536


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
