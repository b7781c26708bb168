"""One application's socket, and the stream that it belongs to.

The relay reads only what the stream has room for and writes what the stream has ready. Everything
else (when there is room, what is ready) is the engine's.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from itertools import islice

from fastmtcp.engine.limits import KIB
from fastmtcp.engine.streams.stream import NO_ID, Stream
from fastmtcp.engine.wire.errors import ResetCode
from fastmtcp.io.buffers import BufferPool
from fastmtcp.io.loop import ERR, MORE, READ, WRITE, Loop, Timer
from fastmtcp.io.tcp import abort, reset_unless_finished, text_address, unacked

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

_PATIENCE = 2.0
"""Seconds without progress after which the last bytes, of an application that is gone or to one
that is to be reset, are given up."""

_LOOK_EVERY = 0.02


class Relay:
    """Connects a connected, non-blocking application socket with a stream.

    Either end may be reset with bytes still on their way:

    * The application's: a failed send() tells of it while what the application said before lies in
      the receive buffer, and the kernel keeps that until close(). It is read, as the stream has
      room, before the stream is reset (`_is_gone`).
    * The stream's: an RST of ours destroys what the application's kernel has not acknowledged. So
      it waits for that (`_leave`).
    """

    __slots__ = (
        "_answered",
        "_broken",
        "_budget",
        "_fd",
        "_is_gone",
        "_last_bytes",
        "_linger",
        "_loop",
        "_more",
        "_on_close",
        "_pool",
        "_progress",
        "_readable",
        "_sock",
        "_timer",
        "_whose",
        "_writable",
        "closed",
        "leaving",
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
        whose: str = "",
    ) -> None:
        """`progress` lets the session send and update its streams; `on_close` is called
        once, when the socket has been closed. `budget` is how many bytes of the application the
        stream takes; what comes behind them is dropped. None is without limit. `whose` is as in
        SessionDriver."""
        self._loop = loop
        self._pool = pool
        self._sock = sock
        self._fd = sock.fileno()
        self._progress = progress
        self._on_close = on_close
        self._budget = budget
        self._whose = whose
        self._answered = -1
        self._linger: Timer | None = None
        self.stream = stream
        self._readable = True
        self._writable = True
        self._more = False
        self._broken = False
        self._is_gone = False
        self._last_bytes = 0
        """What was left of the last bytes, or how many there were, when last looked at."""
        self._timer: Timer | None = None
        self.leaving = False
        """True once the stream is reset, and all that is left is the last bytes to the application:
        it is closed in a moment."""
        self.read_done = False
        self.write_done = False
        self.closed = False
        stream.watcher = self
        reset_unless_finished(sock, True)
        loop.watch(self._fd, self._on_event)

    def update(self) -> None:
        """Something happened to the stream: pass on what can be passed on."""
        if self.closed or self.leaving:
            return
        stream = self.stream
        if stream.reset_code is None and not self._is_gone:
            if self._writable and stream.receive.data.ready:
                self._write()
            if not self.write_done and stream.at_end and not self._is_gone:
                self._pass_end()
        if self.closed:
            return
        if stream.reset_code is not None:
            self._leave(stream.reset_code)
            return
        if self._is_gone:
            self._read_last_bytes()
            return
        if self._readable:
            if self._budget is not None and (self.read_done or not self._budget):
                self._discard()
            elif not self.read_done:
                self._read()
        if self._broken:
            self._look_for_reset()
        if self.read_done and self.write_done and not self.closed and not self._is_gone:
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
            self._forget()
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
            # The kernel tells of it behind all that came before.
            self._end_of_application(error)
            return
        if not count:
            self._end_reading()
            return
        if count < len(space) and not self._more:
            # If there is an end or an error behind it, its event is still to come.
            self._readable = False
        self._pass_on(space, count)
        if self._budget == 0 and self._readable:
            self._discard()

    def _pass_on(self, space: memoryview, count: int) -> None:
        """The application sent `count` bytes, which lie in the pool's `space`."""
        if self._budget is not None:
            own = min(count, self._budget)
            self._budget -= own
            self._look_beyond(space[own:count])
            count = own
        self.stream.write(self._pool.commit(count))

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
            # No edge comes for what is there already.
            self._loop.call_soon(self._go_on)
        except BlockingIOError:
            self._readable = False
        except OSError as error:
            self._end_of_application(error)

    def _look_beyond(self, view: memoryview) -> None:
        # Old browsers end a body with an empty line, which asks for nothing.
        if self._linger is None and bytes(view[:64]).strip(b"\r\n"):
            self._linger = self._loop.call_later(_LINGER, self._on_lingered)

    def _on_lingered(self) -> None:
        if self.closed or self.leaving or self._is_gone or self.read_done:
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
            self._lose(OSError(code, os.strerror(code)))

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
                self._lose(error)
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
            self._lose(error)
            return
        self.stream.take_end()

    # --- the end, in order or not -----------------------------------------------------------

    def _lose(self, error: OSError) -> None:
        """The application's connection is gone: what it sent before is still there to read."""
        if self.read_done or self._budget == 0 or self.stream.ending is not None:
            self._end_of_application(error)
            return
        log.debug("stream %d: application connection lost: %s", self.stream.stream_id, error)
        self._is_gone = True
        self._timer = self._loop.call_later(_PATIENCE, self._give_up_waiting)
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self.update()
        self._progress()

    def _read_last_bytes(self) -> None:
        """Of an application that is gone, as the stream has room: update() comes again with more.
        The end that recv() tells of now may be that of a reset: it never counts as a FIN."""
        stream = self.stream
        if stream.ending is not None:
            self.cancel()
            return
        while room := stream.room:
            space = self._pool.reserve()[:room]
            try:
                count = self._sock.recv_into(space)
            except OSError:  # nothing is there, and nothing comes any more
                count = 0
            if count:
                self._last_bytes += count
                self._pass_on(space, count)
            if not count or self._budget == 0:
                self.cancel()
                return

    def _give_up_waiting(self) -> None:
        if self._last_bytes:
            self._last_bytes = 0
            self._timer = self._loop.call_later(_PATIENCE, self._give_up_waiting)
            return
        self.cancel()
        self._progress()

    def _end_of_application(self, error: OSError) -> None:
        """All that the application sent was read, and its connection is gone: reset the stream, so
        that the other end sees it."""
        log.debug("stream %d: application connection lost: %s", self.stream.stream_id, error)
        self.cancel()

    def _leave(self, code: ResetCode) -> None:
        """The stream is reset: reset the application when it has what was written to it."""
        stream = self.stream
        if code is not ResetCode.CANCELLED:
            to = f" to {stream.target}" if stream.target else ""
            number = f" {stream.stream_id}" if stream.stream_id != NO_ID else ""
            text = "stream%s%s reset: %s"
            self._loop.lines.warning(log, self._whose, text, number, to, code.explanation)
        # A full socket is that of an application that does not read.
        self._last_bytes = unacked(self._sock) if self._writable and not self._is_gone else 0
        if not self._last_bytes:
            self.abort()
            return
        self.leaving = True
        self._loop.unwatch(self._fd)
        deadline = self._loop.now + _PATIENCE
        self._timer = self._loop.call_later(_LOOK_EVERY, partial(self._look_again, deadline))

    def _look_again(self, deadline: float) -> None:
        left = unacked(self._sock)
        now = self._loop.now
        # Who reads a complete stream slowly loses nothing to the end of a session.
        if left != self._last_bytes or self.stream.reset_code is ResetCode.SESSION_LOST:
            deadline = now + _PATIENCE
        self._last_bytes = left
        if not left or now >= deadline:
            self.abort()
        else:
            self._timer = self._loop.call_later(_LOOK_EVERY, partial(self._look_again, deadline))

    def _close(self) -> None:
        self._forget()
        reset_unless_finished(self._sock, False)
        self._sock.close()
        self._on_close(self)

    def _forget(self) -> None:
        if not self.leaving:
            self._loop.unwatch(self._fd)
        # What refers to this relay and is referred to by it would wait for the garbage collector.
        for timer in (self._timer, self._linger):
            if timer is not None:
                timer.cancel()
        self._timer = self._linger = None
        if self.stream.watcher is self:
            self.stream.watcher = None
        self.closed = True
