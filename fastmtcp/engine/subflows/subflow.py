"""What the engine knows of one subflow: what it carries, how fast it is, whether it lives."""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING

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
from fastmtcp.engine.scheduling.head_of_line import Guard
from fastmtcp.engine.subflows.delivery import Delivery
from fastmtcp.engine.subflows.rate import Sample
from fastmtcp.engine.subflows.role import Role

if TYPE_CHECKING:
    from fastmtcp.engine.streams.stream import Stream

_RATE_MEMORY = 1.0
_SWEEP = 256
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


class Doubt(enum.Enum):
    """Why a subflow is suspect, which says what clears it."""

    NONE = 0
    KERNEL = 1
    """The next kernel acknowledges nothing."""
    DELIVERY = 2
    """The peer's process gets nothing, though a relay may have taken it."""
    PEER = 3
    """The peer says that nothing of its own gets through."""


class Subflow:
    """State of one subflow."""

    __slots__ = (
        "_acked",
        "_hoarded_at",
        "_plateau",
        "_probed_since",
        "_rates",
        "_round_at",
        "_rounds",
        "_sample_at",
        "_sent_since",
        "_settled_at",
        "_sweep_at",
        "bytes_received",
        "bytes_sent",
        "chunk",
        "created_at",
        "delivered",
        "delivery",
        "doubt",
        "gone",
        "guard",
        "heard_at",
        "in_flight",
        "inflight",
        "lane",
        "lowat",
        "not_sent",
        "own",
        "peer_window",
        "ping_position",
        "pinged_at",
        "probing",
        "progress_at",
        "rate",
        "ready",
        "reinjected",
        "retiring",
        "role",
        "rtt",
        "sends",
        "settled",
        "stalls",
        "subflow_id",
        "suspect",
        "suspect_since",
    )

    def __init__(
        self, subflow_id: int, now: float, role: Role = Role.BOTH, *, sends: bool = True
    ) -> None:
        self.subflow_id = subflow_id
        self.role = role
        self.sends = sends
        """True if this side may send data on it."""
        self.ready = False
        """True if the socket would take bytes now."""
        self.inflight: deque[tuple[Stream, int, int]] = deque()
        """Ranges in the order in which they were given to this subflow."""
        self.own: list[bytes] = []
        """Frames that must travel on this subflow and no other (PING, PONG)."""
        self.created_at = now
        self.bytes_sent = 0
        self.bytes_received = 0
        self.reinjected = 0
        self.heard_at = now
        self.pinged_at: float | None = None
        self.ping_position = 0
        """Bytes sent when the last PING was: it is through when the kernel reports as many."""
        self.delivered = False
        """True if something that it carried was acknowledged since this was last cleared."""
        self.rtt = _DEFAULT_RTT
        self.rate = 0.0
        """Bytes a second; 0 while unknown."""
        self.not_sent = 0
        self.in_flight = False
        """True if something, be it a control frame, is not acknowledged by the other kernel."""
        self.peer_window = -1
        self.progress_at = now
        """When the path last got something through, or had nothing to carry."""
        self.suspect = False
        """True while the path is silent though it has something to carry."""
        self.suspect_since = now
        self.stalls = 0
        self.lane = 0
        """What it may carry now: CONTROL, SWIFT or BULK of fastmtcp.engine.lanes."""
        self.gone = False
        """True once the peer has said that it is."""
        self.retiring = False
        """True if it gets nothing new: it is closed when what it carries is acknowledged."""
        self.delivery = Delivery(now)
        self.doubt = Doubt.NONE
        """Why it is suspect."""
        self.guard = Guard(now)
        """Whether it brings more than it costs the others."""
        self.settled = False
        """True once its rate has stopped growing though there was enough to send: before that, a
        young connection is taken for much slower than it is."""
        self.probing = False
        """True if the next chunk only finds out the rate: it goes out on another as well."""
        self.chunk = START_CHUNK
        self.lowat = START_LOWAT
        self._acked = 0
        self._hoarded_at = float("-inf")
        self._rates: deque[tuple[float, float]] = deque()
        self._plateau = 0.0
        self._probed_since: float | None = None
        self._rounds = 0
        self._round_at = now
        self._settled_at = now
        self._sample_at = now
        self._sent_since = 0
        self._sweep_at = _SWEEP

    def count_sent(self, size: int, now: float) -> None:
        self.bytes_sent += size
        self._sent_since += size
        if not self.in_flight:
            # Nobody looked while it was idle: the clock of its progress starts now.
            self.in_flight = True
            self.progress_at = now

    def carry(self, stream: Stream, start: int, stop: int) -> None:
        """Remember that this subflow carries a range, and forget what is acknowledged."""
        self.is_carrying()
        self.inflight.append((stream, start, stop))
        if len(self.inflight) >= self._sweep_at:
            self._sweep()

    def is_carrying(self) -> bool:
        """True if it carries anything that is not acknowledged."""
        inflight = self.inflight
        while inflight:
            stream, _, stop = inflight[0]
            if stream.send.acked < stop and stream.reset_code is None:
                return True
            inflight.popleft()
            self.delivered = True
        return False

    def _sweep(self) -> None:
        """A range in front whose stream waits for another subflow must not keep all that was
        acknowledged behind it."""
        self.inflight = deque(
            (stream, start, stop)
            for stream, start, stop in self.inflight
            if stream.send.acked < stop and stream.reset_code is None
        )
        self._sweep_at = max(_SWEEP, 2 * len(self.inflight))

    def on_sample(self, sample: Sample, now: float) -> None:
        """Follow the path: its rate sets the low-water mark and the chunk size."""
        if sample.bytes_acked > self._acked:
            self._acked = sample.bytes_acked
            if self.pinged_at is not None and self._acked < self.ping_position:
                # On a slow line the PING itself waits behind what was sent before it. Once it is
                # through, only the peer's answer counts: the kernel that took it may be a relay's.
                self.pinged_at = now
            self.progress_at = now
        elif not sample.unacked:
            self.progress_at = now
        self.in_flight = sample.unacked > 0 or sample.not_sent > 0
        self.peer_window = sample.peer_window
        sample = self._through_relay(sample, now)
        self.rtt = sample.rtt
        self.not_sent = sample.not_sent
        self._sample_at = now
        self._sent_since = 0
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
        if not self.settled and not sample.app_limited and now - self._round_at >= sample.rtt:
            self._on_round(now)

    def _through_relay(self, sample: Sample, now: float) -> Sample:
        """What the peer says of a path through a relay, which takes what goes no further.

        The kernel knows the way to the relay only, perhaps one within this machine: by its word
        such a path would be the fastest of all, and get everything.
        """
        delivery = self.delivery
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

    def _on_round(self, now: float) -> None:
        """A round trip with enough to send is over: three without growth, and the rate is what
        the path can do (as BBR tells that the pipe is full)."""
        self._round_at = now
        if self.rate >= 1.25 * self._plateau:
            self._plateau = self.rate
            self._rounds = 0
            self._probed_since = None
            return
        self._rounds += 1
        if self._rounds == _FULL_ROUNDS:
            self.settled = True
            self._settled_at = now
            self._probed_since = None

    def may_probe(self, now: float) -> bool:
        """True if it should get copies, to find out how fast it is (fastmtcp.engine.head_of_line).

        Asked only while it is too slow for anything else.
        """
        if self.settled and now - self._settled_at >= _PROBE_EVERY:
            self.settled = False
            self._plateau = 0.0
            self._rounds = 0
            self._probed_since = now
        if self.settled:
            return False
        if self._probed_since is None:
            self._probed_since = now
        if now - self._probed_since > max(_PROBE_FOR, 6 * self.rtt):
            # The copies never filled it, so nobody knows more than at the beginning.
            self.settled = True
            self._settled_at = now
            self._probed_since = None
            if self.rate < START_RATE:
                self._rates.clear()
                self._rates.append((now, START_RATE))
                self.rate = START_RATE
                self.chunk = START_CHUNK
            return False
        return True

    @property
    def through(self) -> int:
        """Bytes that the other kernel has acknowledged."""
        return self._acked

    def own_sample(self) -> Sample:
        """What the peer's reports tell, for a system that knows nothing of its connections."""
        delivery = self.delivery
        return Sample(
            rtt=delivery.rtt,
            delivery_rate=delivery.rate,
            app_limited=not delivery.waits,
            not_sent=0,
            unacked=delivery.on_its_way,
            bytes_acked=delivery.got,
        )

    def become_suspect(self, doubt: Doubt, now: float) -> None:
        self.suspect = True
        self.doubt = doubt
        self.suspect_since = now
        self.stalls += 1

    def is_cleared(self) -> bool:
        """True if what a suspect subflow was suspected of is no longer so."""
        match self.doubt:
            case Doubt.DELIVERY:
                progress = self.delivery.progress_at
            case Doubt.PEER:
                progress = self.heard_at
            case _:
                progress = self.progress_at
        return progress > self.suspect_since

    def arrival(self, now: float) -> float:
        """Seconds until a byte given to this subflow now would arrive (earliest arrival wins)."""
        return self._queued(now) + self.rtt / 2

    def drain_time(self, now: float) -> float:
        """Seconds until all that this subflow carries has arrived, as far as we know."""
        if self.suspect:
            return 60.0
        return self._queued(now) + max(self.rtt, now - self.progress_at)

    def _queued(self, now: float) -> float:
        rate = self.rate or START_RATE
        queued = self.not_sent + self._sent_since - rate * (now - self._sample_at)
        return max(queued, 0.0) / rate


class Past:
    """Sums over the subflows of a session that are gone."""

    __slots__ = ("bytes_received", "bytes_sent", "count", "reinjected", "stalls")

    def __init__(self) -> None:
        self.count = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.reinjected = 0
        self.stalls = 0

    def add(self, subflow: Subflow) -> None:
        self.count += 1
        self.bytes_sent += subflow.bytes_sent
        self.bytes_received += subflow.bytes_received
        self.reinjected += subflow.reinjected
        self.stalls += subflow.stalls
