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
        run_until(loop, lambda: len(caplog.messages) == 2, "the second warning")
    assert set(caplog.messages) == {"list is broken; going on with what was read before"}
    assert seen[-1] == "two"
    path.write_text("three")
    run_until(loop, lambda: seen[-1] == "three", "the third content")
    (tmp_path / "missing").write_text("no more")
    count = len(seen)
    run_until(loop, lambda: len(seen) > count, "the other file")
    watch.close()
    assert loop._handlers == {}


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
