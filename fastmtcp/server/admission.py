"""How many unauthenticated connections a server's worker has at once, and how often. Sans-IO:
`now` is an argument, in seconds.

Unauthenticated is a connection whose client has not proved that it holds a key. All it can do is
to keep others from coming in, and to take time from the sessions that are there; each limit says
which of the two.
"""

from __future__ import annotations

import ipaddress

from fastmtcp.engine.quota import Bucket

MAX_PER_ADDRESS = 256
"""Unauthenticated connections of one address at once: one machine alone cannot take all places. A
client that starts with all the connections it may have needs 120 for each worker."""

ACCEPT_RATE = 300.0
"""Unauthenticated connections a second, and as many at once after a pause. A handshake takes up to
half a millisecond of the worker's time, so a flood leaves 85% of it to the sessions."""

REFUSED_COST = 0.1
"""What one counts for that is closed at once."""

FREE_FAILURES = 20
"""Handshakes of one address that may fail before it is slowed down: guessing keys, garbage."""

FORGIVE_EVERY = 5.0
"""Seconds after which one failure is forgotten."""

MAX_FAILURES = 60
"""More are not counted, so that an address is at its best again after five minutes."""

SLOW_EVERY = 1.0
"""Seconds between two handshakes of an address that is slowed down."""

MAX_ADDRESSES = 4096
"""Addresses whose failures are remembered; then the one that failed least recently is forgotten."""


class _Record:
    """What is remembered of an address."""

    __slots__ = ("admitted_at", "failed_at", "failures")

    def __init__(self) -> None:
        self.failures = 0.0
        self.failed_at = 0.0
        self.admitted_at = float("-inf")

    def level(self, now: float) -> float:
        """Failures that are not forgotten yet."""
        return max(0.0, self.failures - (now - self.failed_at) / FORGIVE_EVERY)


class Admission:
    """Counts unauthenticated connections, by address, and says for which there is time."""

    def __init__(self, now: float, most: int) -> None:
        """`most` is how many this worker has at once. A quarter is kept for connections that other
        workers pass on: most of them belong to sessions that are there already."""
        self._most = most
        self._most_accepted = max(1, most * 3 // 4)
        self._waiting: dict[str, int] = {}
        self._accepted = 0
        self._total = 0
        self._records: dict[str, _Record] = {}
        self._tokens = Bucket(ACCEPT_RATE, now)

    def delay(self, now: float) -> float | None:
        """Seconds until the next connection should be accepted: 0 for at once, None for when a
        place is free."""
        if self._accepted >= self._most_accepted or self._total >= self._most:
            return None
        return self._tokens.delay(now)

    def accept(self, host: str, now: float) -> bool:
        """A connection of `host` was accepted: whether there is time for it. If so, leave() is due
        when it is authenticated or gone."""
        self._tokens.fill(now)
        where = _network(host)
        if self._waiting.get(where, 0) >= MAX_PER_ADDRESS or self._is_too_fast(where, now):
            self._tokens.spend(REFUSED_COST)
            return False
        self._tokens.spend(1)
        self._accepted += 1
        self._enter(where)
        return True

    def take_over(self, host: str) -> bool:
        """Another worker passes a connection of `host` on: whether there is a place for it. If so,
        leave() is due."""
        where = _network(host)
        if self._total >= self._most or self._waiting.get(where, 0) >= MAX_PER_ADDRESS:
            return False
        self._enter(where)
        return True

    def leave(self, host: str, *, accepted: bool) -> None:
        """A connection is authenticated, gone, or another worker's; `accepted` if it came by
        accept()."""
        where = _network(host)
        self._total -= 1
        self._accepted -= accepted
        left = self._waiting[where] - 1
        if left:
            self._waiting[where] = left
        else:
            del self._waiting[where]

    def failed(self, host: str, now: float) -> None:
        """A handshake of `host` has failed, by whatever fault of its own."""
        where = _network(host)
        # At the end: the one that failed least recently is the first to be forgotten.
        record = self._records.pop(where, None) or _Record()
        record.failures = min(MAX_FAILURES, record.level(now) + 1)
        record.failed_at = now
        self._records[where] = record
        if len(self._records) > MAX_ADDRESSES:
            del self._records[next(iter(self._records))]

    def _enter(self, where: str) -> None:
        self._total += 1
        self._waiting[where] = self._waiting.get(where, 0) + 1

    def _is_too_fast(self, where: str, now: float) -> bool:
        record = self._records.get(where)
        if record is None or record.level(now) < FREE_FAILURES:
            return False
        if now - record.admitted_at < SLOW_EVERY:
            return True
        record.admitted_at = now
        return False


def _network(host: str) -> str:
    """What one owner surely has: an IPv4 address, or an IPv6 network of 64 bits (RFC 6177)."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return address.packed[:8].hex()
