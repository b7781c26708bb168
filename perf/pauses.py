"""Who saw no byte for long in a soak, and what the two programs said of themselves then."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from perf import results
from perf.faults import RESET, Fault, state, without_any_line
from perf.network import Network
from perf.setups import OURS
from perf.soak_end import LONG, Waits
from perf.uplinks import address

MOST = 200
_LATE = 0.3
"""Seconds after which the programs are not asked any more: they would tell of another time."""

_BEFORE = 10.0
"""Seconds before a pause whose faults are written down with it."""

_ASKING = 10.0


class Pause(NamedTuple):
    """One pause while it lasted."""

    since: float
    at: float
    """When it was written down; it may have gone on."""
    waits: Waits
    lines: str
    faults: list[Fault]
    resets: list[float]
    """Those shortly before it, and in it."""
    client: Any
    """The status document of each side, None if it did not answer."""
    server: Any

    def __str__(self) -> str:
        return (
            f"no byte of {self.waits['kind']} ({self.waits['size']} bytes) since {self.since:.1f} s"
            f", at {self.at:.1f} s; {self.lines}; {len(self.resets)} resets; client: "
            f"{subflows_in(self.client)}; server: {subflows_in(self.server)}"
        )


class PauseRecorder:
    """Reads what the ends of the transfers tell of their waiting, and asks both programs.

    `resets` grows while it goes on.
    """

    def __init__(
        self, names: Network, lines: int, faults: Sequence[Fault], resets: list[float], begin: float
    ) -> None:
        self.pauses: list[Pause] = []
        self._names = names
        self._lines = lines
        self._faults = faults
        self._resets = resets
        self._begin = begin
        self._lock = threading.Lock()
        self._known: set[tuple[str, float]] = set()

    def follow(self, lines: Iterable[str]) -> None:
        """Hear of all in `lines`, one JSON object each, from a thread of its own."""

        def run() -> None:
            for line in lines:
                self.hear(json.loads(line)["waits"])

        threading.Thread(target=run, daemon=True).start()

    def hear(self, waits: Waits) -> None:
        """Somebody waits. Written down once for each pause that is long with a line."""
        since, at = waits["since"], waits["at"]
        if at - since - without_any_line(self._faults, self._lines, since, at) <= LONG:
            return
        with self._lock:
            which = (waits["kind"], since)
            # What waited here while others were asked is told again if it still is so.
            late = time.monotonic() - self._begin - at
            if which in self._known or len(self.pauses) >= MOST or late > _LATE:
                return
            self._known.add(which)
            with ThreadPoolExecutor(2) as pool:
                client, server = pool.map(ask, self._names)
            now = [f for f in self._faults if f.kind != RESET and since - _BEFORE < f.end]
            pause = Pause(
                since,
                at,
                waits,
                describe(self._faults, self._lines, at),
                [fault for fault in now if fault.start < at],
                [reset for reset in self._resets if since - _BEFORE < reset],
                client,
                server,
            )
            self.pauses.append(pause)
            results.progress(str(pause))


def describe(faults: Sequence[Fault], lines: int, at: float) -> str:
    """What the lines are like, in words."""
    now = state(faults, at)
    words = []
    for line in range(lines):
        part = now.slow.get(line)
        word = "silent" if line in now.silent else f"{part:.0%}" if part else "whole"
        words.append(f"{address(line)} {word}")
    return ", ".join(words)


def ask(namespace: str) -> Any:
    """The status of the program that runs there; None if it does not say."""
    command = [*Network.inside(namespace), *OURS.main, "status", "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASKING)
        return json.loads(done.stdout)["instances"][0]
    except (OSError, ValueError, LookupError, subprocess.SubprocessError):
        return None


def subflows_in(document: Any) -> str:
    """How many subflows of which state it has from and to each address of the client."""
    if document is None:
        return "no answer"
    found: Counter[str] = Counter()
    for subflow in _subflows(document):
        client = subflow["local" if "client" in document["program"] else "remote"]
        found[f"{client.rpartition(':')[0]} {subflow['state']}"] += 1
    return ", ".join(f"{count} x {what}" for what, count in sorted(found.items()))


def _subflows(document: Any) -> Iterable[Any]:
    for worker in document["workers"]:
        for session in worker["sessions"]:
            yield from session["subflows"]
