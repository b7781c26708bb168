from __future__ import annotations

import errno
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastmtcp import logs
from hypothesis import given
from hypothesis import strategies as st

LOGGER = logging.getLogger("fastmtcp.test")
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


class Pipe:
    """A pipe as standard error, read by the test."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        self._open = {self.read_fd, self.write_fd}

    def close(self, *fds: int) -> None:
        for fd in fds or tuple(self._open):
            self._open.discard(fd)
            os.close(fd)

    def read_all(self) -> bytes:
        """All that was written; call it when nobody writes any more."""
        self.close(self.write_fd)
        parts = []
        while part := os.read(self.read_fd, 65536):
            parts.append(part)
        return b"".join(parts)

    def lines(self) -> list[str]:
        return self.read_all().decode().splitlines()

    def fill(self) -> int:
        """Write until it is full and return the number of bytes."""
        os.set_blocking(self.write_fd, False)
        size = 0
        try:
            while True:
                size += os.write(self.write_fd, b"-" * 4096)
        except BlockingIOError:
            os.set_blocking(self.write_fd, True)
            return size


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def test_text_line(pipe: Pipe) -> None:
    stop = logs.start("client[1]", "info", "text", fd=pipe.write_fd)
    LOGGER.info("%d of %s", 3, "four")
    LOGGER.warning("careful")
    LOGGER.error("bad")
    stop()
    first, second, third = pipe.lines()
    assert re.fullmatch(TIME + r" info  client\[1\] 3 of four", first)
    assert re.fullmatch(TIME + r" warning client\[1\] careful", second)
    assert re.fullmatch(TIME + r" error client\[1\] bad", third)


def test_json_line(pipe: Pipe) -> None:
    stop = logs.start("server[0]", "debug", "json", fd=pipe.write_fd)
    LOGGER.debug('say "%s"\n', "ready")
    stop()
    (line,) = pipe.lines()
    entry = json.loads(line)
    assert re.fullmatch(TIME, entry.pop("time"))
    assert entry == {
        "level": "debug",
        "role": "server[0]",
        "pid": os.getpid(),
        "logger": "fastmtcp.test",
        "message": 'say "ready"\n',
    }


def test_time_is_utc_with_milliseconds(pipe: Pipe) -> None:
    stop = logs.start("r", "info", "text", fd=pipe.write_fd)
    record = logging.LogRecord("fastmtcp", logging.INFO, "", 0, "m", None, None)
    record.created = 1795369201.0239
    logging.getLogger("fastmtcp").handle(record)
    stop()
    assert pipe.read_all() == b"2026-11-22T17:40:01.023Z info  r m\n"


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_levels(pipe: Pipe, level: str, seen: list[str]) -> None:
    stop = logs.start("r", level, "json", fd=pipe.write_fd)
    for name in ("debug", "info", "warning", "error"):
        getattr(LOGGER, name)("m")
    stop()
    assert [json.loads(line)["level"] for line in pipe.lines()] == seen


@pytest.mark.parametrize(("level", "fmt"), [("warn", "text"), ("INFO", "text"), ("info", "xml")])
def test_unknown_level_or_format(level: str, fmt: str) -> None:
    before = logging.getLogger("fastmtcp").handlers[:]
    with pytest.raises(ValueError, match="unknown log"):
        logs.start("r", level, fmt)
    assert logging.getLogger("fastmtcp").handlers == before


def test_stop_restores_the_logger_and_may_be_called_again(pipe: Pipe) -> None:
    root = logging.getLogger("fastmtcp")
    before = (root.level, root.propagate, root.handlers[:], threading.active_count())
    stop = logs.start("r", "debug", "text", fd=pipe.write_fd)
    assert root.propagate is False
    stop()
    stop()
    assert (root.level, root.propagate, root.handlers, threading.active_count()) == before


def test_a_second_start_replaces_the_first(pipe: Pipe) -> None:
    first = logs.start("first", "info", "text", fd=pipe.write_fd)
    LOGGER.info("one")
    second = logs.start("second", "info", "text", fd=pipe.write_fd)
    LOGGER.info("two")
    first()
    LOGGER.info("three")
    second()
    assert [line.split(maxsplit=2)[2] for line in pipe.lines()] == [
        "first one",
        "second two",
        "second three",
    ]


def test_arguments_are_formatted_at_the_call(pipe: Pipe) -> None:
    stop = logs.start("r", "info", "text", fd=pipe.write_fd)
    changing = ["before"]
    LOGGER.info("%s", changing)
    changing[0] = "after"
    stop()
    assert pipe.read_all().endswith(b"r ['before']\n")


def test_a_reader_that_stops_never_blocks_a_log_call(pipe: Pipe) -> None:
    filled = pipe.fill()
    stop = logs.start("r", "info", "json", fd=pipe.write_fd, queue_limit=100)
    # The pipe is full: were a call to wait, this loop would end with the time limit of the test.
    for number in range(1000):
        LOGGER.info("%d", number)
    received = bytearray()

    def read() -> None:
        while part := os.read(pipe.read_fd, 65536):
            received.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    stop()
    pipe.close(pipe.write_fd)
    reader.join()
    entries = [json.loads(line) for line in received[filled:].splitlines()]
    numbers = [int(entry["message"]) for entry in entries if entry["logger"] == "fastmtcp.test"]
    notes = [entry for entry in entries if entry["logger"] == "fastmtcp.logs"]
    assert 100 <= len(numbers) <= 101  # the thread holds at most one beside the queue
    assert numbers[:100] == list(range(100))
    assert [note["level"] for note in notes] == ["warning"]
    dropped = int(notes[0]["message"].split()[0])
    assert dropped == 1000 - len(numbers)
    assert "not read fast enough" in notes[0]["message"]


def test_stop_does_not_wait_for_ever(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "STOP_TIMEOUT", 0.05)
    pipe.fill()
    stop = logs.start("r", "info", "text", fd=pipe.write_fd)
    LOGGER.info("never read")
    stop()
    assert not logging.getLogger("fastmtcp").handlers
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "log")
    # Now the thread gets EPIPE and ends.
    pipe.close(pipe.read_fd)
    thread.join(30)
    assert not thread.is_alive()


def test_a_non_blocking_descriptor_loses_nothing(pipe: Pipe) -> None:
    filled = pipe.fill()
    os.set_blocking(pipe.write_fd, False)
    stop = logs.start("r", "info", "text", fd=pipe.write_fd)
    text = "x" * 20_000  # more than a pipe takes at once when it is nearly full
    for _ in range(10):
        LOGGER.info(text)
    received = bytearray()

    def read() -> None:
        while part := os.read(pipe.read_fd, 1000):
            received.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    stop()
    pipe.close(pipe.write_fd)
    reader.join()
    lines = received[filled:].decode().splitlines()
    assert [line.split()[-1] for line in lines] == [text] * 10


def test_a_broken_pipe_costs_the_messages_only(pipe: Pipe) -> None:
    stop = logs.start("r", "info", "text", fd=pipe.write_fd)
    pipe.close(pipe.read_fd)
    for _ in range(100):
        LOGGER.info("nobody reads this")
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "log")
    assert thread.is_alive()
    stop()
    assert not thread.is_alive()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EBADF])
def test_logging_goes_on_after_an_error(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    write = os.write
    failed = threading.Event()

    def fail_once(fd: int, data: Any) -> int:
        if fd == pipe.write_fd and not failed.is_set():
            failed.set()
            raise OSError(code, os.strerror(code))
        return write(fd, data)

    monkeypatch.setattr(os, "write", fail_once)
    stop = logs.start("r", "info", "text", fd=pipe.write_fd)
    LOGGER.info("one")
    LOGGER.info("two")
    stop()
    assert [line[-1] for line in [text.split() for text in pipe.lines()]] == ["two"]


def run_child(pipe: Pipe, child: Callable[[], None]) -> int:
    """Run `child` in a fork and return its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_each_process_has_its_own(pipe: Pipe) -> None:
    stop = logs.start("supervisor", "info", "json", fd=pipe.write_fd)
    LOGGER.info("before")

    def child() -> None:
        stop_child = logs.start("worker[0]", "debug", "json", fd=pipe.write_fd)
        LOGGER.debug("in the child")
        stop_child()

    assert run_child(pipe, child) == 0
    LOGGER.info("after")
    LOGGER.debug("not in the parent")
    stop()
    entries = [json.loads(line) for line in pipe.lines()]
    said = {(entry["role"], entry["message"]) for entry in entries}
    assert said == {
        ("supervisor", "before"),
        ("worker[0]", "in the child"),
        ("supervisor", "after"),
    }
    assert len(entries) == 3
    pids = {entry["role"]: entry["pid"] for entry in entries}
    assert pids["supervisor"] == os.getpid() != pids["worker[0]"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_may_stop_what_its_parent_started(pipe: Pipe) -> None:
    stop = logs.start("supervisor", "info", "text", fd=pipe.write_fd)

    def child() -> None:
        stop()
        if logging.getLogger("fastmtcp").handlers:
            raise AssertionError

    assert run_child(pipe, child) == 0
    LOGGER.info("still here")
    stop()
    assert pipe.read_all().endswith(b"supervisor still here\n")


def test_wrong_arguments_are_reported_and_do_no_harm(
    pipe: Pipe, capfd: pytest.CaptureFixture[str]
) -> None:
    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    stop = logs.start("r", "info", "text", fd=pipe.write_fd)
    LOGGER.info("%d streams", "x")
    LOGGER.info("%s", Bad())
    LOGGER.info(Bad())
    LOGGER.info("next")
    stop()
    lines = pipe.lines()
    assert "'%d streams' with arguments that do not fit it" in lines[0]
    assert "no repr" in lines[1]
    assert any(line.endswith(" r next") for line in lines)
    assert capfd.readouterr().err == ""


def test_exceptions_in_text_are_indented(pipe: Pipe) -> None:
    stop = logs.start("r", "info", "text", fd=pipe.write_fd)
    try:
        raise RuntimeError("line 1\nline 2")
    except RuntimeError:
        LOGGER.exception("failed")
    stop()
    first, *rest = pipe.lines()
    assert first.endswith(" error r failed")
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-2:] == ["    RuntimeError: line 1", "    line 2"]
    assert all(line.startswith("    ") for line in rest)


def test_exceptions_in_json_have_a_field_of_their_own(pipe: Pipe) -> None:
    stop = logs.start("r", "info", "json", fd=pipe.write_fd)
    try:
        raise RuntimeError("why")
    except RuntimeError:
        LOGGER.exception("failed")
    stop()
    (line,) = pipe.lines()
    entry = json.loads(line)
    assert entry["message"] == "failed"
    assert entry["exception"].startswith("Traceback")
    assert entry["exception"].endswith("RuntimeError: why")


def test_a_peer_cannot_forge_lines_or_control_the_terminal(pipe: Pipe) -> None:
    stop = logs.start("r", "info", "text", fd=pipe.write_fd)
    LOGGER.info("name %s", "a\nb\r\x1b[31m\x00\x7f\x9b\u2028caf\u00e9\t\udc80")
    stop()
    (line,) = pipe.lines()
    assert line.endswith(" r name a\\nb\\r\\x1b[31m\\x00\\x7f\\x9b\\u2028caf\u00e9\t\\udc80")


@given(st.lists(st.text(alphabet=st.characters(), max_size=50), min_size=1, max_size=5))
def test_any_text_is_one_line(messages: list[str]) -> None:
    for fmt in ("text", "json"):
        pipe = Pipe()
        stop = logs.start("r", "info", fmt, fd=pipe.write_fd)
        for message in messages:
            LOGGER.info(message)
        stop()
        lines = pipe.read_all().decode().split("\n")
        pipe.close()
        assert lines.pop() == ""
        assert len(lines) == len(messages)
        if fmt == "json":
            assert [json.loads(line)["message"] for line in lines] == [
                message.encode("utf-8", "backslashreplace").decode() for message in messages
            ]


def test_many_threads_lose_nothing(pipe: Pipe) -> None:
    stop = logs.start("r", "info", "json", fd=pipe.write_fd)

    def log(name: int) -> None:
        for number in range(50):
            LOGGER.info("%d %d", name, number)

    threads = [threading.Thread(target=log, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop()
    seen = [tuple(map(int, json.loads(line)["message"].split())) for line in pipe.lines()]
    assert sorted(seen) == [(name, number) for name in range(4) for number in range(50)]
    for name in range(4):
        assert [number for who, number in seen if who == name] == list(range(50))


PROGRAM = """
import logging, sys
from fastmtcp import logs
stop = logs.start("r", "info", "text")
for number in range(50):
    logging.getLogger("fastmtcp").info("message %d", number)
print("alive", flush=True)
if sys.argv[1] == "stop":
    stop()
"""


@pytest.mark.parametrize("end", ["stop", "no stop"])
@pytest.mark.parametrize("stderr", ["read", "closed", "broken", "full"])
def test_a_process_ends_cleanly_whatever_becomes_of_standard_error(
    pipe: Pipe, end: str, stderr: str
) -> None:
    script = '"$0" -c "$1" "$2"' + {"closed": " 2>&-", "full": " 2>/dev/full"}.get(stderr, "")
    if stderr == "broken":
        pipe.close(pipe.read_fd)
    result = subprocess.run(
        ["/bin/sh", "-c", script, sys.executable, PROGRAM, end],
        stdout=subprocess.PIPE,
        stderr=pipe.write_fd,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (0, b"alive\n")
    if stderr == "read":
        assert len(pipe.lines()) == 50


def test_without_a_thread_lines_are_written_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pipe = Pipe()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        stop = logs.start("test", "info", "text", fd=pipe.write_fd)
        LOGGER.info("first")
        assert b"first" in os.read(pipe.read_fd, 1000)
        # Whoever reads has stopped: nobody waits, and nothing is lost.
        os.set_blocking(pipe.write_fd, False)
        filled = 0
        try:
            while True:
                filled += os.write(pipe.write_fd, bytes(4096))
        except BlockingIOError:
            os.set_blocking(pipe.write_fd, True)
        LOGGER.info("second")
    while filled:
        filled -= len(os.read(pipe.read_fd, filled))
    LOGGER.info("third")
    stop()
    text = pipe.read_all()
    assert text.index(b"second") < text.index(b"third")
    pipe.close()
