"""Subflows that are not wanted any more, until all that they carry has arrived."""

from __future__ import annotations

from collections.abc import Sequence

from fastmtcp.driver.session import SessionDriver
from fastmtcp.driver.subflow import SubflowSocket
from fastmtcp.io.loop import Timer

_CHECK = 0.05
_TIMEOUT = 10.0


class Retiring:
    """Gives them no more data, and closes each as soon as nothing is lost by it, or when it takes
    too long."""

    def __init__(self, driver: SessionDriver) -> None:
        self._driver = driver
        self._loop = driver.loop
        self._until: dict[SubflowSocket, float] = {}
        self._timer: Timer | None = None
        self._stopped = False

    def add(self, subflows: Sequence[SubflowSocket]) -> None:
        """Retire these; no slot holds them any more."""
        for subflow in subflows:
            self._driver.session.retire(subflow.subflow)
            self._until[subflow] = self._loop.now + _TIMEOUT
        self._check()

    def stop(self) -> None:
        """The session has its end in view: what still retires is closed with it."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for subflow, until in list(self._until.items()):
            if self._driver.close_retired(subflow):
                del self._until[subflow]
            elif self._loop.now >= until:
                del self._until[subflow]
                self._driver.lost(subflow, "not drained in time")
        if self._until and not self._stopped:
            self._timer = self._loop.call_later(_CHECK, self._check)
