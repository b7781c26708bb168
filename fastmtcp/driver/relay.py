"""One application's socket, and the stream that it belongs to.

The relay reads only what the stream has room for and writes what the stream has ready. Everything
else (when there is room, what is ready) is the engine's.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from itertools import islice

from fastmtcp.engine.limits import KIB
from fastmtcp.engine.streams.stream import NO_ID, Stream
from fastmtcp.engine.wire.errors import ResetCode
from fastmtcp.io.buffers import BufferPool
from fastmtcp.io.loop import ERR, MORE, READ, WRITE, Loop, Timer
from fastmtcp.io.tcp import abort, reset_unless_finished, text_address

log = logging.getLogger("fastmtcp.relay")

_MIN_ROOM = 16 * KIB
"""Reading less than this at a time would cut the stream into crumbs. It is below a quarter of the
smallest window, so there is always either this much room, or credit on its way."""

_MAX_VIEWS = 64
_MAX_DISCARDS = 16
_LINGER = 2.0
"""Seconds without a byte of the answer after which an application that has sent beyond its budget
is taken to have all of it: a server that leaves the connection open is told the end. If the answer
has ended, it is the time to close: our own close would be a reset if bytes still came, and destroy
what the application has not read yet."""


class Relay:
    """Connects a connected, non-blocking application socket with a stream."""

    __slots__ = (
        "_answered",
        "_broken",
        "_budget",
        "_fd",
        "_linger",
        "_loop",
        "_more",
        "_on_close",
        "_pool",
        "_progress",
        "_readable",
        "_sock",
        "_writable",
        "closed",
        "read_done",
        "stream",
        "write_done",
    )

    def __init__(
        self,
        loop: Loop,
        pool: BufferPool,
        sock: socket.socket,
        stream: Stream,
        progress: Callable[[], None],
        on_close: Callable[[Relay], None],
        budget: int | None = None,
    ) -> None:
        """`progress` lets the session send and update its streams; `on_close` is called
        once, when the socket has been closed. `budget` is how many bytes of the application the
        stream takes; what comes behind them is dropped. None is without limit."""
        self._loop = loop
        self._pool = pool
        self._sock = sock
        self._fd = sock.fileno()
        self._progress = progress
        self._on_close = on_close
        self._budget = budget
        self._answered = -1
        self._linger: Timer | None = None
        self.stream = stream
        self._readable = True
        self._writable = True
        self._more = False
        self._broken = False
        self.read_done = False
        self.write_done = False
        self.closed = False
        stream.watcher = self
        reset_unless_finished(sock, True)
        loop.watch(self._fd, self._on_event)

    def update(self) -> None:
        """Something happened to the stream: pass on what can be passed on."""
        if self.closed:
            return
        stream = self.stream
        if stream.reset_code is not None:
            if stream.reset_code is not ResetCode.CANCELLED:
                to = f" to {stream.target}" if stream.target else ""
                reason = stream.reset_code.explanation
                number = f" {stream.stream_id}" if stream.stream_id != NO_ID else ""
                log.warning("stream%s%s reset: %s", number, to, reason)
            self.abort()
            return
        if self._writable and stream.receive.data.ready:
            self._write()
        if not self.write_done and stream.at_end:
            self._pass_end()
        if self._readable:
            if self._budget is not None and (self.read_done or not self._budget):
                self._discard()
            elif not self.read_done:
                self._read()
        if self._broken:
            self._look_for_reset()
        if self.read_done and self.write_done and not self.closed:
            self._close()

    def move(self, progress: Callable[[], None], on_close: Callable[[Relay], None]) -> None:
        """The stream is in another session now; both as in the constructor."""
        self._progress = progress
        self._on_close = on_close

    def address(self) -> str:
        """Of the application; empty once it is gone."""
        try:
            return text_address(self._sock.getpeername())
        except OSError:
            return ""

    def cancel(self) -> None:
        """Reset the stream and the application's connection."""
        self.stream.reset(ResetCode.CANCELLED)
        self.abort()

    def abort(self) -> None:
        """Reset the application's connection."""
        if not self.closed:
            self._loop.unwatch(self._fd)
            self.closed = True
            abort(self._sock)
            self._on_close(self)

    def _on_event(self, mask: int) -> None:
        if mask & READ:
            self._readable = True
            if mask & MORE:
                self._more = True
            if mask & ERR:
                self._broken = True
        if mask & WRITE:
            self._writable = True
        self.update()
        self._progress()

    def _read(self) -> None:
        stream = self.stream
        room = stream.room
        if room < _MIN_ROOM:
            return
        space = self._pool.reserve()
        if room < len(space):
            space = space[:room]
        try:
            count = self._sock.recv_into(space)
        except BlockingIOError:
            self._readable = self._more = False
            return
        except OSError as error:
            self._fail(error)
            return
        if not count:
            self._end_reading()
            return
        if count < len(space) and not self._more:
            # If there is an end or an error behind it, its event is still to come.
            self._readable = False
        if self._budget is not None:
            own = min(count, self._budget)
            self._budget -= own
            self._look_beyond(space[own:count])
            count = own
        stream.write(self._pool.commit(count))
        if self._budget == 0 and self._readable:
            self._discard()

    def _discard(self) -> None:
        """Drop what comes behind the budget. It is no end: the other side, which may take an end
        for "nobody wants the answer any more", is told nothing of it."""
        try:
            for _ in range(_MAX_DISCARDS):
                space = self._pool.reserve()
                count = self._sock.recv_into(space)
                if not count:
                    self._readable = False
                    self._end_reading()
                    return
                self._look_beyond(space[:count])
        except BlockingIOError:
            self._readable = False
        except OSError as error:
            self._fail(error)

    def _look_beyond(self, view: memoryview) -> None:
        # Old browsers end a body with an empty line, which asks for nothing.
        if self._linger is None and bytes(view[:64]).strip(b"\r\n"):
            self._linger = self._loop.call_later(_LINGER, self._on_lingered)

    def _on_lingered(self) -> None:
        if self.closed or self.read_done:
            return
        receive = self.stream.receive
        answered = receive.window.taken
        if self.write_done or (0 < answered == self._answered and not receive.data.ready):
            self._end_reading()
            self.update()
            self._progress()
            return
        self._answered = answered
        self._linger = self._loop.call_later(_LINGER, self._on_lingered)

    def _end_reading(self) -> None:
        self.read_done = True
        self.stream.finish()

    def _look_for_reset(self) -> None:
        """A reset shows at the next recv(), behind the bytes that came before it. But after a FIN,
        or while the stream has no room, there is no recv(), and no other edge comes."""
        if self.closed or not (self.read_done or self.stream.room < _MIN_ROOM):
            return
        self._broken = False
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(OSError(code, os.strerror(code)))

    def _write(self) -> None:
        stream = self.stream
        ready = stream.receive.data.ready
        while ready:
            views = list(islice(ready, _MAX_VIEWS))
            try:
                count = self._sock.sendmsg(views)
            except BlockingIOError:
                self._writable = False
                return
            except OSError as error:
                self._fail(error)
                return
            size = sum(map(len, views))
            # A bytearray that is still exported could not grow, and a view pins its slab.
            views.clear()
            stream.take(count, self._loop.now)
            if count < size:
                self._writable = False
                return

    def _pass_end(self) -> None:
        self.write_done = True
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fail(error)
            return
        self.stream.take_end()

    def _fail(self, error: OSError) -> None:
        """The application's connection is gone: reset the stream, so that the other end sees it."""
        log.debug("stream %d: application connection lost: %s", self.stream.stream_id, error)
        self.cancel()

    def _close(self) -> None:
        self._loop.unwatch(self._fd)
        self.closed = True
        if self._linger is not None:
            self._linger.cancel()
        reset_unless_finished(self._sock, False)
        self._sock.close()
        self._on_close(self)
