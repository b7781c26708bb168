"""How fast a subflow is: its rate and round-trip time, and what follows from them."""

from __future__ import annotations

import enum
from collections import deque

import msgspec

from fastmtcp.engine.limits import (
    CHUNK_TIME,
    KIB,
    LOWAT_TIME,
    MAX_CHUNK,
    MAX_LOWAT,
    MIN_CHUNK,
    MIN_LOWAT,
    START_CHUNK,
    START_LOWAT,
    START_RATE,
)
from fastmtcp.engine.subflows.delivery import Delivery

_RATE_MEMORY = 1.0
_DEFAULT_RTT = 0.1
_FULL_ROUNDS = 3
_PROBE_EVERY = 10.0
_PROBE_FOR = 0.5

_HOARD = 64 * KIB
_HOARD_TIME = 0.1
"""Seconds of the peer's rate: a report takes no longer where nothing lies in between. What the next
kernel has taken beyond that, and the peer has not read, a relay holds."""

_RELAY_FOR = 2.0
"""Seconds for which a relay is believed to be one."""


class Sample(msgspec.Struct, frozen=True, gc=False):
    """What the operating system knows of a connection (TCP_INFO, tcp(7)). Bytes and seconds."""

    rtt: float
    delivery_rate: float
    app_limited: bool
    not_sent: int
    unacked: int
    bytes_acked: int
    peer_window: int = -1
    """The peer's TCP window, -1 where the system does not tell."""


def reported(delivery: Delivery) -> Sample:
    """What the peer's reports tell, for a system that knows nothing of its connections."""
    return Sample(
        rtt=delivery.rtt,
        delivery_rate=delivery.rate,
        app_limited=not delivery.waits,
        not_sent=0,
        unacked=delivery.on_its_way,
        bytes_acked=delivery.got,
    )


class _Phase(enum.Enum):
    """Whether the rate is what the path can do. A young connection's is much lower."""

    GROWING = 0
    PROBED = 1
    """It gets copies of what others carry, so that there is enough to send."""
    SETTLED = 2
    """The rate has stopped growing though there was enough to send."""


class Speed:
    """How fast one subflow is. Bytes and seconds."""

    __slots__ = (
        "_delivery",
        "_hoarded_at",
        "_phase",
        "_phase_since",
        "_plateau",
        "_rates",
        "_round_at",
        "_rounds",
        "_sample_at",
        "chunk",
        "lowat",
        "not_sent",
        "rate",
        "rtt",
        "sent_since",
    )

    def __init__(self, delivery: Delivery, now: float) -> None:
        self.rtt = _DEFAULT_RTT
        self.rate = 0.0
        """Bytes a second; 0 while unknown."""
        self.not_sent = 0
        """Bytes that wait in this system's kernel, by the last sample."""
        self.sent_since = 0
        """Bytes given to the kernel since the last sample."""
        self.chunk = START_CHUNK
        """How much the subflow is given at a time."""
        self.lowat = START_LOWAT
        """How much may wait in the kernel (TCP_NOTSENT_LOWAT)."""
        self._delivery = delivery
        self._sample_at = now
        self._rates: deque[tuple[float, float]] = deque()
        self._hoarded_at = float("-inf")
        self._phase = _Phase.GROWING
        self._phase_since = now
        self._plateau = 0.0
        self._rounds = 0
        self._round_at = now

    def eta(self, now: float) -> float:
        """Seconds until a byte given to this subflow now would be at the peer."""
        rate = self.rate or START_RATE
        queued = self.not_sent + self.sent_since - rate * (now - self._sample_at)
        return max(queued, 0.0) / rate + self.rtt / 2

    def on_sample(self, sample: Sample, now: float) -> None:
        """Follow the path: its rate sets the low-water mark and the chunk size."""
        sample = self._through_relay(sample, now)
        self.rtt = sample.rtt
        self.not_sent = sample.not_sent
        self._sample_at = now
        self.sent_since = 0
        rates = self._rates
        while rates and rates[0][0] < now - _RATE_MEMORY:
            rates.popleft()
        # An application-limited sample says what we gave, not what the path can do (see
        # "delivery rate estimation", draft-cheng-iccrg-delivery-rate-estimation).
        if not sample.app_limited or sample.delivery_rate > (self.rate or START_RATE):
            while rates and rates[-1][1] <= sample.delivery_rate:
                rates.pop()
            rates.append((now, sample.delivery_rate))
        if rates:
            self.rate = rates[0][1]
            self.chunk = max(MIN_CHUNK, min(MAX_CHUNK, int(self.rate * CHUNK_TIME)))
            self.lowat = max(MIN_LOWAT, min(MAX_LOWAT, int(self.rate * LOWAT_TIME)))
        if (
            self._phase is not _Phase.SETTLED
            and not sample.app_limited
            and now - self._round_at >= sample.rtt
        ):
            self._on_round(now)

    def may_probe(self, now: float) -> bool:
        """True if it should get copies, to find out how fast it is
        (fastmtcp.engine.scheduling.head_of_line).

        Asked only while it is too slow for anything else.
        """
        since = now - self._phase_since
        match self._phase:
            case _Phase.SETTLED:
                if since < _PROBE_EVERY:
                    return False
                self._plateau = 0.0
                self._rounds = 0
                self._enter(_Phase.PROBED, now)
            case _Phase.GROWING:
                self._enter(_Phase.PROBED, now)
            case _Phase.PROBED if since > max(_PROBE_FOR, 6 * self.rtt):
                # The copies never filled it, so nobody knows more than at the beginning.
                self._enter(_Phase.SETTLED, now)
                if self.rate < START_RATE:
                    self._rates.clear()
                    self._rates.append((now, START_RATE))
                    self.rate = START_RATE
                    self.chunk = START_CHUNK
                return False
        return True

    def _enter(self, phase: _Phase, now: float) -> None:
        self._phase = phase
        self._phase_since = now

    def _on_round(self, now: float) -> None:
        """A round trip with enough to send is over: three without growth, and the rate is what
        the path can do (as BBR tells that the pipe is full)."""
        self._round_at = now
        if self.rate >= 1.25 * self._plateau:
            self._plateau = self.rate
            self._rounds = 0
            self._enter(_Phase.GROWING, now)
            return
        self._rounds += 1
        if self._rounds == _FULL_ROUNDS:
            self._enter(_Phase.SETTLED, now)

    def _through_relay(self, sample: Sample, now: float) -> Sample:
        """What the peer says of a path through a relay, which takes what goes no further.

        The kernel knows the way to the relay only, perhaps one within this machine: by its word
        such a path would be the fastest of all, and get everything.
        """
        delivery = self._delivery
        hoarded = delivery.on_its_way - sample.unacked - sample.not_sent
        full = hoarded > self.chunk + _HOARD + delivery.rate * _HOARD_TIME
        if full and delivery.rate:
            if now - self._hoarded_at >= _RELAY_FOR:
                self._rates.clear()
            self._hoarded_at = now
        elif now - self._hoarded_at >= _RELAY_FOR:
            return sample
        rate = min(sample.delivery_rate, delivery.rate)
        return msgspec.structs.replace(sample, delivery_rate=rate, app_limited=not full)
