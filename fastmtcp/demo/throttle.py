"""A TCP relay that limits the rate of every connection by itself, for the demo and the tests.

It plays the network this project is for: one where each TCP connection is held to a rate of its
own, however many there are. It is no part of the data path and needs Linux (epoll).

Each connection has one token bucket for each direction. A direction whose bucket is empty is
taken out of epoll and looked at again on the next tick, so bulk data costs two system calls a
tick and direction, and a small message waits for nothing.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import threading
import time
from collections import deque

from fastmtcp.endpoint import Endpoint
from fastmtcp.engine.quota import Bucket
from fastmtcp.errors import StartError

DEFAULT_RATE = 20_000_000
"""Bytes per second: 160 Mbit/s, the figure of the people this project is for."""

TICK = 0.005
BURST = 0.010
QUEUE = 0.100
MAX_LATE = 0.250
SCRATCH = 256 * 1024
MIN_WINDOW = 64 * 1024
ACCEPT_PAUSE = 0.1
LOOPBACK = Endpoint("127.0.0.1", 0)

_ABORT = struct.pack("ii", 1, 0)
_READ = 1  # select.EPOLLIN; spelled out because macOS, which may import this, has no epoll
_WRITE = 4
_BROKEN = 8 | 16  # EPOLLERR, EPOLLHUP
_NEW, _GONE = -1, -2

_Where = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
_Address = tuple[socket.AddressFamily, _Where]

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Of an address that a name has and this machine has not."""


class TokenBucket(Bucket):
    """Credit in bytes that grows with time at `rate` bytes per second.

    An idle connection saves up no more than a burst. While bytes wait, the credit of a late tick
    counts in full (up to MAX_LATE), because the delay is this process's and not the simulated
    line's: that is what keeps the rate exact on a busy machine.
    """

    __slots__ = ("_ceiling",)

    def __init__(self, rate: float, now: float) -> None:
        super().__init__(rate, now, max(rate * BURST, 1500.0))
        self._ceiling = max(rate * MAX_LATE, self.most)

    def available(self, now: float, *, waiting: bool) -> int:
        """Bytes that may pass at time `now` (seconds); `waiting` says that bytes were held."""
        return int(self.fill(now, self._ceiling if waiting else None))


class _Endpoint:
    """One socket of a relayed connection: the source of one direction, the sink of the other."""

    __slots__ = ("connecting", "inbound", "interest", "outbound", "sock", "untried")

    def __init__(self, sock: socket.socket, untried: list[_Address] | None = None) -> None:
        """`untried` are the addresses to connect to if that of the first attempt refuses; None if
        the socket is connected."""
        self.sock = sock
        self.connecting = untried is not None
        self.untried = untried or []
        self.interest = _NEW
        self.inbound: _Direction
        self.outbound: _Direction

    def wanted(self) -> int:
        if self.connecting:
            return _WRITE
        return (_READ if self.inbound.reading else 0) | (_WRITE if self.outbound.blocked else 0)


class _Direction:
    """Bytes from `source` to `sink`; a queue entry is (due time, bytes), None standing for FIN."""

    __slots__ = (
        "blocked",
        "bucket",
        "eof",
        "limit",
        "queue",
        "queued",
        "sink",
        "source",
        "starved",
    )

    def __init__(self, source: _Endpoint, sink: _Endpoint, bucket: TokenBucket, limit: int) -> None:
        self.source = source
        self.sink = sink
        self.bucket = bucket
        self.queue: deque[tuple[float, memoryview | None]] = deque()
        self.queued = 0
        self.limit = limit
        self.eof = False
        self.starved = False
        self.blocked = False
        source.inbound = self
        sink.outbound = self

    @property
    def reading(self) -> bool:
        ready = not (self.source.connecting or self.sink.connecting)
        held = self.starved or self.blocked or self.queued >= self.limit
        return ready and not (self.eof or held)

    @property
    def done(self) -> bool:
        return self.eof and not self.queue


class Throttle:
    """Relay every connection to `target`, each direction of each limited to `rate` by itself.

    `rate` is in bytes per second and `delay`, in seconds, is added to all bytes one way (not to
    the connecting itself). Port 0 listens on a free port: `address` tells which.
    A connection's queue is bounded to about 100 ms of its rate, like a policed line's. FIN and
    RST pass through each way; `close` resets what is still open.

    Use `start` and `close` (or `with`) to run it on a thread, or `bind` and `run` to serve on
    the calling thread. Raises StartError where the address cannot be listened on.
    """

    def __init__(
        self,
        target: Endpoint,
        listen: Endpoint = LOOPBACK,
        *,
        rate: float = DEFAULT_RATE,
        delay: float = 0.0,
    ) -> None:
        self._target = target
        self._listen = listen
        self._rate = rate
        self._delay = delay
        self._quantum = max(1, int(rate * TICK / 2))
        self._window = max(MIN_WINDOW, int(rate * QUEUE))
        # What a delay holds at the full rate, and no more: a reader that stops must stop us.
        self._backlog = int(rate * (delay + MAX_LATE)) + SCRATCH
        self._scratch = memoryview(bytearray(SCRATCH))
        self._ends: dict[int, _Endpoint] = {}
        self._refused: list[_Endpoint] = []
        self._starved: set[_Direction] = set()
        self._delayed: set[_Direction] = set()
        self._accept_at: float | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._listener: socket.socket | None = None

    @property
    def address(self) -> Endpoint:
        """The address that it listens on. Valid after `bind` or `start`."""
        if self._listener is None:
            raise RuntimeError("the throttle is not listening yet: call start() first")
        host, port = self._listener.getsockname()[:2]
        return Endpoint(host, port)

    def __enter__(self) -> Throttle:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> None:
        """Listen, and serve on a thread until `close`."""
        self.bind()
        self._thread = threading.Thread(target=self.run, name="throttle", daemon=True)
        self._thread.start()

    def bind(self) -> None:
        """Resolve both addresses and listen. Raises StartError."""
        if not hasattr(select, "epoll"):
            raise StartError("the throttle needs Linux: this system has no epoll")
        self._targets = _resolve(self._target)
        self._listener = self._bind_first(_resolve(self._listen))
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)

    def _bind_first(self, addresses: list[_Address]) -> socket.socket:
        """A listener at the first of these that this machine has."""
        failure = OSError()
        for address in addresses:
            try:
                return self._bind_one(address)
            except OSError as exc:
                failure = exc
                if exc.errno not in _NOT_HERE:
                    break
        raise StartError(
            f"cannot listen on {self._listen}: {failure.strerror}; choose another --listen"
        )

    def _bind_one(self, address: _Address) -> socket.socket:
        listener = socket.socket(address[0], socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._bound_window(listener)
            listener.bind(address[1])
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        return listener

    def stop(self) -> None:
        """Make `run` return soon. May be called from a signal handler or another thread."""
        self._stopping = True
        # A full pipe already holds a wake-up; a closed one means that `run` has returned.
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    def close(self) -> None:
        """Undo `start`: stop listening and reset all connections; idempotent."""
        if self._thread is None:
            return
        self.stop()
        self._thread.join()
        self._thread = None

    # The loop. Everything below runs on one thread.

    def run(self) -> None:
        """Serve on the calling thread until `stop`, then reset all connections."""
        assert self._listener is not None
        listener = self._listener
        self._poll = select.epoll()
        self._poll.register(listener.fileno(), _READ)
        self._poll.register(self._wake.fileno(), _READ)
        next_tick = 0.0
        try:
            while not self._stopping:
                now = time.monotonic()
                if self._starved and next_tick <= now:
                    next_tick = now + TICK
                events = dict(self._poll.poll(self._timeout(now, next_tick)))
                for fd, mask in events.items():
                    if fd in self._ends:
                        self._on_event(self._ends[fd], mask)
                self._on_time(time.monotonic(), next_tick)
                # Last: a new socket may get the number of one that was closed above.
                refused, self._refused = self._refused, []
                for end in refused:
                    self._connect_next(end)
                if listener.fileno() in events:
                    self._accept(listener)
        finally:
            for end in list(self._ends.values()):
                self._reset(end)
            self._poll.close()
            listener.close()
            self._wake.close()
            self._waker.close()

    def _timeout(self, now: float, next_tick: float) -> float | None:
        times = [direction.queue[0][0] for direction in self._delayed]
        if self._starved:
            times.append(next_tick)
        if self._accept_at is not None:
            times.append(self._accept_at)
        return max(0.0, min(times) - now) if times else None

    def _on_time(self, now: float, next_tick: float) -> None:
        if self._accept_at is not None and now >= self._accept_at:
            assert self._listener is not None
            self._accept_at = None
            self._poll.register(self._listener.fileno(), _READ)
        for direction in [d for d in self._delayed if d.queue[0][0] <= now]:
            self._guarded_pump(direction, now)
        if self._starved and now >= next_tick:
            for direction in list(self._starved):
                self._guarded_pump(direction, now)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
                try:
                    far = socket.socket(self._targets[0][0], socket.SOCK_STREAM)
                except OSError:
                    near.close()
                    raise
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno in (errno.ECONNABORTED, errno.EINTR):
                    continue
                # Out of descriptors: the connection stays in the backlog, where level-triggered
                # epoll would report it for ever, so look away for a moment.
                self._poll.unregister(listener.fileno())
                self._accept_at = time.monotonic() + ACCEPT_PAUSE
                return
            self._open(near, far)

    def _open(self, near: socket.socket, far: socket.socket) -> None:
        near.setblocking(False)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        now = time.monotonic()
        one, two = _Endpoint(near), _Endpoint(far, self._targets[1:])
        _Direction(one, two, TokenBucket(self._rate, now), self._backlog)
        _Direction(two, one, TokenBucket(self._rate, now), self._backlog)
        self._ends[near.fileno()] = one
        self._ends[far.fileno()] = two
        self._watch(one)
        self._connect(two, self._targets[0][1])

    def _connect(self, end: _Endpoint, where: _Where) -> None:
        try:
            end.sock.setblocking(False)
            end.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._bound_window(end.sock)
            failed = end.sock.connect_ex(where) not in (0, errno.EINPROGRESS)
        except OSError:
            failed = True
        if failed:
            self._connect_next(end)
        else:
            self._watch(end)

    def _connect_next(self, end: _Endpoint) -> None:
        """An address of the target has refused: try the next, or reset the application if there is
        none. Makes a socket, so not before all events of a turn are handled: see run()."""
        if end.sock.fileno() < 0:
            return  # the application is gone
        try:
            family, where = end.untried.pop(0)
            fresh = socket.socket(family, socket.SOCK_STREAM)
        except (IndexError, OSError):
            self._reset(end)
            return
        del self._ends[end.sock.fileno()]
        end.sock.close()
        end.sock, end.interest = fresh, _NEW
        self._ends[fresh.fileno()] = end
        self._connect(end, where)

    def _on_event(self, end: _Endpoint, events: int) -> None:
        if events & _BROKEN and end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            if end.connecting:
                self._refused.append(end)
            else:
                self._reset(end)
            return
        now = time.monotonic()
        if end.connecting:
            end.connecting = False
            self._watch(end.outbound.source)
            self._watch(end)
            return
        if events & _BROKEN:
            # Both ways have ended, and epoll would go on saying so while a queue drains on time.
            end.interest = _GONE
            self._poll.unregister(end.sock.fileno())
        if events & (_READ | _BROKEN):
            self._guarded_pump(end.inbound, now)
        if events & _WRITE and end.sock.fileno() in self._ends:
            end.outbound.blocked = False
            self._guarded_pump(end.outbound, now)

    def _guarded_pump(self, direction: _Direction, now: float) -> None:
        if direction.source.sock.fileno() < 0:
            return  # closed a moment ago by the pumping of another direction
        try:
            self._pump(direction, now)
        except OSError:
            self._reset(direction.source)
            return
        if direction.done and direction.source.outbound.done:
            self._forget(direction.source)
            self._forget(direction.sink)
            return
        (self._starved.add if direction.starved else self._starved.discard)(direction)
        timed = bool(direction.queue) and not direction.blocked
        (self._delayed.add if timed else self._delayed.discard)(direction)
        self._watch(direction.source)
        self._watch(direction.sink)

    def _pump(self, direction: _Direction, now: float) -> None:
        """Deliver what is due and read what the bucket allows. Raises OSError: reset both."""
        source, sink = direction.source.sock, direction.sink.sock
        while True:
            self._deliver(direction, now)
            if direction.blocked or direction.eof or direction.queued >= direction.limit:
                # What holds the bytes is the reader and not the rate: no credit grows from that.
                direction.starved = False
                return
            allowed = direction.bucket.available(now, waiting=direction.starved)
            if allowed < self._quantum:
                direction.starved = True
                return
            room = min(allowed, SCRATCH)
            try:
                count = source.recv_into(self._scratch[:room])
            except BlockingIOError:
                direction.starved = False
                return
            if count == 0:
                direction.eof = True
                direction.queue.append((now + self._delay, None))
                continue
            direction.bucket.spend(count)
            sent = 0
            if not self._delay:
                with contextlib.suppress(BlockingIOError):
                    sent = sink.send(self._scratch[:count])
                direction.blocked = sent < count
            if sent < count:
                rest = memoryview(bytes(self._scratch[sent:count]))
                direction.queue.append((now + self._delay, rest))
                direction.queued += len(rest)
            direction.starved = count == room
            if count < room and direction.source.interest != _GONE:
                return

    def _deliver(self, direction: _Direction, now: float) -> None:
        sink, queue = direction.sink.sock, direction.queue
        while queue and queue[0][0] <= now:
            due, chunk = queue[0]
            if chunk is None:
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
                queue.popleft()
                continue
            try:
                sent = sink.send(chunk)
            except BlockingIOError:
                sent = 0
            direction.queued -= sent
            if sent < len(chunk):
                queue[0] = (due, chunk[sent:])
                direction.blocked = True
                return
            queue.popleft()

    def _watch(self, end: _Endpoint) -> None:
        wanted = end.wanted()
        if end.interest == wanted or end.interest == _GONE:
            return
        # Interest 0 stays registered: a reset is reported even where nothing is asked for.
        (self._poll.register if end.interest == _NEW else self._poll.modify)(
            end.sock.fileno(), wanted
        )
        end.interest = wanted

    def _reset(self, end: _Endpoint) -> None:
        for other in (end, end.outbound.source):
            if other.sock.fileno() >= 0:
                other.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                self._forget(other)

    def _forget(self, end: _Endpoint) -> None:
        self._starved.discard(end.inbound)
        self._delayed.discard(end.inbound)
        del self._ends[end.sock.fileno()]
        end.sock.close()

    def _bound_window(self, sock: socket.socket) -> None:
        """Hold the receive window to the line's queue, or megabytes would wait in the kernel.

        A clamp rather than SO_RCVBUF, which net.core.rmem_max would cut short of the rate.
        """
        if hasattr(socket, "TCP_WINDOW_CLAMP"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, self._window)


def _resolve(address: Endpoint) -> list[_Address]:
    """All addresses of a name: localhost may be ::1 where the other listens on 127.0.0.1 only."""
    host = None if address.is_wildcard else address.host
    flags = socket.AI_PASSIVE if host is None else 0
    try:
        found = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=flags)
    except OSError as exc:
        raise StartError(f"cannot find an address for {address}: {exc.strerror}") from None
    return [(entry[0], entry[4]) for entry in found]
