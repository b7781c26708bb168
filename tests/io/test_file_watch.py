"""Files that change while the loop runs."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastmtcp.errors import ConfigError
from fastmtcp.io.file_watch import FileWatch
from fastmtcp.io.loop import Loop

from tests.io.net import run_until


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_every_change_is_seen_and_a_broken_file_changes_nothing(
    loop: Loop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "list"
    path.write_text("one")
    seen: list[str] = []

    def read() -> str:
        if not path.exists() or path.read_text() == "broken":
            raise ConfigError("list is broken")
        return path.read_text()

    def replace(text: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        os.replace(fresh, path)

    watch = FileWatch(loop, [str(path), str(tmp_path / "missing")], read, seen.append)
    run_until(loop, lambda: seen == ["one"], "the first content")
    replace("two")
    run_until(loop, lambda: seen[-1] == "two", "the second content")
    with caplog.at_level(logging.WARNING, "fastmtcp"):
        replace("broken")
        run_until(loop, lambda: caplog.messages, "the warning")
        path.unlink()
    assert caplog.messages == ["list is broken; going on with what was read before"]
    assert seen[-1] == "two"
    path.write_text("three")
    run_until(loop, lambda: seen[-1] == "three", "the third content")
    (tmp_path / "missing").write_text("no more")
    count = len(seen)
    run_until(loop, lambda: len(seen) > count, "the other file")
    watch.close()
    assert loop._handlers == {}


def test_a_failure_that_passes_without_a_change_of_the_file_is_tried_again(
    loop: Loop, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor, no memory, a file system that is away for a moment."""
    path = tmp_path / "list"
    path.write_text("one")
    seen: list[str] = []
    failures = ["list cannot be read: too many open files"] * 3 + ["list cannot be read: EIO"] * 2

    def read() -> str:
        if failures:
            raise ConfigError(failures.pop(0))
        return path.read_text()

    monkeypatch.setattr("fastmtcp.io.file_watch._EVERY", 0.01)
    with caplog.at_level(logging.INFO, "fastmtcp"):
        watch = FileWatch(loop, [str(path)], read, seen.append)
        run_until(loop, lambda: seen, "it is read in the end")
        run_until(loop, lambda: len(caplog.messages) == 3, "that is said")
    watch.close()
    assert not failures
    assert seen == ["one"]
    assert caplog.messages == [
        "list cannot be read: too many open files; going on with what was read before",
        "list cannot be read: EIO; going on with what was read before",
        f"{path} could be read again",
    ]


def test_without_a_thread_it_tries_again(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    path = tmp_path / "list"
    path.write_text("one")
    seen: list[str] = []
    monkeypatch.setattr("fastmtcp.io.file_watch._TRY_AGAIN", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        watch = FileWatch(loop, [str(path)], path.read_text, seen.append)
    run_until(loop, lambda: seen == ["one"], "it is read after all")
    watch.close()
