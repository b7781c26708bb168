"""Logging to standard error that never blocks the loop.

A log call puts the finished message into a bounded queue; a thread of the process writes it out.
When whoever reads standard error falls behind, messages are dropped and counted, and the count is
logged once there is room again.
"""

from __future__ import annotations

import copy
import errno
import logging
import logging.handlers
import os
import queue
import select
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec

LOGGER_NAME = "fastmtcp"
# Some 4 MB with lines of usual length; a burst of a thousand closed streams fits.
QUEUE_LIMIT = 4096
STOP_TIMEOUT = 2.0

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
# A peer or an application chooses parts of many messages: without this it could forge lines or
# send control sequences to the terminal.
_ESCAPES: Final = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x09
} | {0x0A: "\\n", 0x0D: "\\r", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def start(
    role: str, level: str, fmt: str, *, fd: int = 2, queue_limit: int = QUEUE_LIMIT
) -> Callable[[], None]:
    """Send the messages of the `fastmtcp` loggers of this process to `fd`; return what stops it.

    `role` names the process in each line, for example `client[1]`; `level` is debug, info,
    warning or error; `fmt` is text or json. To be called in each process: it starts a thread,
    which does not survive a fork. A second call replaces the first, also one made before a fork.

    The returned callable writes out what is queued, waiting at most STOP_TIMEOUT seconds for a
    reader that has stopped, and restores the logger. It may be called more than once.

    A file descriptor that cannot be written to costs the messages and nothing else. Raises
    ValueError for an unknown level or format.
    """
    if level not in _LEVELS:
        raise ValueError(f"unknown log level {level!r}")
    if fmt not in ("text", "json"):
        raise ValueError(f"unknown log format {fmt!r}")
    logger = logging.getLogger(LOGGER_NAME)
    for old in logger.handlers[:]:
        if isinstance(old, _Handler):
            old.stop()
    handler = _Handler(_Writer(fd, _Text(role) if fmt == "text" else _Json(role)), queue_limit)
    handler.install(logger, _LEVELS[level])
    return handler.stop


class _Handler(logging.handlers.QueueHandler):
    """The loop's side: finishes the message, because arguments may change, and queues it."""

    def __init__(self, writer: _Writer, limit: int) -> None:
        # SimpleQueue: its put neither waits for a lock that the writer holds nor can deadlock
        # with itself when a signal handler logs.
        self._records: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
        super().__init__(self._records)
        self._limit = limit
        self._writer = writer
        self._dropped = 0
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._restore: Callable[[], None] | None = None

    def install(self, logger: logging.Logger, level: int) -> None:
        old_level, old_propagate = logger.level, logger.propagate

        def restore() -> None:
            logger.removeHandler(self)
            logger.setLevel(old_level)
            logger.propagate = old_propagate

        self._restore = restore
        logger.addHandler(self)
        logger.setLevel(level)
        logger.propagate = False
        self._start_thread()

    def stop(self) -> None:
        if self._restore is None:
            return
        self._restore()
        self._restore = None
        # In a child the thread is gone, and the queue may have been copied in mid-change.
        if self._pid == os.getpid():
            self._records.put(None)
            if self._thread is not None:
                self._thread.join(STOP_TIMEOUT)

    def close(self) -> None:
        # logging calls this at exit, so that a program that forgot to stop loses nothing either.
        self.stop()
        super().close()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        record = copy.copy(record)
        try:
            record.msg = record.getMessage()
        except Exception as error:
            record.msg = f"{record.msg!r} with arguments that do not fit it ({error})"
        if record.exc_info:
            record.exc_text = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        record.args = record.exc_info = record.stack_info = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        if self._records.qsize() >= self._limit:
            self._dropped += 1
        else:
            self._records.put(record)
        if self._thread is None:
            self._start_thread()

    def _start_thread(self) -> None:
        """If there may be no more threads right now, write what can be written at once; the rest
        waits for the next message."""
        thread = threading.Thread(target=self._write_out, name="log", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            while not self._records.empty() and self._writer.is_ready():
                record = self._records.get()
                if record is not None:
                    self._writer.write(record)
        else:
            self._thread = thread

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        # The inherited one writes to standard error from here, and so could block the loop.
        self._dropped += 1

    def _write_out(self) -> None:
        reported = 0
        while (record := self._records.get()) is not None:
            self._writer.write(record)
            # Messages are dropped while the queue is full, so there is always a later record
            # that comes here with the queue empty and the count final for this burst.
            if self._records.empty() and self._dropped > reported:
                count, reported = self._dropped - reported, self._dropped
                self._writer.write(_dropped_record(count))
        if self._dropped > reported:
            self._writer.write(_dropped_record(self._dropped - reported))


class _Writer:
    """The thread's side: formats a record and writes it, whatever becomes of the descriptor."""

    def __init__(self, fd: int, render: Callable[[logging.LogRecord], bytes]) -> None:
        self._fd = fd
        self._render = render

    def write(self, record: logging.LogRecord) -> None:
        view = memoryview(self._render(record) + b"\n")
        # Past sys.stderr: its lock, held by a daemon thread, aborts the interpreter at exit.
        # One write for a line: lines of several processes on one pipe do not mix (PIPE_BUF).
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    return  # EPIPE, EIO, ENOSPC, EBADF: nobody to tell
                self._wait()

    def is_ready(self) -> bool:
        """A line would be taken at once."""
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        return bool(poller.poll(0))

    def _wait(self) -> None:
        # Somebody who shares the terminal or the pipe has made it non-blocking.
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        poller.poll(1000)


def _dropped_record(count: int) -> logging.LogRecord:
    noun = "message was" if count == 1 else "messages were"
    text = f"{count} log {noun} dropped, because standard error was not read fast enough"
    return logging.LogRecord(f"{LOGGER_NAME}.logs", logging.WARNING, "", 0, text, None, None)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


class _Text:
    """`2026-11-22T17:40:01.123Z info  client[1] message`; a traceback follows, indented."""

    def __init__(self, role: str) -> None:
        self._role = role

    def __call__(self, record: logging.LogRecord) -> bytes:
        level = record.levelname.lower()
        lines = [str(record.msg)]
        if record.exc_text:
            lines += record.exc_text.split("\n")
        text = "\n    ".join(line.translate(_ESCAPES) for line in lines)
        line = f"{_time(record)} {level:<5} {self._role} {text}"
        return line.encode("utf-8", "backslashreplace")


class _Json:
    """One object with time, level, role, pid, logger, message and, if there is one, exception."""

    def __init__(self, role: str) -> None:
        self._role = role

    def __call__(self, record: logging.LogRecord) -> bytes:
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "role": self._role,
            "pid": record.process or os.getpid(),
            "logger": record.name,
            "message": _encodable(str(record.msg)),
        }
        if record.exc_text:
            entry["exception"] = _encodable(record.exc_text)
        return msgspec.json.encode(entry)


def _encodable(text: str) -> str:
    # File names may hold lone surrogates, which UTF-8 has not.
    return text.encode("utf-8", "backslashreplace").decode()
