"""The socket of one subflow: reads everything, sends what the session gives it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Protocol

from fastmtcp.driver.tcp_info import sample
from fastmtcp.driver.turn import Turn
from fastmtcp.engine.limits import KIB
from fastmtcp.engine.subflows.rate import Sample, reported
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.io.buffers import Buffer, BufferPool
from fastmtcp.io.loop import MORE, OUT, READ, Loop
from fastmtcp.io.tcp import abort, local_address, set_lowat, text_address
from fastmtcp.security.tls import Tls

_READS = 8
"""Reads in a row before other sockets get their turn."""

_CRUMB = 16 * KIB
"""Bytes that are read at a time from a client that has sent more than can be handled: what lies
there unhandled is memory, and it may have many connections."""

_IOV_MAX = 1000
"""Buffers for one call. More than 1024 are refused (sendmsg(2)); what has to wait for the next call
is not a full socket, which would tell when it takes bytes again."""

_MANY = 64
_SMALL = 2048
"""Of more than _MANY buffers, those below this are joined: an application that writes in crumbs
costs one copy of them, not one segment of the kernel's for each."""


class SubflowEvents(Protocol):
    """What a socket of a subflow tells its session."""

    def received(self, source: SubflowSocket, view: memoryview) -> None:
        """Bytes came in. What cannot be handled in this turn is kept in `source.rest`."""

    def lost(self, source: SubflowSocket, reason: str) -> None:
        """The connection has ended, or is of no use any more."""

    def progress(self) -> None:
        """Something has moved, or can: the socket takes bytes again, for one."""


class SubflowSocket:
    """A connected, authenticated, non-blocking socket that carries frames of one session."""

    __slots__ = (
        "_events",
        "_fd",
        "_loop",
        "_lowat",
        "_more",
        "_out",
        "_pool",
        "_sock",
        "_tls",
        "_turn",
        "closed",
        "is_finished",
        "on_lost",
        "peer",
        "rest",
        "subflow",
    )

    def __init__(
        self,
        loop: Loop,
        pool: BufferPool,
        turn: Turn,
        events: SubflowEvents,
        sock: socket.socket,
        subflow: Subflow,
        peer: str,
        on_lost: Callable[[str], None] | None,
        tls: Tls | None = None,
    ) -> None:
        self._loop = loop
        self._pool = pool
        self._turn = turn
        self._events = events
        self._sock = sock
        self._tls = tls
        self._fd = sock.fileno()
        self.subflow = subflow
        self.peer = peer
        self.on_lost = on_lost
        """Called once with the reason when the subflow died; not when we closed it."""
        self.closed = False
        self.is_finished = False
        """True once the peer's FIN was read."""
        self.rest: memoryview | None = None
        """What was read and not yet handled: nothing more is read before it is."""
        self._out: list[Buffer] = []
        """What the kernel does not take yet, as it goes over the wire."""
        self._more = False
        self._lowat = subflow.speed.lowat
        subflow.ready = True
        loop.watch(self._fd, self.on_event)

    def on_event(self, mask: int) -> None:
        if mask & OUT and not self.subflow.ready:
            self._flush()
        if mask & READ:
            if mask & MORE:
                self._more = True
            self.read()
        if not self.closed:
            self._events.progress()

    def read(self) -> None:
        """Take what has arrived. Everything is always read: credit, not the socket, is what
        keeps a peer from sending."""
        turn = self._turn
        events = self._events
        pool = self._pool
        tls = self._tls
        for _ in range(_READS):
            if self.closed:
                return
            if self.rest is not None or not turn.may_read:
                break
            space = pool.reserve()
            if turn.rests:
                space = space[:_CRUMB]
            try:
                if tls is None:
                    count = self._sock.recv_into(space)
                else:
                    count = tls.recv_into(self._sock, space, pool.scratch)
            except BlockingIOError:
                self._more = False
                return
            except OSError as error:
                events.lost(self, error.strerror or str(error))
                return
            if not count:
                self.is_finished = True
                events.lost(self, "closed by the peer")
                return
            drained = count < len(space) and not (self._more or (tls is not None and tls.has_more))
            del space
            events.received(self, pool.commit(count))
            if drained and self.rest is None:
                return
        turn.read_later(self)

    def read_on(self) -> None:
        """Go on where read() stopped."""
        if self.rest is not None and not self.closed and self._turn.may_read:
            self._events.received(self, self.rest)
        self.read()
        if not self.closed:
            self._events.progress()

    def keep(self, view: memoryview, taken: int) -> None:
        """Of `view`, which was read, the first `taken` bytes were handled. The others are for
        later, and do not keep the whole slab for as long."""
        had, self.rest = self.rest, None
        if taken < len(view) and not self.closed:
            left = view[taken:]
            self.rest = memoryview(bytes(left)) if had is None else left
        self._turn.rests += (self.rest is not None) - (had is not None)

    def addresses(self) -> tuple[str, str]:
        """The local and the remote one; empty once the connection is gone."""
        try:
            return text_address(self._sock.getsockname()), text_address(self._sock.getpeername())
        except OSError:
            return "", ""

    @property
    def local_address(self) -> str:
        """The address on this machine, without the port; empty once the connection is gone."""
        return local_address(self._sock)

    def srtt(self) -> float | None:
        """Smoothed round-trip time in seconds; None if the system does not tell."""
        known = sample(self._sock)
        return None if known is None else round(known.rtt, 6)

    def send(self, buffers: list[Buffer], size: int) -> None:
        """Send; keep what the socket does not take, and be not ready until it has."""
        try:
            if self._tls is not None:
                buffers, sealed = self._tls.seal(buffers)
                self.subflow.overhead += sealed - size
                size = sealed
            elif len(buffers) > _MANY:
                buffers = _joined(buffers)
            count = self._sock.sendmsg(buffers[:_IOV_MAX])
        except BlockingIOError:
            count = 0
        except OSError as error:
            self._break(error)
            return
        if count < size:
            self.subflow.ready = False
            self._out = _rest(buffers, count)
            if len(buffers) - len(self._out) == _IOV_MAX:
                self._flush()

    def goodbye(self, data: bytes) -> None:
        """Send a last frame if the socket takes it now, and close."""
        whole = False
        if not self._out:
            buffers: list[Buffer] = [data]
            size = len(data)
            try:
                if self._tls is not None:
                    buffers, size = self._tls.seal(buffers)
                whole = self._sock.sendmsg(buffers) == size
            except OSError:
                pass
        self.close(reset=not whole)

    def close(self, *, reset: bool) -> None:
        if self.closed:
            return
        self.closed = True
        self._loop.unwatch(self._fd)
        self._out = []
        self._turn.rests -= self.rest is not None
        self.rest = None
        if reset:
            abort(self._sock)
        else:
            self._sock.close()

    def measure(self) -> Sample:
        """What the kernel knows of the path; where it tells nothing, what the peer reports."""
        return sample(self._sock) or reported(self.subflow.delivery)

    def settle(self) -> None:
        """Look at what the kernel has not taken. What has stayed there since the last time must not
        hold on to more than it is counted as: it may be all that is left of what was read."""
        unsent = sum(map(len, self._out))
        if unsent and unsent == self.subflow.unsent and len(self._out) > 1:
            self._out = [b"".join(self._out)]
        self.subflow.unsent = unsent

    @property
    def is_worn_out(self) -> bool:
        """True if its TLS keys have been used for as much as they are good for."""
        return self._tls is not None and self._tls.is_worn_out

    def follow_lowat(self) -> None:
        """Set the low-water mark that the engine wants by now."""
        wanted = self.subflow.speed.lowat
        if abs(wanted - self._lowat) * 4 > self._lowat:
            self._lowat = wanted
            set_lowat(self._sock, wanted)

    def _break(self, error: OSError) -> None:
        """Nothing can be sent any more. Why that is so may have arrived already: a GOAWAY."""
        self.subflow.ready = False
        self._out = []
        self._loop.call_soon(partial(self._hear_last_words, error.strerror or str(error)))

    def _hear_last_words(self, reason: str) -> None:
        while not self.closed and self.rest is None and self._turn.may_read:
            before = self.subflow.bytes_received
            self.read()
            if self.subflow.bytes_received == before:
                break
        if not self.closed:
            self._events.lost(self, reason)

    def _flush(self) -> None:
        """Send what waits. Ends with a full socket, whose edge is still to come, or ready."""
        out = self._out
        while out:
            try:
                count = self._sock.sendmsg(out[:_IOV_MAX])
            except BlockingIOError:
                return
            except OSError as error:
                self._break(error)
                return
            taken = len(out)
            out = self._out = _rest(out, count)
            taken -= len(out)
            if out and taken < _IOV_MAX:
                return
        self.subflow.ready = True


def _joined(buffers: list[Buffer]) -> list[Buffer]:
    """The same bytes in fewer buffers."""
    out: list[Buffer] = []
    small: list[Buffer] = []
    for buffer in buffers:
        if len(buffer) < _SMALL:
            small.append(buffer)
            continue
        if small:
            out.append(b"".join(small))
            small = []
        out.append(buffer)
    if small:
        out.append(b"".join(small))
    return out


def _rest(buffers: list[Buffer], count: int) -> list[Buffer]:
    """What remains of `buffers` behind the first `count` bytes."""
    for index, buffer in enumerate(buffers):
        size = len(buffer)
        if count < size:
            rest = buffers[index:]
            if count:
                rest[0] = memoryview(buffer)[count:]
            return rest
        count -= size
    return []
