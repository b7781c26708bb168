"""Listening sockets of a worker."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable

from fastmtcp.endpoint import ANY_HOST, Endpoint
from fastmtcp.errors import StartError
from fastmtcp.io.loop import Loop
from fastmtcp.io.resolver import Address, look_up
from fastmtcp.io.tcp import abort, read_urgent_in_line, text_address

log = logging.getLogger("fastmtcp.listener")

_BACKLOG = 4096
_BATCH = 64
_PAUSE = 0.2
_PATIENCE = 2.0
"""Seconds without a descriptor for which the kernel keeps those that come; then they are reset."""

_WARN_EVERY = 60.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def addresses(endpoint: Endpoint) -> list[Address]:
    """Where a listener for `endpoint` binds. Blocks for names: call it before the loop runs.

    Raises:
        StartError: the name is unknown.
    """
    try:
        if endpoint.host == ANY_HOST:
            found = look_up(None, endpoint.port, socket.AI_PASSIVE)
        else:
            found = look_up(endpoint.host, endpoint.port)
    except OSError as error:
        raise StartError(f"cannot listen on {endpoint}: {error.strerror or error}") from None
    families = (socket.AF_INET, socket.AF_INET6)
    return list(dict.fromkeys(address for address in found if address[0] in families))


_NOT_HERE = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def bind_those_here(endpoint: Endpoint, claim: Callable[[Address], None]) -> list[str]:
    """`claim` each address of `endpoint` that this machine has. Returns what to say of the others:
    many machines have ::1 for localhost in /etc/hosts, and no IPv6.

    Raises:
        StartError: the name is unknown.
        OSError: as `claim`; of the last address if this machine has none of them.
    """
    missing: list[OSError] = []
    left_out: list[str] = []
    found = addresses(endpoint)
    for address in found:
        try:
            claim(address)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            missing.append(error)
            if not endpoint.is_wildcard:
                where = Endpoint(address[1][0], address[1][1])
                left_out.append(
                    f"not listening on {where}, an address of {endpoint.host}, "
                    "because this machine does not have it"
                )
    if len(missing) == len(found):
        raise missing[-1]
    return left_out


def bind(address: Address, *, shared: bool) -> socket.socket:
    """A bound socket. With `shared` all workers can bind the same port (SO_REUSEPORT, socket(7)).

    Raises:
        OSError: as bind(2).
    """
    family, where = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # The IPv4 wildcard has a socket of its own.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


class Listener:
    """Accepts connections and hands them, non-blocking, to `on_accept(sock, peer)`; `peer` is empty
    at a unix socket.

    When descriptors or memory run out it pauses, and tries again by itself: a level-triggered
    listener that cannot accept would spin. While it is on hold the kernel keeps what comes, up to
    its backlog.

    If nobody leaves for some time, those that wait are reset, by means of a descriptor that is kept
    for that. They would wait for others that may wait for them: a connection that comes back to us
    in a circle takes all descriptors, and the one in our backlog is its end, where neither FIN nor
    reset is heard before it is accepted.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_accept: Callable[[socket.socket, str], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._on_accept = on_accept
        self._closed = False
        self._on_hold = False
        self._exhausted = False
        self._exhausted_since = self._exhausted_at = float("-inf")
        self._watched = True
        self._warned_at = self._refused_at = float("-inf")
        self._spare = _spare()
        read_urgent_in_line(sock)
        sock.listen(_BACKLOG)
        loop.watch_level(sock.fileno(), self._on_event)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.unwatch(self._sock.fileno())
            if self._spare >= 0:
                os.close(self._spare)
            # The supervisor has a copy, for our successor: closing ours would not end it. A unix
            # socket is that of the other workers too.
            if self._sock.family != socket.AF_UNIX:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
            self._sock.close()

    def hold(self, on: bool) -> None:
        """Accept nothing while `on`."""
        self._on_hold = on
        self._update()

    def _on_event(self, _mask: int) -> None:
        for _ in range(_BATCH):
            if self._closed or self._on_hold:
                return
            try:
                sock, peer = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause(error)
                # Others are of that one connection, gone before it was accepted (accept(2)).
                return
            self._exhausted_at = float("-inf")
            sock.setblocking(False)
            if sock.family == socket.AF_UNIX:
                read_urgent_in_line(sock)
            try:
                self._on_accept(sock, text_address(peer))
            except OSError as error:  # epoll_ctl(2): out of memory or of watches
                self._loop.lines.warning(log, "", "connection dropped: %s", error.strerror)
                sock.close()

    def _pause(self, error: OSError) -> None:
        now = self._loop.now
        if now - self._exhausted_at > 2 * _PAUSE:
            self._exhausted_since = now
        self._exhausted_at = now
        if now - self._exhausted_since >= _PATIENCE:
            self._turn_away(error)
        elif now - self._warned_at > _WARN_EVERY:
            self._warned_at = now
            log.warning(
                "cannot accept connections: %s; waiting for others to end "
                "(raise the limit with ulimit -n)",
                error.strerror,
            )
        self._exhausted = True
        self._update()
        self._loop.call_later(_PAUSE, self._resume)

    def _turn_away(self, error: OSError) -> None:
        """Reset those that wait."""
        if self._spare >= 0:
            os.close(self._spare)
        count = 0
        with contextlib.suppress(OSError):
            for _ in range(_BATCH):
                sock, _peer = self._sock.accept()
                abort(sock)
                count += 1
        self._spare = _spare()
        if count and self._loop.now - self._refused_at > _WARN_EVERY:
            self._refused_at = self._loop.now
            log.warning("connections reset that could not be accepted: %s", error.strerror)

    def _resume(self) -> None:
        self._exhausted = False
        self._update()

    def _update(self) -> None:
        wanted = not (self._on_hold or self._exhausted)
        if self._closed or wanted == self._watched:
            return
        self._watched = wanted
        self._loop.hold(self._sock.fileno(), not wanted)


def _spare() -> int:
    """A descriptor of nothing; -1 if there is none."""
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
