"""Files that are read again when they change, on a thread: reading blocks."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from fastmtcp.errors import FastmtcpError
from fastmtcp.io.loop import Loop

log = logging.getLogger("fastmtcp.files")

T = TypeVar("T")

_EVERY = 0.4
"""Seconds between two looks. inotify(7) would tell at once, but not on every file system."""

_TRY_AGAIN = 1.0


class FileWatch(Generic[T]):
    """Calls `changed(read())` on the loop, once soon after the start and then whenever one of the
    files is another one than before or has changed.

    What cannot be read stays as it was, and is tried again at each look: the failure may pass
    without a change of the files. It is logged when it begins and when its reason changes.
    """

    def __init__(
        self,
        loop: Loop,
        names: Sequence[str],
        read: Callable[[], T],
        changed: Callable[[T], None],
    ) -> None:
        """`read` runs on the thread and may raise FastmtcpError."""
        self._loop = loop
        self._names = names
        self._read = read
        self._changed = changed
        self._stop = threading.Event()
        self._start()

    def _start(self) -> None:
        if self._stop.is_set():
            return
        # A daemon: a file system that hangs must not keep the worker from exiting.
        thread = threading.Thread(target=self._work, name="files", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # No thread may be started right now; the files are as they were when they were read.
            self._loop.call_later(_TRY_AGAIN, self._start)

    def close(self) -> None:
        self._stop.set()

    def _work(self) -> None:
        seen: list[tuple[int, ...] | None] | None = None
        trouble = ""
        while True:
            now = [_state(name) for name in self._names]
            if now != seen:
                try:
                    found = self._read()
                except Exception as error:
                    reason = str(error) if isinstance(error, FastmtcpError) else repr(error)
                    if reason != trouble:
                        log.warning("%s; going on with what was read before", reason)
                    trouble = reason
                else:
                    if not self._loop.call_threadsafe(partial(self._give, found)):
                        return
                    if trouble:
                        log.info("%s could be read again", ", ".join(self._names))
                    seen, trouble = now, ""
            if self._stop.wait(_EVERY):
                return

    def _give(self, found: T) -> None:
        if not self._stop.is_set():
            self._changed(found)


def _state(name: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(name)
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
