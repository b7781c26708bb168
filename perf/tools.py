"""The programs that measure: iperf3 and wrk, and what they tell."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastmtcp.endpoint import Endpoint

from perf.processes import BenchmarkError, need

UP = "up"
DOWN = "down"
DIRECTIONS = (UP, DOWN)

_BUSY_RETRIES = 40
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


class Transfer(NamedTuple):
    """What one run of iperf3 moved: bits per second at the receiver, and all bytes."""

    rate: float
    total: int


def iperf3(
    entry: Endpoint,
    direction: str,
    seconds: int,
    *,
    parallel: int = 1,
    omit: int = 0,
    inside: Sequence[str] = (),
    more: Sequence[str] = (),
) -> Transfer:
    """Run an iperf3 client; `down` is its -R. Raises BenchmarkError.

    `omit` seconds at the start are left out of the rate, not of the total. `inside` is a command
    to run it with, such as nsenter, `more` are further options of iperf3.
    """
    command = [*inside, "iperf3", "-c", entry.host, "-p", str(entry.port), "-J"]
    command += ["-t", str(seconds), "-O", str(omit), "-P", str(parallel)]
    command += [*more, "-R"] if direction == DOWN else more
    for _ in range(_BUSY_RETRIES):
        # iperf3 has no time limit of its own once the connection stands.
        timeout = seconds + omit + 20
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"iperf3 was not done after {timeout} s") from None
        result = read_json(done.stdout)
        # The server takes one test at a time, and the last one may not be quite over.
        if "busy" not in result.get("error", ""):
            return read_iperf3(result)
        time.sleep(0.25)
    raise BenchmarkError("the iperf3 server stays busy")


def read_json(text: str) -> dict[str, Any]:
    """Decode what iperf3 printed; {'error': ...} if that is no JSON object."""
    try:
        result = json.loads(text)
    except ValueError:
        return {"error": text.strip()[-200:] or "no output"}
    return result if isinstance(result, dict) else {"error": "no JSON object"}


def read_iperf3(result: dict[str, Any]) -> Transfer:
    """The figures in iperf3's JSON. Raises BenchmarkError if the run failed."""
    if "error" in result:
        raise BenchmarkError(f"iperf3: {result['error']}")
    try:
        rate = float(result["end"]["sum_received"]["bits_per_second"])
        total = sum(int(interval["sum"]["bytes"]) for interval in result["intervals"])
    except (KeyError, TypeError):
        raise BenchmarkError("iperf3: its output has no result") from None
    return Transfer(rate, total)


class Load(NamedTuple):
    """What one run of wrk saw: requests per second, errors of any kind, median latency in s."""

    rate: float
    errors: int
    latency: float


def wrk(entry: Endpoint, seconds: int, connections: int, *, close: bool) -> Load:
    """Run wrk on one thread; `close` makes a new connection for each request."""
    need("wrk")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    command += ["-H", "Connection: close"] if close else []
    done = subprocess.run(
        [*command, f"http://{entry}/"],
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        check=False,
    )
    if done.returncode:
        raise BenchmarkError(f"wrk: {(done.stderr or done.stdout).strip()[-200:]}")
    return read_wrk(done.stdout)


def read_wrk(text: str) -> Load:
    """The figures in wrk's output. Raises BenchmarkError if there are none."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    latency = re.search(r"50%\s+([\d.]+)(us|ms|s|m)\b", text)
    if rate is None or latency is None:
        raise BenchmarkError("wrk: its output has no result")
    errors = 0
    sockets = re.search(r"Socket errors: (.*)", text)
    if sockets is not None:
        errors += sum(map(int, re.findall(r"\d+", sockets.group(1))))
    answers = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    if answers is not None:
        errors += int(answers.group(1))
    seconds = float(latency.group(1)) * _TIMES[latency.group(2)]
    return Load(float(rate.group(1)), errors, seconds)
