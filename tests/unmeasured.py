"""Programs that the measuring of coverage would disturb."""

from __future__ import annotations

import os


def environment() -> dict[str, str]:
    """For a program in which no coverage shall be measured: it imports modules of its own, and an
    exception of a signal handler can leave its lock taken for ever."""
    return {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
