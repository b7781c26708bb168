"""Fixtures for tests with real processes."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.programs import PLAIN, Programs
from tests.process.targets import Target, echo, exchange

_FILES = 8192


@pytest.fixture(scope="session", autouse=True)
def _enough_open_files() -> None:
    """Some tests have a few thousand connections open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FILES:
        pytest.fail(f"these tests need {_FILES} open files: raise the hard limit (ulimit -Hn)")
    if soft < _FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, hard))


@pytest.fixture
def setup(request: pytest.FixtureRequest) -> str:
    """How servers and clients are set up: PLAIN unless a test says IN_BOTH_SETUPS."""
    how: str = getattr(request, "param", PLAIN)
    return how


@pytest.fixture
def programs(tmp_path: Path, setup: str) -> Iterator[Programs]:
    """Starts the commands, stops them at the end, and fails if they leave anything behind."""
    programs = Programs(tmp_path, setup)
    yield programs
    programs.end()


@pytest.fixture
def echo_target() -> Iterator[Target[int]]:
    target = Target(echo)
    yield target
    target.close()


@pytest.fixture
def exchange_target() -> Iterator[Target[str]]:
    target = Target(exchange)
    yield target
    target.close()
