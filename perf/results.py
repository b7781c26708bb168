"""Medians, tables and files of a benchmark."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import fastmtcp

from perf.processes import BenchmarkError

FOLDER = Path(__file__).resolve().parent / "results"

Run = dict[str, Any]


def machine() -> dict[str, str | int]:
    """What the figures depend on, besides the code."""
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "fastmtcp": fastmtcp.__version__,
        "commit": _commit(),
        "congestion_control": _read("/proc/sys/net/ipv4/tcp_congestion_control"),
    }


def describe(facts: dict[str, str | int]) -> str:
    """`machine` as one line for people."""
    return (
        f"{facts['cpus']} x {facts['cpu']}, Linux {facts['kernel']}, "
        f"{facts['congestion_control']}, Python {facts['python']}"
    )


def median_of(runs: Iterable[Run], figure: str, **fields: object) -> float:
    """Median of `figure` over the runs that have these fields. Raises BenchmarkError: none has."""
    values = [
        run[figure]
        for run in runs
        if figure in run and all(run.get(name) == value for name, value in fields.items())
    ]
    if not values:
        raise BenchmarkError(f"no run has {figure} for {fields}")
    return float(median(values))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns line up; the first is flush left, the others flush right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return (
            " | ".join(
                ["| " + first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
            )
            + " |"
        )

    rule = "| " + "-" * widths[0] + " | " + " | ".join("-" * (w - 1) + ":" for w in widths[1:])
    return "\n".join([line(lines[0]), rule + " |", *map(line, lines[1:])])


def save(benchmark: str, settings: dict[str, Any], runs: Sequence[Run], report: str) -> Path:
    """Write everything to results/BENCHMARK-TIME.json; return the path."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{benchmark}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    content = {
        "benchmark": benchmark,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "settings": settings,
        "runs": list(runs),
        "table": report.splitlines(),
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def finish(benchmark: str, settings: dict[str, Any], runs: Sequence[Run], report: str) -> Path:
    """Print the report, write the file, and say where."""
    path = save(benchmark, settings, runs, report)
    print(f"\n{report}\n\n{describe(machine())}\nwritten: {path}")
    return path


def progress(text: str) -> None:
    """A line about what goes on, apart from the results on standard output."""
    print(text, file=sys.stderr, flush=True)


def _cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(FOLDER.parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
