"""Pictures of results, where matplotlib is installed (pip install 'fastmtcp[perf]')."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perf import results, tools
from perf.results import Run, median_of

_TITLES = {tools.UP: "up (to the server)", tools.DOWN: "down (from the server)"}


def throttled(runs: list[Run], counts: Sequence[int], path: Path) -> None:
    """Write an SVG of iperf_compare: Mbit/s over the number of connections, both directions."""
    pyplot = _pyplot()
    if pyplot is None:
        results.progress("no plot: matplotlib is not installed (pip install 'fastmtcp[perf]')")
        return
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    xs = sorted(counts)
    for axis, direction in zip(axes, tools.DIRECTIONS, strict=True):
        styles: dict[str, tuple[str, dict[str, Any]]] = {
            "plain": ("N plain connections", {"color": "0.6", "linewidth": 6, "alpha": 0.6}),
            "fastmtcp": ("one stream through fastmtcp", {"color": "C0", "marker": "o"}),
        }
        for through, (label, style) in styles.items():
            ys = [
                median_of(runs, "mbit_per_s", through=through, connections=x, direction=direction)
                for x in xs
            ]
            axis.plot(xs, ys, label=label, **style)
        one = median_of(runs, "mbit_per_s", through="plain", connections=1, direction=direction)
        axis.axhline(one, color="C3", linestyle="--", label="one plain connection")
        axis.set(title=_TITLES[direction], xlabel="connections", xticks=xs, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("Mbit/s")
    axes[0].legend()
    figure.savefig(path)
    pyplot.close(figure)
    print(f"plot: {path}")


def _pyplot() -> Any:
    # By name: matplotlib is an extra, and the type checker must do without it.
    try:
        importlib.import_module("matplotlib").use("svg")
    except ImportError:
        return None
    return importlib.import_module("matplotlib.pyplot")
