"""The event loop of a worker: edge-triggered epoll, timers, and things to do next.

Why edge-triggered (epoll(7)): a socket is registered once, for reading and writing, and never
again; its owner remembers what it can do until the kernel says EAGAIN. Level-triggered, a bulk
transfer would switch interest on and off with a system call for every chunk.

The kernel traps of it:
* An edge comes once. Who stops before EAGAIN (or a short read, which says the same for a stream
  socket) must go on by himself: call_soon().
* A short read may hide a FIN that is already there, without another edge: EPOLLRDHUP in the event
  says so, and the owner then reads until 0.
* Urgent data (TCP's URG, MSG_OOB) makes a short read too: recv() stops at the mark, whatever lies
  behind it. EPOLLPRI says that there is a mark ahead: the owner then reads until EAGAIN (MORE).
* An edge is told once, to whoever owns the descriptor then: a FIN or a reset that came with the
  bytes for one owner is never told to the next, whose short read then looks like an empty socket.
  EPOLL_CTL_MOD, even with the same events, looks at the descriptor anew and queues what there is
  (ep_modify() in fs/eventpoll.c), so watch() does that at every hand-over. The new owner gets an
  event with all that is there: it need not begin by trying, and if it does, it may trust a short
  read, as the end is told behind it.
* An error is told once too: the recv(), send() or SO_ERROR that returns it clears it, and recv()
  then says 0 as after a FIN. Who gets an error may not hand the socket over.
* A descriptor closed and opened again within one batch of events gets the old one's event. So
  every handler must bear an event without a cause: its recv() or send() just says EAGAIN.
* A process that was stopped (Ctrl-Z, a frozen cgroup, a paused machine) comes back with all its
  deadlines over, and its poll with nothing: epoll_wait() says EINTR, and Python, whose time-out is
  over too, does not look again. So the clock of the loop stands still while the process does, and
  after that timers wait until all descriptors had a chance to tell what has arrived.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

from fastmtcp.io.lines import Lines

IN = getattr(select, "EPOLLIN", 1)
PRI = getattr(select, "EPOLLPRI", 2)
OUT = getattr(select, "EPOLLOUT", 4)
ERR = getattr(select, "EPOLLERR", 8)
HUP = getattr(select, "EPOLLHUP", 16)
RDHUP = getattr(select, "EPOLLRDHUP", 0x2000)
_EDGES = IN | PRI | OUT | RDHUP | getattr(select, "EPOLLET", 1 << 31)

READ = IN | HUP | ERR | RDHUP
"""Events that a reader should look at: errors and hang-ups show at the next recv()."""
MORE = RDHUP | PRI
"""Events after which a short read is no empty socket, until EAGAIN or the end."""
WRITE = OUT | HUP | ERR

_MAX_WAIT = 60.0
_BATCH = 256

_ABSENCE = 1.0
"""Seconds beyond what was asked for between two looks at the clock, from which on this process was
not there: no turn takes so long."""

Handler = Callable[[int], None]


class Timer:
    """A call in the future; cancel() forgets it."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None] | None) -> None:
        self.when = when
        self.callback = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """One per worker. `now` is when the current batch of events began, by clock()."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen = clock()
        self._waits = 0.0
        self._absent = 0.0
        self._absent_until = float("-inf")
        self._to_hear = 0
        self.now = self._seen
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._soon: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._running = False
        self.lines = Lines(self)
        """The log lines that others can cause as often as they like."""
        self._from_outside: deque[Callable[[], None]] = deque()
        # Held while the descriptor is used or closed, so that nobody writes to the next file
        # that gets its number. The garbage collector may call from within a call.
        self._wake_lock = threading.RLock()
        self._wake_read, self._wake_write = _wake_up_pair()
        self._epoll.register(self._wake_read, IN)

    def clock(self) -> float:
        """Seconds of a monotonic clock that stands still while the process does: that nothing was
        heard meanwhile is nobody else's fault. Other processes have other times."""
        seen, self._seen = self._seen, self._clock()
        gap = self._seen - seen - self._waits
        if gap > _ABSENCE and self._running:
            # Once a second at most: where each turn takes so long, the machine is slow, and time
            # that stood still for ever would be worse.
            if seen - self._absent_until >= _ABSENCE:
                self._absent += gap
                self._to_hear = 1 + len(self._handlers) // _BATCH
            self._absent_until = self._seen
        return self._seen - self._absent

    def watch(self, fd: int, handler: Handler) -> None:
        """Call `handler(events)` at every edge of `fd`, until unwatch().

        A second call hands the descriptor to another owner, who is told all that is there: bytes,
        end and error, also those that the first one was told.
        """
        if fd in self._handlers:
            self._epoll.modify(fd, _EDGES)
        else:
            self._epoll.register(fd, _EDGES)
        self._handlers[fd] = handler

    def watch_level(self, fd: int, handler: Handler) -> None:
        """Call `handler(events)` for as long as `fd` is readable (listeners, pipes)."""
        self._epoll.register(fd, IN)
        self._handlers[fd] = handler

    def hold(self, fd: int, on: bool) -> None:
        """Tell nothing of `fd`, which watch_level() watches, while `on`. It stays one of
        `descriptors`."""
        self._epoll.modify(fd, 0 if on else IN)

    def unwatch(self, fd: int) -> None:
        """Forget `fd`; call it before closing. A copy of it in another process (after a fork or
        a handoff) would otherwise go on sending events."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` after the events at hand."""
        self._soon.append(callback)

    def call_threadsafe(self, callback: Callable[[], None]) -> bool:
        """From any thread: call `callback` on the loop. False if the loop is closed."""
        with self._wake_lock:
            if self._wake_write < 0:
                return False
            self._from_outside.append(callback)
            with contextlib.suppress(BlockingIOError):  # there are wake-ups enough already
                os.write(self._wake_write, _ONE)
        return True

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(when, callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        return self.call_at(self.clock() + delay, callback)

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        """Serve events until stop()."""
        self._seen = self._clock()
        self._running = True
        poll = self._epoll.poll
        handlers = self._handlers
        soon = self._soon
        while self._running:
            self._waits = timeout = self._timeout()
            events = poll(timeout, _BATCH)
            self.now = self.clock()
            self._waits = 0.0
            for fd, mask in events:
                handler = handlers.get(fd)
                if handler is not None:
                    handler(mask)
                elif fd == self._wake_read:
                    os.read(fd, 4096)
                    self.run_calls()
            if self._to_hear:
                self._to_hear -= 1
            elif self._timers:
                self._run_timers()
            for _ in range(len(soon)):
                soon.popleft()()

    def close(self) -> None:
        """Close the descriptors of the loop itself; those that are watched are their owners'."""
        self._handlers.clear()
        self._epoll.close()
        with self._wake_lock:
            for fd in {self._wake_read, self._wake_write}:
                if fd >= 0:
                    os.close(fd)
            self._wake_read = self._wake_write = -1

    @property
    def descriptors(self) -> list[int]:
        """All that the loop watches, and its own."""
        return [*self._handlers, self._epoll.fileno(), self._wake_write]

    def run_calls(self) -> None:
        """Do what other threads have asked for; after close(), what has come too late."""
        calls = self._from_outside
        for _ in range(len(calls)):
            calls.popleft()()

    def _timeout(self) -> float:
        if self._soon or self._to_hear:
            return 0.0
        timers = self._timers
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
        if not timers:
            return _MAX_WAIT
        return min(_MAX_WAIT, max(0.0, timers[0][0] - self.clock()))

    def _run_timers(self) -> None:
        timers = self._timers
        due = []
        # What these set for a time that has come waits for the next turn. Whoever cannot do in this
        # one what is due would else be asked again and again, and nobody else would get a turn.
        while timers and timers[0][0] <= self.now:
            due.append(heapq.heappop(timers)[2])
        for timer in due:
            if timer.callback is not None:
                timer.callback()


_ONE = (1).to_bytes(8, "little")
"""What an eventfd adds to its count (eventfd(2))."""


def _wake_up_pair() -> tuple[int, int]:
    """Descriptors to read from and write to; the same one where the system has eventfd."""
    if hasattr(os, "eventfd"):
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return fd, fd
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    return read, write
