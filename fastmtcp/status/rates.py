"""How fast subflows are: differences of their counters, taken once a second."""

from __future__ import annotations

from collections.abc import Iterable

from fastmtcp.engine.subflows.subflow import Subflow

SAMPLE_EVERY = 1.0
_SHORTEST = 0.2


class Rates:
    """Call sample() every SAMPLE_EVERY seconds; of() then measures over one to two of them."""

    def __init__(self) -> None:
        # Two generations: a rate taken right after a sample would be of no time at all.
        self._older: dict[Subflow, tuple[float, int, int]] = {}
        self._newer: dict[Subflow, tuple[float, int, int]] = {}

    def sample(self, subflows: Iterable[Subflow], now: float) -> None:
        """Remember the counters of all `subflows`; the others are forgotten."""
        self._older = self._newer
        self._newer = {s: (now, s.bytes_sent, s.bytes_received) for s in subflows}

    def of(self, subflow: Subflow, now: float) -> tuple[int, int]:
        """Bytes per second sent and received."""
        since, sent, received = self._older.get(subflow, (subflow.created_at, 0, 0))
        span = max(now - since, _SHORTEST)
        return (
            round((subflow.bytes_sent - sent) / span),
            round((subflow.bytes_received - received) / span),
        )
