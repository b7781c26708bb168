"""Random transfers for as long as one likes, over lines to which everything happens."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click

from perf import results
from perf.command import start
from perf.ends import ENTRY, TARGET, Forwarder, forwarder
from perf.faults import KINDS, RESET, Course, Fault, plan, without_any_line
from perf.network import Network, become_root, has_netem, wan_option
from perf.paths import UNEQUAL_4, paths
from perf.processes import BenchmarkError, Memory, Process, children_of, memory_of, running
from perf.setups import QUICK_START, SETUPS
from perf.soak_end import FAILED, WRONG
from perf.uplinks import Uplinks, uplinks

AT_ONCE = 8
QUARTERS = 4
FLAT, FLAT_AT_FIRST = 1.05, 1.25
"""What the last quarter's memory may be of the second's; in a short soak it depends on the
transfers that happen to be under way."""
LONG = 20 * 60
"""Seconds from which a soak is not short."""
SETTLE = 3.0
SAMPLE_EVERY = 0.5
LAST_ONES = 300.0
"""Seconds that the transfers under way at the end may take."""
_APPLICATION = (sys.executable, "-m", "perf.soak_end")

Transfer = dict[str, Any]


class Sample(NamedTuple):
    """Memory of both sides, and when that was, in seconds since the start."""

    at: float
    client: Memory
    server: Memory


class Soaked(NamedTuple):
    """All that was seen."""

    seconds: float
    lines: int
    faults: list[Fault]
    resets: list[float]
    """When each was."""
    transfers: list[Transfer]
    before: Sample
    samples: list[Sample]
    after: Sample
    replaced: list[str]
    """Sides of which a worker is not the one that it was."""


class Sampler(threading.Thread):
    """Takes samples of the memory for the time of a `with` block."""

    def __init__(self, made: Forwarder, begin: float) -> None:
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self._made = made
        self._begin = begin
        self._end = threading.Event()

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self.join()

    def run(self) -> None:
        while not self._end.wait(SAMPLE_EVERY):
            self.samples.append(sample(self._made, self._begin))


def sample(made: Forwarder, begin: float) -> Sample:
    return Sample(time.monotonic() - begin, *(memory_of(p.pid) for p in (made.client, made.server)))


def soak(net: Uplinks, made: Forwarder, seed: int, seconds: float) -> Soaked:
    """Transfers for so many seconds, and what became of them."""
    time.sleep(SETTLE)
    workers = [children_of(process.pid) for process in (made.server, made.client)]
    faults = plan(seed, seconds, len(net.lines))
    transfers: list[Transfer] = []
    begin = time.monotonic()
    before = sample(made, begin)
    with (
        Course(net, faults, seed, begin) as course,
        Sampler(made, begin) as sampler,
        transferring(net.names, seed, begin, seconds) as process,
    ):
        assert process.popen.stdout is not None
        limit = threading.Timer(seconds + LAST_ONES, process.popen.kill)
        limit.start()
        try:
            for line in process.popen.stdout:
                transfers.append(json.loads(line))
                tell(transfers, course)
                if course.error is not None:
                    raise course.error
            code = process.popen.wait()
        finally:
            limit.cancel()
    if code:
        raise BenchmarkError(f"the transfers did not come to their end: {process.last_words()}")
    # Whatever the streams left is let go of: it is the idle program that is measured.
    time.sleep(SETTLE)
    if course.error is not None:
        raise course.error
    replaced = [
        process.name
        for process, old in zip((made.server, made.client), workers, strict=True)
        if children_of(process.pid) != old or process.popen.poll() is not None
    ]
    samples = [one for one in sampler.samples if one.at < seconds]
    return Soaked(seconds, len(net.lines), faults, course.resets, transfers, before, samples,
                  sample(made, begin), replaced)  # fmt: skip


@contextlib.contextmanager
def transferring(names: Network, seed: int, begin: float, seconds: float) -> Iterator[Process]:
    """Both ends of the transfers; the process at the client's end prints each one."""
    serve = [*Network.inside(names.server), *_APPLICATION, "serve", str(TARGET)]
    run = [*Network.inside(names.client), *_APPLICATION, "run", str(ENTRY), "--seed", str(seed)]
    run += ["--begin", str(begin), "--seconds", str(seconds), "--at-once", str(AT_ONCE)]
    with (
        running("serve", serve),
        running("run", run, ready=False, stdout=True) as process,
    ):
        yield process


def tell(transfers: Sequence[Transfer], course: Course) -> None:
    """Say at once what is wrong, and now and then how it goes."""
    last = transfers[-1]
    if last["outcome"] in (WRONG, FAILED):
        results.progress(f"{last['outcome'].upper()}: {describe(last)}")
    if len(transfers) % 100 == 0:
        results.progress(
            f"{last['end']:.0f} s: {len(transfers)} transfers, {len(course.resets)} resets"
        )


def describe(one: Transfer) -> str:
    return (
        f"{one['kind']} of {one['size']} bytes, from {one['start']:.1f} to {one['end']:.1f} s: "
        f"{one['detail']}"
    )


def quarter_of(at: float, seconds: float) -> int:
    """0 to 3; what comes after the end is in the last one."""
    return min(QUARTERS - 1, int(QUARTERS * at / seconds))


def memory_in(soaked: Soaked, quarter: int) -> Sample:
    """The medians of a quarter."""
    mine = [one for one in soaked.samples if quarter_of(one.at, soaked.seconds) == quarter]
    if not mine:
        raise BenchmarkError("too short to see the memory in each quarter")
    sides = [
        Memory(*(int(median(getattr(one, side)[field] for one in mine)) for field in range(2)))
        for side in ("client", "server")
    ]
    return Sample(mine[0].at, *sides)


def problems(soaked: Soaked) -> list[str]:
    """What must not be, one line for each."""
    found = []
    for outcome, what in ((WRONG, "had wrong bytes"), (FAILED, "failed")):
        those = [one for one in soaked.transfers if one["outcome"] == outcome]
        if those:
            count = f"{len(those)} of {len(soaked.transfers)} transfers"
            found.append(f"{count} {what}; the first: {describe(those[0])}")
    if not soaked.transfers:
        found.append("not one transfer was done")
    found += [f"a worker of {side} is another one than before" for side in soaked.replaced]
    limit = FLAT if soaked.seconds >= LONG else FLAT_AT_FIRST
    second, last = (memory_in(soaked, quarter) for quarter in (1, QUARTERS - 1))
    for side in ("client", "server"):
        ratio = getattr(last, side).own / getattr(second, side).own
        if ratio > limit:
            grown = f"{100 * (ratio - 1):.0f}% more in the last quarter than in the second"
            found.append(f"the {side}'s memory is not flat: {grown}")
    return found


def report(soaked: Soaked) -> str:
    """The table: a row for each quarter, and the memory before and after."""
    head = ["", "transfers", "MB", *KINDS, "longest pause s", "with a line",
            "client PSS MB", "own", "server PSS MB", "own"]  # fmt: skip
    dashes = ["-"] * (len(head) - 5)
    rows = [["before", *dashes, *_memory(soaked.before)]]

    def mine(at: float) -> bool:
        return quarter_of(at, soaked.seconds) == quarter

    for quarter in range(QUARTERS):
        done = [one for one in soaked.transfers if mine(one["end"])]
        faults = {kind: sum(f.kind == kind and mine(f.start) for f in soaked.faults)
                  for kind in KINDS}  # fmt: skip
        faults[RESET] = sum(map(mine, soaked.resets))
        pauses = [(one["pause"], one["pause_end"]) for one in done]
        beyond = [
            pause - without_any_line(soaked.faults, soaked.lines, end - pause, end)
            for pause, end in pauses
        ]
        rows.append(
            [
                f"quarter {quarter + 1}",
                str(len(done)),
                f"{sum(one['size'] for one in done) / 1e6:.0f}",
                *(str(faults[kind]) for kind in KINDS),
                f"{max((pause for pause, _ in pauses), default=0):.2f}",
                f"{max(beyond, default=0):.2f}",
                *_memory(memory_in(soaked, quarter)),
            ]
        )
    rows.append(["after", *dashes, *_memory(soaked.after)])
    return results.table(head, rows)


def _memory(of: Sample) -> list[str]:
    return [f"{size / 1e6:.1f}" for side in (of.client, of.server) for size in side]


@click.command("soak.sh")
@click.option("--minutes", default=5.0, show_default=True, type=click.FloatRange(0.5, 10_000))
@click.option("--seed", type=int, help="Of transfers and faults.  [default: a new one]")
@click.option(
    "--setup",
    default=QUICK_START,
    show_default=True,
    type=click.Choice(SETUPS),
    help="How fastmtcp is set up; see perf/README.md.",
)
@wan_option
def main(minutes: float, seed: int | None, setup: str, wan: str | None) -> None:
    """Random transfers over four unequal lines that are reset, silenced, slowed and all lost.

    Fails if a byte is wrong, a transfer is not completed, or memory grows. Needs root or user
    namespaces.
    """
    become_root("perf.soak", sys.argv[1:])
    if seed is None:
        seed = random.randrange(1_000_000)
    lines = UNEQUAL_4
    if wan is None and not has_netem():
        results.progress("without netem and --wan the lines have rates, but no round-trip time")
        lines = [line._replace(rtt=0.0) for line in lines]
    results.progress(f"seed {seed}, {minutes:g} minutes")
    logs = results.FOLDER / time.strftime("soak-%Y%m%d-%H%M%S-logs")
    logs.mkdir(parents=True)
    keep = True
    try:
        with (
            uplinks(lines, wan, by_kernel=True) as net,
            forwarder(net.names, setup, TARGET, 1, paths(net, range(len(lines))), logs) as made,
        ):
            soaked = soak(net, made, seed, minutes * 60)
        finish(soaked, {"minutes": minutes, "seed": seed, "setup": setup})
        keep = False
    finally:
        _put_away(logs, keep)


def finish(soaked: Soaked, settings: dict[str, Any]) -> None:
    """Print everything. Raises BenchmarkError if there is something that must not be."""
    found = problems(soaked)
    settings = {**settings, "at_once": AT_ONCE, "faults": soaked.faults, "resets": soaked.resets,
                "samples": soaked.samples, "problems": found}  # fmt: skip
    results.finish("soak", settings, soaked.transfers, report(soaked))
    if found:
        raise BenchmarkError(f"seed {settings['seed']}: " + "; ".join(found))
    flat = "flat" if soaked.seconds >= LONG else "not much more (20 minutes say if it is flat)"
    print(f"{len(soaked.transfers)} transfers, all bytes right, none reset, memory {flat}")


def _put_away(logs: Path, keep: bool) -> None:
    if keep:
        results.progress(f"what the programs logged is in {logs}")
    else:
        shutil.rmtree(logs)


if __name__ == "__main__":
    start(main)
