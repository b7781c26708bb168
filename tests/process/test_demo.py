"""`fastmtcp demo` as a user runs it, only shorter."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

COMMAND = (sys.executable, "-c", "from fastmtcp.cli.main import main; raise SystemExit(main())")
WAIT = 60.0


def test_it_measures_a_plain_connection_and_fastmtcp_both_ways() -> None:
    result = subprocess.run(
        [*COMMAND, "demo", "--seconds", "0.5", "--connections", "2", "--rate", "10MB"],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    figures = re.findall(r"^(.{24})\s+([\d.]+)\s+[\d.]+x\s+([\d.]+)\s", result.stdout, re.M)
    assert [name.strip() for name, *_ in figures] == [
        "one plain connection",
        "fastmtcp, 2 connections",
    ]
    assert all(float(up) > 0 and float(down) > 0 for _, up, down in figures)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_all_its_processes(number: int) -> None:
    process = subprocess.Popen(
        [*COMMAND, "demo", "--connections", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    # The row of the plain connection: fastmtcp's own processes come next.
    while "one plain connection" not in process.stdout.readline():
        assert process.poll() is None
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, errors = process.communicate(timeout=WAIT)
    assert process.returncode == 1
    assert errors.strip() == "fastmtcp: error: interrupted"
    _, alive = psutil.wait_procs(children, timeout=WAIT)
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    assert children
    assert not alive


@pytest.mark.parametrize(
    "arguments", [["--rate", "fast"], ["--connections", "0"], ["--seconds", "0"], ["--seconds"]]
)
def test_wrong_usage_is_exit_2_and_one_line(arguments: list[str]) -> None:
    result = subprocess.run(
        [*COMMAND, "demo", *arguments], capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
