"""One subflow: in which state it is, what it carries, and what was heard of it.

It is in one of five states (State):

    ACTIVE      carries whatever its lane lets it carry
    SUSPECT     silent though something is on its way: what it carries has gone out on others as
                well, and it gets nothing new while there is a better one
    RETIRING    gets nothing new; closed when each side has read all of it
    STUCK       retiring, and silent besides
    GONE        closed, or lost at either side; final

What may happen, and the state that follows; where nothing stands it stays as it is:

                become_suspect()   clear()     retire()    end()
    ACTIVE      SUSPECT                        RETIRING    GONE
    SUSPECT                        ACTIVE      STUCK       GONE
    RETIRING    STUCK                                      GONE
    STUCK                          RETIRING                GONE
    GONE

What is kept beside the state changes for reasons of its own: `ready` with what the socket takes,
`lane` with the states and roles of all subflows of the session, `guard.aside` with what it costs
the others (fastmtcp.engine.subflows.guard), and `speed` with every sample
(fastmtcp.engine.subflows.rate).
"""

from __future__ import annotations

import enum

from fastmtcp.engine.subflows.delivery import Delivery
from fastmtcp.engine.subflows.guard import Guard
from fastmtcp.engine.subflows.inflight import InFlight
from fastmtcp.engine.subflows.rate import Sample, Speed
from fastmtcp.engine.subflows.role import Role


class State(enum.Enum):
    """See the table in the module."""

    ACTIVE = 0
    SUSPECT = 1
    RETIRING = 2
    STUCK = 3
    GONE = 4


_WHEN_SUSPECT = {State.ACTIVE: State.SUSPECT, State.RETIRING: State.STUCK}
_WHEN_CLEARED = {State.SUSPECT: State.ACTIVE, State.STUCK: State.RETIRING}
_WHEN_RETIRED = {State.ACTIVE: State.RETIRING, State.SUSPECT: State.STUCK}


class Cause(enum.Enum):
    """Why a subflow is suspect, which says what clears it."""

    KERNEL = 1
    """The next kernel acknowledges nothing."""
    DELIVERY = 2
    """The peer's process gets nothing, though a relay may have taken it."""
    PEER = 3
    """The peer says that nothing of its own gets through."""


class Subflow:
    """See the module."""

    __slots__ = (
        "awaits_ack",
        "bytes_received",
        "bytes_sent",
        "cause",
        "cost",
        "counted",
        "created_at",
        "delivery",
        "guard",
        "heard_at",
        "inflight",
        "lane",
        "overhead",
        "peer_window",
        "ping_position",
        "pinged_at",
        "progress_at",
        "ready",
        "reinjected",
        "role",
        "sends",
        "speed",
        "stalls",
        "state",
        "subflow_id",
        "suspect_since",
        "through",
        "unread",
        "unsent",
    )

    def __init__(
        self, subflow_id: int, now: float, role: Role = Role.BOTH, *, sends: bool = True
    ) -> None:
        self.subflow_id = subflow_id
        self.role = role
        self.sends = sends
        """True if this side may send data on it."""
        self.state = State.ACTIVE
        self.ready = False
        """True if the socket would take bytes now."""
        self.lane = 0
        """What it may carry: CONTROL, SWIFT or BULK of fastmtcp.engine.scheduling.lanes."""
        self.inflight = InFlight()
        """Ranges that it carries and the peer has not acknowledged."""
        self.delivery = Delivery(now)
        """What the peer has read of it."""
        self.speed = Speed(self.delivery, now)
        self.guard = Guard(now)
        """Whether it brings more than it costs the others."""
        self.created_at = now
        self.bytes_sent = 0
        self.bytes_received = 0
        self.overhead = 0
        """Bytes that TLS has added to those sent, as the caller tells: the kernel counts them."""
        self.reinjected = 0
        self.stalls = 0
        """How often it has become suspect."""
        self.cause = Cause.KERNEL
        """Why it became suspect the last time."""
        self.suspect_since = now
        self.heard_at = now
        self.pinged_at: float | None = None
        self.ping_position = 0
        """Bytes on the wire when the last PING was sent: it is through when the kernel reports as
        many."""
        self.through = 0
        """Bytes that the other kernel has acknowledged."""
        self.awaits_ack = False
        """True if something, be it a control frame, is not acknowledged by the other kernel."""
        self.progress_at = now
        """When the other kernel last acknowledged something, or there was nothing to."""
        self.peer_window = -1
        self.unread = 0
        """Bytes of it that were read and not handled."""
        self.unsent = 0
        """Bytes that its socket has not taken, when last looked at."""
        self.cost = self.counted = 0
        """Bytes of memory that it takes in any case, and that are counted for it."""

    # --- its state ------------------------------------------------------------------------

    @property
    def works(self) -> bool:
        """True if it gets through what it carries, as far as we know."""
        return self.state is State.ACTIVE or self.state is State.RETIRING

    @property
    def suspect(self) -> bool:
        return self.state is State.SUSPECT or self.state is State.STUCK

    @property
    def retiring(self) -> bool:
        return self.state is State.RETIRING or self.state is State.STUCK

    @property
    def is_whole(self) -> bool:
        """True if it may end without anything being sent again: it retires, and the peer has read
        all that it ever carried. Whatever else closes a connection, a proxy for one, does not tell
        whether what was on its way has arrived."""
        return self.retiring and self.delivery.got >= self.bytes_sent

    def become_suspect(self, cause: Cause, now: float) -> None:
        if self.state not in _WHEN_SUSPECT:
            return
        self.state = _WHEN_SUSPECT[self.state]
        self.cause = cause
        self.suspect_since = now
        self.stalls += 1

    def is_cleared(self) -> bool:
        """True if what a suspect subflow was suspected of is no longer so."""
        match self.cause:
            case Cause.DELIVERY:
                progress = self.delivery.progress_at
            case Cause.PEER:
                progress = self.heard_at
            case _:
                progress = self.progress_at
        return progress > self.suspect_since

    def clear(self) -> None:
        """It is suspect no longer."""
        self.state = _WHEN_CLEARED.get(self.state, self.state)

    def retire(self) -> None:
        self.state = _WHEN_RETIRED.get(self.state, self.state)

    def end(self) -> None:
        self.state = State.GONE

    # --- what it sends ----------------------------------------------------------------------

    def count_sent(self, size: int, now: float) -> None:
        self.bytes_sent += size
        self.speed.sent_since += size
        if not self.awaits_ack:
            # Nobody looked while it was idle: the clock of its progress starts now.
            self.awaits_ack = True
            self.progress_at = now

    def on_sample(self, sample: Sample, now: float) -> None:
        """Take what the system knows of the connection."""
        if sample.bytes_acked > self.through:
            self.through = sample.bytes_acked
            if self.pinged_at is not None and self.through < self.ping_position:
                # On a slow line the PING itself waits behind what was sent before it. Once it is
                # through, only the peer's answer counts: the kernel that took it may be a relay's.
                self.pinged_at = now
            self.progress_at = now
        elif not sample.unacked:
            self.progress_at = now
        self.awaits_ack = sample.unacked > 0 or sample.not_sent > 0
        self.peer_window = sample.peer_window
        self.speed.on_sample(sample, now)

    def drain_time(self, now: float) -> float:
        """Seconds until all that this subflow carries has arrived, as far as we know."""
        if self.suspect:
            return 60.0
        speed = self.speed
        way = speed.rtt / 2
        return speed.eta(now) + max(way, now - self.progress_at - way)


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
