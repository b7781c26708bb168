"""Tells the service manager how the program is (sd_notify(3)): ready, stopping, alive.

The protocol is a datagram of NAME=VALUE lines to the socket that NOTIFY_SOCKET names. Nothing is
sent, and nothing goes wrong, where there is none.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping


class Notifier:
    """The line to the service manager. Never blocks."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Takes the variables out of `environment`: whatever we start must not speak for us."""
        address = environment.pop("NOTIFY_SOCKET", "")
        # An @ stands for the NUL of Linux' abstract namespace (unix(7)).
        self._address = "\0" + address[1:] if address.startswith("@") else address
        microseconds = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        self._interval = 0.0
        if microseconds.isdecimal() and pid in ("", str(os.getpid())):
            # Half of the time, as sd_watchdog_enabled(3) recommends.
            self._interval = int(microseconds) * 1e-6 / 2
        self._alive_at = float("-inf")

    def send(self, *lines: str) -> None:
        """Send `lines`, such as READY=1."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), self._address)

    def alive(self, now: float) -> None:
        """All is well at `now`, seconds. Passed on as often as the watchdog needs it."""
        if self._interval and now - self._alive_at >= self._interval:
            self._alive_at = now
            self.send("WATCHDOG=1")
