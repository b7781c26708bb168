"""The working tree against another commit, in turns, with the programs that measure those of the
working tree."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click

from perf import chains, connections, loopback, memory, results, setups, tools, trees
from perf.command import repeat_option, start
from perf.processes import need
from perf.results import Run, median_of

BASE = "base"
TREE = "working tree"
QUICK_START = ", quick start"
WRK_CONNECTIONS = 32


class Plan(NamedTuple):
    """How much is measured in a turn."""

    seconds: int = 4
    held: int = 500
    size: int = 300_000_000


QUICK = Plan(1, 500, 100_000_000)


class Figure(NamedTuple):
    """A row of the table: its name, where the runs have it, and whether more of it is better."""

    name: str
    key: str
    kind: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    more_is_better: bool = True

    def of(self, runs: list[Run], tree: str, **fields: object) -> float:
        return median_of(runs, self.key, through=tree + self.kind, **dict(self.fields), **fields)


def _figures() -> list[Figure]:
    figures = []
    for kind in ("", QUICK_START):
        for way in tools.DIRECTIONS:
            place = (kind, (("direction", way),))
            name = f"one stream {way}{kind}"
            figures.append(Figure(f"{name}, Gbit/s", "gbit_per_s", *place))
            figures.append(Figure(f"{name}, CPU-s/GB", "cpu_s_per_gb", *place, False))
    for mode, unit in connections.MODES.items():
        figures.append(Figure(unit, "per_s", fields=(("mode", mode),)))
    figures += [
        Figure("memory idle, MB", "idle_mb", more_is_better=False),
        Figure("memory for an idle stream, KB", "kb_each", more_is_better=False),
        Figure("memory after transfers, MB", "after_mb", more_is_better=False),
    ]
    return figures


FIGURES = _figures()


def measure_plain(tree: str, commands: setups.Commands, plan: Plan) -> list[Run]:
    return loopback.measure(tree, partial(chains.fastmtcp, commands=commands), plan.seconds)


def measure_quick_start(tree: str, commands: setups.Commands, plan: Plan) -> list[Run]:
    open_chain = partial(chains.fastmtcp, setup=setups.QUICK_START, commands=commands)
    return loopback.measure(tree + QUICK_START, open_chain, plan.seconds)


def measure_connections(tree: str, commands: setups.Commands, plan: Plan) -> list[Run]:
    open_chain = partial(chains.fastmtcp, commands=commands)
    with connections.nginx() as target:
        return connections.measure(tree, open_chain, target, plan.seconds, WRK_CONNECTIONS)


def measure_memory(tree: str, commands: setups.Commands, plan: Plan) -> list[Run]:
    open_chain = partial(chains.fastmtcp, commands=commands)
    return [memory.measure_growth(tree, open_chain, plan.held, plan.size)]


MEASUREMENTS = {
    "one stream": measure_plain,
    "one stream, quick start": measure_quick_start,
    "connections and requests": measure_connections,
    "memory": measure_memory,
}


def verdict(figure: Figure, runs: list[Run]) -> str:
    """The working tree over the base: of the medians, and the least and the most of the turns."""
    turns = sorted({run["turn"] for run in runs})
    ratios = [
        _ratio(figure.of(runs, TREE, turn=turn), figure.of(runs, BASE, turn=turn)) for turn in turns
    ]
    ratio = _ratio(figure.of(runs, TREE), figure.of(runs, BASE))
    return f"ratio {ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def _ratio(value: float, base: float) -> float:
    return value / base if base > 0 else float("nan")


def report(runs: list[Run]) -> str:
    rows = []
    for figure in FIGURES:
        values = [figure.of(runs, tree) for tree in (BASE, TREE)]
        cells = [f"{value:.0f}" if value >= 1000 else f"{value:.3g}" for value in values]
        better = "more" if figure.more_is_better else "less"
        rows.append([figure.name, *cells, verdict(figure, runs), better])
    return results.table(["medians", BASE, TREE, "verdict", "better is"], rows)


@click.command("compare.sh")
@click.argument("base")
@click.option("--quick", is_flag=True, help="Shorter measurements: a minute or two for all.")
@repeat_option
def compare(base: str, quick: bool, repeat: int) -> None:
    """Measure the working tree against the commit BASE, in turns.

    One stream, short connections, requests on connections that stay open, and memory. BASE is
    checked out beside this tree for the time of it, and only its commands are used, with the
    Python and the packages of this tree. A ratio is that of the medians, behind it the least and
    the most of the ratios of the single turns.
    """
    need("git", "iperf3", "wrk", "nginx")
    plan = QUICK if quick else Plan()
    runs: list[Run] = []
    with trees.checked_out(base) as other, tempfile.TemporaryDirectory() as folder:
        both = {
            BASE: trees.install(other, Path(folder) / "base"),
            TREE: trees.install(trees.REPOSITORY, Path(folder) / "tree"),
        }
        for turn in range(repeat):
            # The two close together: what else the machine does changes slowly. And each of them
            # first in every other turn: the second one finds the machine as the first one left it.
            order = [BASE, TREE] if turn % 2 == 0 else [TREE, BASE]
            for what, measure in MEASUREMENTS.items():
                results.progress(f"turn {turn + 1} of {repeat}: {what}")
                for tree in order:
                    runs += [run | {"turn": turn} for run in measure(tree, both[tree], plan)]
    settings = {"base": base, "repeat": repeat, **plan._asdict()}
    results.finish("compare", settings, runs, report(runs))
    for tree in both:
        errors = sum(run.get("errors", 0) for run in runs if run["through"] == tree)
        if errors:
            results.progress(f"{tree}: {errors} connections or requests of wrk failed")


if __name__ == "__main__":
    start(compare)
