"""Outgoing connections, without ever blocking."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Hashable
from functools import partial

import msgspec

from fastmtcp.endpoint import Endpoint
from fastmtcp.io.loop import ERR, Loop, Timer
from fastmtcp.io.resolver import Address, Question, Resolver, numeric
from fastmtcp.io.tcp import abort, local_address, read_urgent_in_line

Connected = Callable[[socket.socket], None]
Failed = Callable[[OSError, bool], None]

_BIND_TO_DEVICE: int | None = getattr(socket, "SO_BINDTODEVICE", None)
_BIND_ADDRESS_NO_PORT = 24
"""IP_BIND_ADDRESS_NO_PORT (ip(7)), for which Python has no name."""


class WayOut(msgspec.Struct, frozen=True):
    """The local end of a connection: an IP address, a network interface (socket(7),
    SO_BINDTODEVICE), both, or what the routes say."""

    address: str | None = None
    device: str | None = None

    @property
    def family(self) -> socket.AddressFamily | None:
        """The only family of addresses that can be reached; None if both can."""
        known = numeric(self.address, 0) if self.address is not None else None
        return None if known is None else known[0]

    def apply(self, sock: socket.socket) -> None:
        """Tie an unconnected socket to it.

        Raises:
            OSError: no such interface or address, or no permission. Its text says which.
        """
        if self.device is not None:
            _bind_to_device(sock, self.device)
        if self.address is not None:
            _bind_to_address(sock, self.address)


def may_bind_to_device() -> bool:
    """Whether this process may choose an interface (Linux; before 5.7 only with CAP_NET_RAW)."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            _bind_to_device(probe, "lo")
    except OSError:
        return False
    return True


def _bind_to_device(sock: socket.socket, device: str) -> None:
    if _BIND_TO_DEVICE is None:
        raise OSError(errno.ENOPROTOOPT, "dev= needs Linux; use bind= with an address")
    try:
        sock.setsockopt(socket.SOL_SOCKET, _BIND_TO_DEVICE, os.fsencode(device))
    except OSError as error:
        text = error.strerror
        if error.errno == errno.ENODEV:
            text = f"no interface {device}"
        elif error.errno == errno.EPERM:
            text = f"no permission to use dev={device}; it needs CAP_NET_RAW, bind= does not"
        raise OSError(error.errno, text) from None


def _bind_to_address(sock: socket.socket, address: str) -> None:
    known = numeric(address, 0)
    assert known is not None, "the configuration lets only addresses through"
    # Else a local port would be taken for this socket alone, whatever it connects to, and a
    # machine that reconnects much would run out of them.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
    try:
        sock.bind(known[1])
    except OSError as error:
        text = error.strerror
        if error.errno == errno.EADDRNOTAVAIL:
            text = f"this machine does not have the address {address}"
        raise OSError(error.errno, text) from None


ANYWHERE = WayOut()


class ForbiddenError(OSError):
    """None of the addresses that a name has may be connected to."""


class Dial:
    """One attempt to connect to `endpoint`, trying its addresses one after the other.

    Calls either `connected(sock)`, with the socket still watched by the loop, or
    `failed(error, unresolved)`; neither after cancel(). `timeout` seconds are for all of it, and
    of them no more than `patience` for one address. `first` says with which of the addresses to
    begin, so that repeated dials use all of them. `permits`, if there is one, says for the text of
    an address whether it may be connected to; if none may, the error is a ForbiddenError. `asker`
    says whose share of the resolver it takes.
    """

    def __init__(
        self,
        loop: Loop,
        resolver: Resolver,
        endpoint: Endpoint,
        timeout: float,
        connected: Connected,
        failed: Failed,
        first: int = 0,
        way_out: WayOut = ANYWHERE,
        patience: float | None = None,
        permits: Callable[[str], bool] | None = None,
        asker: Hashable = None,
    ) -> None:
        self._loop = loop
        self._connected = connected
        self._failed = failed
        self._first = first
        self._way_out = way_out
        self._patience = patience
        self._permits = permits
        self._addresses: list[Address] = []
        self._sock: socket.socket | None = None
        self._done = False
        self._cancelled = False
        self._deadline = loop.now + timeout
        self._timer: Timer | None = loop.call_at(self._deadline, self._on_timeout)
        self._attempt: Timer | None = None
        self._question: Question | None = None
        question = resolver.resolve(endpoint.host, endpoint.port, self._on_resolved, asker)
        if not self._done:
            self._question = question

    @property
    def local_address(self) -> str:
        """The address that it connects from now; empty while it does not."""
        return local_address(self._sock) if self._sock is not None else ""

    def cancel(self) -> None:
        """Forget the attempt."""
        self._cancelled = True
        self._finish()
        self._close()

    def _on_resolved(self, result: list[Address] | OSError) -> None:
        if self._done:
            return
        if isinstance(result, OSError):
            self._fail(result, unresolved=True)
            return
        family = self._way_out.family
        if family is not None:
            result = [address for address in result if address[0] == family]
            if not result:
                kind = "IPv6" if family == socket.AF_INET6 else "IPv4"
                text = f"no {kind} address to reach from {self._way_out.address}"
                self._fail(OSError(errno.EAFNOSUPPORT, text), unresolved=True)
                return
        if self._permits is not None:
            # The only look-up there is: no other address than one of these is connected to.
            permitted = [address for address in result if self._permits(address[1][0])]
            if not permitted:
                found = ", ".join(address[1][0] for address in result[:3])
                self._fail(ForbiddenError(errno.EACCES, f"its address is {found}"))
                return
            result = permitted
        shift = self._first % len(result)
        self._addresses = result[shift:] + result[:shift]
        self._try_next()

    def _try_next(self) -> None:
        family, address = self._addresses.pop(0)
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._fail(error)
            return
        self._sock = sock
        read_urgent_in_line(sock)
        try:
            self._way_out.apply(sock)
        except OSError as error:
            self._on_error(error)
            return
        code = sock.connect_ex(address)
        if code in (0, errno.EINPROGRESS):
            self._loop.watch(sock.fileno(), self._on_event)
            # The next address gets its share of the time, or one dead address takes it all.
            share = (self._deadline - self._loop.now) / (len(self._addresses) + 1)
            if self._patience is not None:
                share = min(share, self._patience)
            if self._addresses or self._patience is not None:
                self._attempt = self._loop.call_later(share, self._on_attempt_over)
            return
        self._on_error(_error(code))

    def _on_event(self, mask: int) -> None:
        sock = self._sock
        assert sock is not None
        if mask & ERR:
            # It may have accepted, spoken and reset the connection. SO_ERROR would tell that once,
            # and the next owner take the end of the words for a clean one.
            try:
                if sock.recv(1, socket.MSG_PEEK):
                    self._succeed(sock)
                    return
            except BlockingIOError:
                pass
            except OSError as error:
                self._on_error(error)
                return
        try:
            peer = sock.getpeername()
        except OSError:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._on_error(_error(code))
            return  # else an event of this descriptor's earlier life
        if peer == sock.getsockname():
            # Nobody listens there, and of all local ports the kernel took this one: a simultaneous
            # open with itself (RFC 9293, 3.5). A FIN would leave it in TIME_WAIT, where the service
            # that belongs there could not start.
            self._loop.unwatch(sock.fileno())
            abort(sock)
            self._sock = None
            self._on_error(_error(errno.ECONNREFUSED))
            return
        self._succeed(sock)

    def _succeed(self, sock: socket.socket) -> None:
        self._finish()
        self._sock = None
        self._connected(sock)

    def _on_attempt_over(self) -> None:
        self._on_error(_error(errno.ETIMEDOUT))

    def _on_timeout(self) -> None:
        self._timer = None
        self._fail(_error(errno.ETIMEDOUT))

    def _on_error(self, error: OSError) -> None:
        self._close()
        if self._addresses:
            self._try_next()
        else:
            self._fail(error)

    def _fail(self, error: OSError, unresolved: bool = False) -> None:
        self._finish()
        self._close()
        # Not from here: this may still be the constructor.
        self._loop.call_soon(partial(self._tell, error, unresolved))

    def _tell(self, error: OSError, unresolved: bool) -> None:
        if not self._cancelled:
            self._failed(error, unresolved)

    def _finish(self) -> None:
        self._done = True
        if self._question is not None:
            # Each knows the other, and would wait for the garbage collector.
            self._question.cancel()
            self._question = None
        for timer in (self._timer, self._attempt):
            if timer is not None:
                timer.cancel()

    def _close(self) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
        if self._sock is not None:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._sock = None


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
