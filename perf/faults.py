"""What happens to the lines during a soak: planned from a seed, and done to them."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import NamedTuple

from perf.processes import BenchmarkError
from perf.resets import reset, subflow_ports
from perf.uplinks import Uplinks

RESET = "resets"
SILENT = "silenced"
SLOW = "slowed"
GONE = "all gone"
KINDS = (RESET, SILENT, SLOW, GONE)

FIRST = 3.0
"""Seconds before the first fault."""


class Fault(NamedTuple):
    """One fault, in seconds since the start. A reset has no length and happens to no line."""

    kind: str
    start: float
    end: float
    lines: tuple[int, ...] = ()
    part: float = 1.0
    """Of the rate that a slowed line keeps."""
    many: int = 1
    """Connections that are reset at once."""


def plan(seed: int, seconds: float, lines: int) -> list[Fault]:
    """All faults of a soak of this length, in order; the same for the same seed.

    Each kind has a course of its own, so that they come together as well.
    """
    faults = []
    for kind, (least_gap, most_gap), (least, most) in (
        (RESET, (0.3, 3.0), (0.0, 0.0)),
        (SILENT, (3.0, 12.0), (1.0, 12.0)),
        (SLOW, (3.0, 12.0), (2.0, 15.0)),
        (GONE, (15.0, 45.0), (1.0, 8.0)),
    ):
        chance = Random(f"{seed} {kind}")
        start = FIRST + chance.uniform(0, least_gap)
        while (end := start + chance.uniform(least, most)) < seconds:
            fault = Fault(kind, start, end)
            if kind == RESET:
                fault = fault._replace(many=chance.choice((1, 1, 1, 1, 2, 4)))
            elif kind == SILENT:
                chosen = chance.sample(range(lines), chance.randint(1, max(1, lines - 2)))
                fault = fault._replace(lines=tuple(sorted(chosen)))
            elif kind == SLOW:
                part = chance.uniform(0.05, 0.5)
                fault = fault._replace(lines=(chance.randrange(lines),), part=part)
            else:
                fault = fault._replace(lines=tuple(range(lines)))
            faults.append(fault)
            start = end + chance.uniform(least_gap, most_gap)
    return sorted(faults, key=lambda fault: fault.start)


class State(NamedTuple):
    """What the lines are like at one moment."""

    silent: tuple[int, ...]
    slow: dict[int, float]
    """The part of its rate that a line keeps."""


def state(faults: Sequence[Fault], at: float) -> State:
    """What the faults that last at this moment come to together."""
    now = [fault for fault in faults if fault.start <= at < fault.end]
    silent = {line for fault in now if fault.kind in (SILENT, GONE) for line in fault.lines}
    slow = {line: fault.part for fault in now if fault.kind == SLOW for line in fault.lines}
    return State(tuple(sorted(silent)), slow)


class Course(threading.Thread):
    """Does the planned faults to the lines, until it is through with them or told to end().

    A `with` block: behind it the lines are as they were.
    """

    def __init__(self, net: Uplinks, faults: Sequence[Fault], seed: int, begin: float) -> None:
        super().__init__(daemon=True)
        self.resets: list[float] = []
        """When, in seconds since the start, each reset was."""
        self.error: BenchmarkError | None = None
        """Why it could not go on."""
        self._net = net
        self._begin = begin
        self._faults = faults
        self._chance = Random(seed)
        self._end = threading.Event()

    def __enter__(self) -> Course:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self.join()

    def run(self) -> None:
        state_now = State((), {})
        try:
            for at in sorted(moments(self._faults)):
                if self._end.wait(max(0.0, self._begin + at - time.monotonic())):
                    break
                for fault in self._faults:
                    if fault.kind == RESET and fault.start == at:
                        self._reset(fault.many)
                state_now = self._change(state_now, state(self._faults, at))
            self._change(state_now, State((), {}))
        except BenchmarkError as error:
            self.error = error
        except (OSError, subprocess.SubprocessError) as error:
            self.error = BenchmarkError(f"the faults cannot go on: {error}")

    def _change(self, old: State, new: State) -> State:
        if new.silent != old.silent:
            self._net.silence(*new.silent)
        for line in sorted(set(old.slow) | set(new.slow)):
            if old.slow.get(line) != new.slow.get(line):
                self._net.slow(line, new.slow.get(line, 1.0))
        return new

    def _reset(self, count: int) -> None:
        ports = subflow_ports(self._net.names)
        for port in self._chance.sample(ports, min(count, len(ports))):
            reset(self._net.names, port, at_server=self._chance.random() < 0.5)
            self.resets.append(time.monotonic() - self._begin)


def moments(faults: Sequence[Fault]) -> Iterator[float]:
    """When something changes."""
    for fault in faults:
        yield fault.start
        if fault.kind != RESET:
            yield fault.end


def without_any_line(faults: Sequence[Fault], lines: int, begin: float, end: float) -> float:
    """Seconds between `begin` and `end` in which all lines were silent."""
    total = 0.0
    edges = sorted({begin, end, *(at for at in moments(faults) if begin < at < end)})
    for start, stop in pairwise(edges):
        if len(state(faults, start).silent) == lines:
            total += stop - start
    return total
