"""Connections that a test can break: a small TCP relay with shears.

Everything happens on one thread of its own; what a test asks for is done there, so no two threads
ever use a socket at the same time.
"""

from __future__ import annotations

import contextlib
import queue
import selectors
import socket
import threading
from collections.abc import Callable

from tests.io.net import WAIT, abort

_READ = 1 << 18


class Wire:
    """One relayed connection; `a` is the side that connected."""

    def __init__(self, box: WireBox, a: socket.socket, b: socket.socket) -> None:
        self._box = box
        self._ends = (a, b)
        self._pending: dict[socket.socket, bytes] = {a: b"", b: b""}
        self._at_end = {a: False, b: False}
        self.carried = 0
        self.silent = False
        self.open = True
        for sock in self._ends:
            sock.setblocking(False)

    def cut(self) -> None:
        """Reset both sides."""
        self._box.do(self._cut)

    def hang_up(self) -> None:
        """End both sides with a FIN, in the middle of whatever they say."""
        self._box.do(self._close)

    def silence(self) -> None:
        """Forward nothing any more, without a word to anybody."""
        self._box.do(self._silence)

    # --- on the box's thread ---------------------------------------------------------------

    def _cut(self) -> None:
        if self.open:
            self._leave()
            for sock in self._ends:
                abort(sock)

    def _close(self) -> None:
        if self.open:
            self._leave()
            for sock in self._ends:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def _silence(self) -> None:
        self.silent = True
        self._watch()

    def _leave(self) -> None:
        self.open = False
        for sock in self._ends:
            self._box.interest(sock, 0, self.on_event)

    def _other(self, sock: socket.socket) -> socket.socket:
        return self._ends[sock is self._ends[0]]

    def _watch(self) -> None:
        for sock in self._ends:
            mask = 0
            if self.open and not self.silent:
                # Read only what there is room for at the other side.
                if not self._pending[self._other(sock)] and not self._at_end[sock]:
                    mask |= selectors.EVENT_READ
                if self._pending[sock]:
                    mask |= selectors.EVENT_WRITE
            self._box.interest(sock, mask, self.on_event)

    def on_event(self, sock: socket.socket, mask: int) -> None:
        if not self.open or self.silent:
            return
        try:
            if mask & selectors.EVENT_READ and not self._pending[self._other(sock)]:
                self._read(sock)
            self._flush(sock)
            self._flush(self._other(sock))
        except OSError:
            self._cut()
            return
        if all(self._at_end.values()) and not any(self._pending.values()):
            self._close()
        else:
            self._watch()

    def _read(self, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            content = sock.recv(_READ)
            self.carried += len(content)
            self._pending[self._other(sock)] = content
            self._at_end[sock] = not content

    def _flush(self, sock: socket.socket) -> None:
        if self._pending[sock]:
            with contextlib.suppress(BlockingIOError):
                self._pending[sock] = self._pending[sock][sock.send(self._pending[sock]) :]
        if self._at_end[self._other(sock)] and not self._pending[sock]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)


class WireBox:
    """All wires of a test, and their thread."""

    def __init__(self) -> None:
        self.wires: list[Wire] = []
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._on_wake)
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._listeners: list[socket.socket] = []
        self._running = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> WireBox:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.do(self._stop)
        self._thread.join(WAIT)
        assert not self._thread.is_alive()

    def join(self, a: socket.socket, b: socket.socket) -> Wire:
        """Relay between two connected sockets, which belong to the wire from now on."""
        made: list[Wire] = []
        self.do(lambda: made.append(self._add(a, b)))
        return made[0]

    def listen(self, target: tuple[str, int]) -> int:
        """Relay every connection to the port returned to `target`."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        listener.setblocking(False)
        self._listeners.append(listener)

        def on_connection(_sock: socket.socket, _mask: int) -> None:
            a, _ = listener.accept()
            try:
                b = socket.create_connection(target, WAIT)
            except OSError:
                abort(a)
            else:
                self._add(a, b)

        self.do(lambda: self.interest(listener, selectors.EVENT_READ, on_connection))
        port: int = listener.getsockname()[1]
        return port

    def alive(self) -> list[Wire]:
        return [wire for wire in list(self.wires) if wire.open and not wire.silent]

    def do(self, task: Callable[[], None]) -> None:
        """Do something on the thread, and wait until it is done."""
        done = threading.Event()

        def run() -> None:
            task()
            done.set()

        self._tasks.put(run)
        self._wake_write.send(b"x")
        assert done.wait(WAIT)

    def interest(
        self, sock: socket.socket, mask: int, handler: Callable[[socket.socket, int], None]
    ) -> None:
        """Watch a socket for `mask` from now on, 0 for no more."""
        known = sock in self._selector.get_map()
        if mask and known:
            self._selector.modify(sock, mask, handler)
        elif mask:
            self._selector.register(sock, mask, handler)
        elif known:
            self._selector.unregister(sock)

    # --- on the thread ---------------------------------------------------------------------

    def _add(self, a: socket.socket, b: socket.socket) -> Wire:
        wire = Wire(self, a, b)
        self.wires.append(wire)
        wire._watch()
        return wire

    def _run(self) -> None:
        while self._running:
            for key, mask in self._selector.select():
                key.data(key.fileobj, mask)
        for listener in self._listeners:
            listener.close()
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def _on_wake(self, _sock: socket.socket, _mask: int) -> None:
        self._wake_read.recv(1)
        self._tasks.get()()

    def _stop(self) -> None:
        self._running = False
        for wire in self.wires:
            wire._close()
