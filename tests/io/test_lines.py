"""Log lines that others can cause as often as they like."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from fastmtcp.io import lines as lines_module
from fastmtcp.io.lines import MAX_LINES, WINDOW
from fastmtcp.io.loop import Loop

from tests.io.net import run_until, turn

log = logging.getLogger("fastmtcp.test")
Logs = pytest.LogCaptureFixture
TEXT = "target %s is down"


@pytest.fixture
def loop(caplog: Logs) -> Iterator[Loop]:
    caplog.set_level(logging.INFO, "fastmtcp")
    loop = Loop()
    turn(loop, 1)
    yield loop
    loop.close()


def test_a_few_are_logged_and_the_rest_is_counted(
    loop: Loop, caplog: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_module, "WINDOW", 0.1)
    for number in range(3000):
        loop.lines.warning(log, "", TEXT, number)
    run_until(loop, lambda: len(caplog.messages) > MAX_LINES, "they are summed up")
    assert caplog.messages == [
        *(TEXT % number for number in range(MAX_LINES)),
        f"{3000 - MAX_LINES} more lines like this in 0.1 s: target 2999 is down",
    ]
    # A new window begins anew.
    loop.lines.warning(log, "", TEXT, "again")
    assert caplog.messages[-1] == "target again is down"


def test_other_kinds_and_other_sources_are_not_drowned(loop: Loop, caplog: Logs) -> None:
    for _ in range(100):
        loop.lines.warning(log, "one", TEXT, "a")
    loop.lines.warning(log, "other", TEXT, "b")
    loop.lines.warning(log, "one", "%s of another kind", "a line")
    assert caplog.messages[-2:] == ["target b is down", "a line of another kind"]


@pytest.mark.parametrize("worst", [logging.INFO, logging.WARNING])
def test_the_sum_is_as_bad_as_the_worst_that_it_counts(
    loop: Loop, caplog: Logs, worst: int
) -> None:
    for level in [logging.INFO] * (MAX_LINES + 2) + [worst, logging.INFO]:
        loop.lines.log(log, level, "", TEXT, "a")
    loop.lines.sum_up()
    assert caplog.records[-1].levelno == worst
    assert caplog.messages[-1] == f"4 more lines like this in {WINDOW:g} s: target a is down"


def test_a_single_one_is_said_as_it_is(loop: Loop, caplog: Logs) -> None:
    for number in range(MAX_LINES + 1):
        loop.lines.warning(log, "", TEXT, number)
    loop.lines.sum_up()
    assert caplog.messages == [TEXT % number for number in range(MAX_LINES + 1)]
    loop.lines.sum_up()
    assert len(caplog.messages) == MAX_LINES + 1


def test_what_is_not_logged_is_not_counted(loop: Loop, caplog: Logs) -> None:
    for _ in range(100):
        loop.lines.log(log, logging.DEBUG, "", TEXT, "a")
    assert loop.lines._kinds == {}
    loop.lines.sum_up()
    assert caplog.messages == []


def test_sources_without_end_share_what_one_has(loop: Loop, caplog: Logs) -> None:
    most = lines_module._MAX_SOURCES
    for number in range(most + 1000):
        loop.lines.warning(log, f"source {number}", TEXT, number)
    assert len(loop.lines._kinds) == most + 1
    assert len(caplog.messages) == most + MAX_LINES
