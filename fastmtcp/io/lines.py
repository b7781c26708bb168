"""Log lines that others can cause as often as they like: a few one by one, the rest counted.

A target that is down, a balancer's check, a client that asks for what is not allowed: a line for
each would drown what matters, and the queue of the log would drop it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

MAX_LINES = 10
WINDOW = 10.0
"""So many lines of one kind from one source are logged one by one in so many seconds, and then all
others in one line."""

_MAX_SOURCES = 512
"""Sources that are told apart; more share what one has."""


class Clock(Protocol):
    """The loop."""

    now: float

    def call_at(self, when: float, callback: Callable[[], None]) -> object:
        """Call `callback` then."""


class _Kind:
    """The lines of one text from one source in one window."""

    __slots__ = ("count", "last", "level", "logger", "more", "until")

    def __init__(self, logger: logging.Logger, until: float) -> None:
        self.logger = logger
        self.until = until
        self.count = 0
        self.more = 0
        self.level = 0
        self.last = ""


class Lines:
    """The lines of one loop. A kind is a text with its placeholders; whoever causes many of one
    kind takes nothing from the others, nor from another source."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._waits = False

    def log(
        self, logger: logging.Logger, level: int, source: str, text: str, *values: object
    ) -> None:
        """Log `text % values`, or count it. `source` is who caused it: a client's name; empty for
        all that nobody has proved."""
        if not logger.isEnabledFor(level):
            return
        kind = self._kind(logger, source, text)
        kind.count += 1
        if kind.count <= MAX_LINES:
            logger.log(level, text, *values)
            return
        kind.more += 1
        kind.level = max(kind.level, level)
        kind.last = text % values
        self._wait_until(kind.until)

    def warning(self, logger: logging.Logger, source: str, text: str, *values: object) -> None:
        self.log(logger, logging.WARNING, source, text, *values)

    def info(self, logger: logging.Logger, source: str, text: str, *values: object) -> None:
        self.log(logger, logging.INFO, source, text, *values)

    def sum_up(self, *, all_of_them: bool = True) -> None:
        """Say how many were counted: of the windows that are over, or of all before the end."""
        now = self._clock.now
        for key, kind in list(self._kinds.items()):
            if all_of_them or now >= kind.until:
                del self._kinds[key]
                if kind.more == 1:
                    kind.logger.log(kind.level, "%s", kind.last)
                elif kind.more:
                    text = "%d more lines like this in %g s: %s"
                    kind.logger.log(kind.level, text, kind.more, WINDOW, kind.last)

    def _kind(self, logger: logging.Logger, source: str, text: str) -> _Kind:
        now = self._clock.now
        key = (text, source)
        kind = self._kinds.get(key)
        if kind is None and len(self._kinds) >= _MAX_SOURCES:
            self.sum_up(all_of_them=False)
            if len(self._kinds) >= _MAX_SOURCES:
                key = (text, "")
                kind = self._kinds.get(key)
        if kind is not None and now >= kind.until and not kind.more:
            kind = None
        if kind is None:
            kind = self._kinds[key] = _Kind(logger, now + WINDOW)
        return kind

    def _wait_until(self, when: float) -> None:
        if not self._waits:
            self._waits = True
            self._clock.call_at(when, self._on_time)

    def _on_time(self) -> None:
        self._waits = False
        self.sum_up(all_of_them=False)
        left = [kind.until for kind in self._kinds.values() if kind.more]
        if left:
            self._wait_until(min(left))
