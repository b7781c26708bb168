"""Subflows that are not wanted any more, until the two sides have agreed on their end."""

from __future__ import annotations

from collections.abc import Sequence, Set
from functools import partial

from fastmtcp.driver.session import SessionDriver
from fastmtcp.driver.subflow import SubflowSocket
from fastmtcp.io.loop import Timer

_TIMEOUT = 10.0
"""Seconds. What a subflow carries may be long on its way where its line has become slow; what is
late goes out on others, so that nobody waits for this."""


class Retiring:
    """Has the session retire them, and gives up those that take too long."""

    def __init__(self, driver: SessionDriver) -> None:
        self._driver = driver
        self._timers: dict[SubflowSocket, Timer] = {}

    def add(self, subflows: Sequence[SubflowSocket]) -> None:
        """Retire these; no slot holds them any more."""
        for subflow in subflows:
            self._driver.session.retire(subflow.subflow)
            subflow.on_lost = partial(self._on_end, subflow)
            self._timers[subflow] = self._driver.loop.call_later(
                _TIMEOUT, partial(self._driver.lost, subflow, "not drained in time")
            )
        if subflows:
            self._driver.loop.call_soon(self._driver.progress)

    def leave(self, lost: Set[str]) -> None:
        """This machine does not have the addresses `lost` any more: what comes from them is
        dead."""
        for subflow in list(self._timers):
            if subflow.local_address in lost:
                self._driver.lost(subflow, "this machine lost its address")

    def stop(self) -> None:
        """The session has its end in view: what still retires is closed with it."""
        for timer in self._timers.values():
            timer.cancel()

    def _on_end(self, subflow: SubflowSocket, _reason: str) -> None:
        # It refers to the subflow, which would wait for the garbage collector.
        subflow.on_lost = None
        self._timers.pop(subflow).cancel()
