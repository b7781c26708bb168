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
from fastmtcp.config.connections import Connections

from perf import results
from perf.command import start
from perf.ends import ENTRY, TARGET, Forwarder, forwarder
from perf.faults import KINDS, RESET, Course, Fault, plan, without_any_line
from perf.network import Network, become_root, has_netem, server_endpoint, wan_option
from perf.paths import UNEQUAL_4, paths
from perf.pauses import Pause, PauseRecorder
from perf.processes import BenchmarkError, Memory, Process, children_of, memory_of, running
from perf.resets import standing
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
REST = 60.0
"""Seconds that the client may take to find out that it needs no more than its first subflows."""
LAST_ONES = 300.0
"""Seconds that the transfers under way at the end may take."""
_APPLICATION = (sys.executable, "-m", "perf.soak_end")

Transfer = dict[str, Any]


class Sample(NamedTuple):
    """Memory and subflows of both sides, and when that was, in seconds since the start."""

    at: float
    client: Memory
    server: Memory
    subflows: tuple[int, int] = (0, 0)
    """Of the client and of the server: each of them has memory of its own."""


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
    """When the streams had ended."""
    rested: Sample
    """When the client had taken back the subflows that were for them, too."""
    replaced: list[str]
    """Sides of which a worker is not the one that it was."""
    pauses: list[Pause]


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
    client, server = made.client.pid, made.server.pid
    port = server_endpoint().port
    subflows = standing(client, port), standing(server, port)
    return Sample(time.monotonic() - begin, memory_of(client), memory_of(server), subflows)


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
        transferring(net.names, seed, begin, seconds) as (serving, process),
    ):
        assert process.popen.stdout is not None
        assert serving.popen.stdout is not None
        recorder = PauseRecorder(net.names, len(net.lines), faults, course.resets, begin)
        recorder.follow(serving.popen.stdout)
        limit = threading.Timer(seconds + LAST_ONES, process.popen.kill)
        limit.start()
        try:
            for line in process.popen.stdout:
                said = json.loads(line)
                if "waits" in said:
                    recorder.hear(said["waits"])
                else:
                    transfers.append(said)
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
    after = sample(made, begin)
    rested = rest(made, begin, before)
    replaced = [
        process.name
        for process, old in zip((made.server, made.client), workers, strict=True)
        if children_of(process.pid) != old or process.popen.poll() is not None
    ]
    samples = [one for one in sampler.samples if one.at < seconds]
    return Soaked(seconds, len(net.lines), faults, course.resets, transfers, before, samples,
                  after, rested, replaced, recorder.pauses)  # fmt: skip


def rest(made: Forwarder, begin: float, before: Sample) -> Sample:
    """The programs as they are when they have no more subflows than before all that."""
    until = time.monotonic() + REST
    while True:
        now = sample(made, begin)
        if max(now.subflows) <= max(before.subflows) or time.monotonic() >= until:
            # And what they do behind it.
            time.sleep(SETTLE)
            return sample(made, begin)
        time.sleep(SAMPLE_EVERY)


@contextlib.contextmanager
def transferring(
    names: Network, seed: int, begin: float, seconds: float
) -> Iterator[tuple[Process, Process]]:
    """Both ends of the transfers, the server's first; both print who waits for bytes, and the
    client's prints each transfer."""
    serve = [*Network.inside(names.server), *_APPLICATION, "serve", str(TARGET)]
    serve += ["--begin", str(begin)]
    run = [*Network.inside(names.client), *_APPLICATION, "run", str(ENTRY), "--seed", str(seed)]
    run += ["--begin", str(begin), "--seconds", str(seconds), "--at-once", str(AT_ONCE)]
    with (
        running("serve", serve, stdout=True) as serving,
        running("run", run, ready=False, stdout=True) as process,
    ):
        yield serving, process


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
    client, server = (
        Memory(*(int(median(getattr(one, side)[field] for one in mine)) for field in range(2)))
        for side in ("client", "server")
    )
    near, far = (int(median(one.subflows[side] for one in mine)) for side in range(2))
    return Sample(mine[0].at, client, server, (near, far))


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
    for index, side in enumerate(("client", "server")):
        ratio = getattr(last, side).own / getattr(second, side).own
        if ratio > limit:
            grown = f"{100 * (ratio - 1):.0f}% more in the last quarter than in the second"
            subflows = f"with {last.subflows[index]} subflows, {second.subflows[index]} then"
            found.append(f"the {side}'s memory is not flat: {grown}, {subflows}")
    return found


def report(soaked: Soaked) -> str:
    """The table: a row for each quarter, and the memory before and after."""
    head = ["", "transfers", "MB", *KINDS, "longest pause s", "with a line",
            "client PSS MB", "own", "subflows", "server PSS MB", "own", "subflows"]  # fmt: skip
    dashes = ["-"] * (len(head) - 7)
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
    rows.append(["at rest", *dashes, *_memory(soaked.rested)])
    return results.table(head, rows)


def _memory(of: Sample) -> list[str]:
    cells = []
    for side, subflows in zip((of.client, of.server), of.subflows, strict=True):
        cells += [*(f"{size / 1e6:.1f}" for size in side), str(subflows)]
    return cells


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
@click.option(
    "--connections",
    metavar="N|MIN-MAX",
    type=Connections.read,
    help="TCP connections on each line, for each worker.  [default: as the client finds right]",
)
@wan_option
def main(
    minutes: float, seed: int | None, setup: str, connections: Connections | None, wan: str | None
) -> None:
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
            forwarder(net.names, setup, TARGET, 1, ways(net, connections), logs) as made,
        ):
            soaked = soak(net, made, seed, minutes * 60)
        number = None if connections is None else str(connections)
        finish(soaked, {"minutes": minutes, "seed": seed, "setup": setup, "connections": number})
        keep = False
    finally:
        _put_away(logs, keep)


def ways(net: Uplinks, connections: Connections | None) -> list[str]:
    """A path for each line."""
    more = "" if connections is None else f",connections={connections}"
    return [path + more for path in paths(net, range(len(net.lines)))]


def finish(soaked: Soaked, settings: dict[str, Any]) -> None:
    """Print everything. Raises BenchmarkError if there is something that must not be."""
    found = problems(soaked)
    settings = {**settings, "at_once": AT_ONCE, "faults": soaked.faults, "resets": soaked.resets,
                "samples": soaked.samples, "after": soaked.after, "rested": soaked.rested,
                "pauses": soaked.pauses, "problems": found}  # fmt: skip
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
