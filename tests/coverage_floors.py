"""Puts together what several runs of pytest have measured, prints it, and fails below the floors.

    python -m tests.coverage_floors DATA-FILE...

A floor of 100% would only breed tests of what cannot happen; these are what the suite reaches, with
some room for what depends on how busy the machine is.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import coverage

ENGINE_BRANCHES = 97.0
WHOLE = 90.0
"""Percent, the whole by lines and branches together."""

_OTHER_TREES = ["**/fastmtcp-base-*/**"]
"""Trees that perf/compare.sh checks out for a moment: not ours, and gone by now."""


def main(files: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        measured = coverage.Coverage(data_file=str(Path(folder, "all")))
        measured.combine(files, keep=True)
        failed = False
        for what, files_of_it, key, floor in (
            ("branches of engine/", "*/fastmtcp/engine/*", "branches", ENGINE_BRANCHES),
            ("whole", "*/fastmtcp/*", "all", WHOLE),
        ):
            report = Path(folder, "report")
            measured.json_report(outfile=str(report), include=[files_of_it], omit=_OTHER_TREES)
            totals = json.loads(report.read_text())["totals"]
            percent = totals["percent_covered"]
            if key == "branches":
                percent = 100 * totals["covered_branches"] / totals["num_branches"]
            print(f"coverage, {what}: {percent:.1f}% (floor {floor:g}%)")
            if percent < floor:
                failed = True
                measured.report(
                    include=[files_of_it], omit=_OTHER_TREES, show_missing=True, skip_covered=True
                )
        return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
