"""The loop of the library: one daemon thread for all Clients and Servers of the process.

It is there while any of them is. Everything that belongs to a Core happens on it; other threads
only call LoopThread.call().

In a process that was forked from this one the thread does not exist, but its descriptors do. They
are replaced there: the child neither sends on the parent's connections nor keeps them open.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import socket
import threading
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Protocol, TypeVar

from fastmtcp.api.answer import Answer
from fastmtcp.api.connection import Connection, Names, open_ends
from fastmtcp.api.errors import closed_error
from fastmtcp.io.loop import Loop

T = TypeVar("T")

log = logging.getLogger("fastmtcp.library")
_quiet = logging.NullHandler()
"""Without it Python would print the warnings of a library whose user has not set up logging."""

_JOIN_TIMEOUT = 5.0


class Tenant(Protocol):
    """What lives on the thread: a fastmtcp.api.core.Core."""

    delivered: Answer[None]
    """Done when nothing of it waits to be delivered any more."""
    connections: dict[Names, Connection]
    """By the names of the user's sockets. Changed only on the loop."""

    def forget_waiting(self) -> None:
        """Leave the threads that wait in connect() or accept() without an answer; on the loop."""

    def shut(self, still_open: Collection[Names]) -> None:
        """Reset the connections `still_open`, and end with the others; on the loop."""

    def crashed(self) -> None:
        """End at once: something on the loop is broken."""

    def abandon(self) -> None:
        """The process exits, and the loop has stopped."""


class ForkedError(RuntimeError):
    """A Client or Server of the parent process was used in its child."""


class LoopThread:
    """See the module. Use join_loop() to get it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.pid = os.getpid()
        self.tenants: set[Tenant] = set()
        """Changed only while _lock is held."""
        self._thread = threading.Thread(target=self._run, name="fastmtcp", daemon=True)

    def start(self) -> None:
        logging.getLogger("fastmtcp").addHandler(_quiet)
        self._thread.start()

    def call(self, function: Callable[..., T], *arguments: object) -> Answer[T]:
        """Call `function` on the loop; the answer is what it returns or raises.

        Raises:
            ForkedError: this is a child of the process in which the loop runs.
            OSError: EBADF, the loop is closed.
        """
        self.check_process()
        answer: Answer[T] = Answer()

        def run() -> None:
            try:
                value = function(*arguments)
            except BaseException as error:
                answer.set_exception(error)
            else:
                answer.set_result(value)

        if threading.current_thread() is self._thread:
            run()
        elif not self.loop.call_threadsafe(run):
            raise closed_error("pool")
        return answer

    def post(self, function: Callable[[], None]) -> None:
        """Call `function` on the loop, if there still is one. Waits for nothing: for finalizers,
        which may run anywhere."""
        if self.pid == os.getpid():
            self.loop.call_threadsafe(function)

    def check_process(self) -> None:
        if self.pid != os.getpid():
            raise ForkedError(
                "this was made before the fork and belongs to the parent process; make a new one"
            )

    def leave(self, tenant: Tenant) -> None:
        """`tenant` has ended; with the last one the thread ends too."""
        global _shared
        with _lock:
            self.tenants.discard(tenant)
            if self.tenants:
                return
            if _shared is self:
                _shared = None
        self.loop.call_threadsafe(self.loop.stop)

    def join_if_ending(self) -> None:
        """Wait for the thread if nobody needs it any more."""
        if not self.tenants and self._thread is not threading.current_thread():
            self.join()

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join(_JOIN_TIMEOUT)

    def _run(self) -> None:
        global _shared
        try:
            self.loop.run()
        except BaseException:
            log.exception("the thread of fastmtcp crashed; its connections are reset")
            self._run_to_the_end()
        finally:
            with _lock:
                if _shared is self:
                    _shared = None
                left = list(self.tenants)
                self.tenants.clear()
                _threads.discard(self)
            for tenant in left:
                tenant.abandon()
            if left:
                _replace(self.loop.descriptors)
            self.loop.lines.sum_up()
            self.loop.close()
            self.loop.run_calls()
            if _shared is None:
                logging.getLogger("fastmtcp").removeHandler(_quiet)

    def _run_to_the_end(self) -> None:
        """After a crash: end all that is there in order, as far as that is possible."""
        global _shared
        with _lock:
            if _shared is self:
                _shared = None
            left = list(self.tenants)
        try:
            for tenant in left:
                tenant.crashed()
            if left:
                self.loop.run()
        except BaseException:
            log.exception("the thread of fastmtcp crashed again")


_lock = threading.RLock()
_shared: LoopThread | None = None
_threads: set[LoopThread] = set()


def join_loop(tenant: Tenant) -> LoopThread:
    """The thread of this process, which runs until `tenant` leaves it.

    Raises:
        OSError: there may be no more threads or descriptors.
    """
    global _shared
    with _lock:
        thread = _shared
        if thread is None:
            thread = LoopThread()
            try:
                thread.start()
            except RuntimeError as error:
                thread.loop.close()
                raise OSError(errno.EAGAIN, str(error)) from None
            _shared = thread
            _threads.add(thread)
        thread.tenants.add(tenant)
        return thread


def find_connection(names: Names) -> tuple[LoopThread, Connection] | None:
    """The connection that a socket with these names is the user's end of."""
    for thread, tenant in _everybody():
        found = tenant.connections.get(names)
        if found is not None:
            return thread, found
    return None


def _everybody() -> list[tuple[LoopThread, Tenant]]:
    with _lock:
        return [(thread, tenant) for thread in _threads for tenant in thread.tenants]


@atexit.register
def _at_exit() -> None:
    """Close the user's sockets, as the kernel is about to, and deliver what was written.

    Daemon threads still run. Those that wait for us stay where they are, as with a socket: an
    exception now would only be printed.
    """
    tenants = _everybody()
    names = {name for _, tenant in tenants for name in list(tenant.connections)}
    if names:
        _replace_by_closed(open_ends(names))
    for thread, tenant in tenants:
        thread.post(tenant.forget_waiting)
        thread.post(partial(tenant.shut, ()))
    for _, tenant in tenants:
        tenant.delivered.result()
    for thread in {thread for thread, _ in tenants}:
        # Finalization must not find it at work.
        thread.post(thread.loop.stop)
        thread.join()


def _after_fork() -> None:
    global _lock, _shared
    _lock = threading.RLock()
    threads = list(_threads)
    _threads.clear()
    _shared = None
    for thread in threads:
        # Not unwatched: the parent uses the same epoll instance.
        _replace(thread.loop.descriptors)


def _replace(descriptors: Iterable[int]) -> None:
    """Close descriptors whose owners do not know of it: by another file in their place, until
    the owners close that."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    _put_in_place(nothing, descriptors)
    os.close(nothing)


def _replace_by_closed(descriptors: Iterable[int]) -> None:
    """The same for sockets: what comes in their place is at its end and takes nothing."""
    ended, other = socket.socketpair()
    other.close()
    _put_in_place(ended.fileno(), descriptors)
    ended.close()


def _put_in_place(new: int, descriptors: Iterable[int]) -> None:
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.dup2(new, fd, inheritable=False)


os.register_at_fork(
    before=lambda: _lock.acquire(),
    after_in_parent=lambda: _lock.release(),
    after_in_child=_after_fork,
)
