"""What a session is doing, as plain values: for the status command, never for decisions.

Everything here only reads. `sent` and `received` are this side's; which side is the client, and
how fast the counters grow, is added outside.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.subflows.subflow import Subflow

MAX_RANGES = 4096
"""Ranges of one subflow whose un-ACKed bytes are counted: an application that writes single bytes
can make millions of them, and looking at all would hold up the session."""


class Totals(msgspec.Struct):
    """Counters of a session since it began, or sums of such."""

    subflows: int = 0
    """Now up."""
    subflows_ended: int = 0
    streams: int = 0
    """Now open."""
    streams_waiting: int = 0
    """That the limits of the two sides do not let be opened yet."""
    streams_opened: int = 0
    bytes_sent: int = 0
    """On subflows: payload, headers, control frames and reinjections."""
    bytes_received: int = 0
    payload_sent: int = 0
    """Of streams: bytes taken from the applications."""
    payload_received: int = 0
    """Of streams: in-order bytes for the applications."""
    unacked: int = 0
    """Bytes kept until the peer has data-ACKed them."""
    reinjected: int = 0
    stalls: int = 0

    def add(self, other: Totals) -> None:
        """Add the counters of `other`."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class SubflowSnapshot(msgspec.Struct):
    """One subflow. Bytes, seconds, bytes per second."""

    subflow_id: int
    role: list[str]
    """Of `up`, `down` (one or both), `backup`, `express`."""
    state: str
    """`active`, `suspect` or `retiring`."""
    age: float
    silent: float
    """Since something was last received."""
    estimate: int
    """The rate that the scheduler reckons with; 0 while unknown."""
    bytes_sent: int
    bytes_received: int
    unacked: int
    reinjected: int
    stalls: int


class StreamSnapshot(msgspec.Struct):
    """One stream. Bytes and seconds."""

    stream_id: int
    target: str
    state: str
    """`opening` until the target is connected, `open`, or `half-closed` after the first of the two
    FINs."""
    age: float
    sent: int
    """Taken from the application."""
    received: int
    """In order, for the application."""
    unsent: int
    unacked: int
    """Sent, and not data-ACKed by the peer."""
    undelivered: int
    """Received in order, and not taken by the application."""
    window: int
    """Flow-control window given to the peer."""
    credit: int
    """What the peer still lets this side send."""
    gaps: int


def totals(session: Session) -> Totals:
    """The counters of `session`, with what is gone."""
    past = session.past
    subflows = session.subflows.values()
    table = session.table
    return Totals(
        subflows=len(subflows),
        subflows_ended=past.count,
        streams=len(table.streams),
        streams_waiting=len(table.waiting),
        streams_opened=table.streams_opened,
        bytes_sent=past.bytes_sent + sum(s.bytes_sent for s in subflows),
        bytes_received=past.bytes_received + sum(s.bytes_received for s in subflows),
        payload_sent=table.payload_sent,
        payload_received=table.payload_received,
        unacked=session.held,
        reinjected=past.reinjected + sum(s.reinjected for s in subflows),
        stalls=past.stalls + sum(s.stalls for s in subflows),
    )


def subflow(of: Subflow, now: float) -> SubflowSnapshot:
    """One subflow as it is at `now`."""
    return SubflowSnapshot(
        subflow_id=of.subflow_id,
        role=[flag.name.lower() for flag in Role if flag & of.role and flag.name],
        state=_state(of),
        age=_seconds(now - of.created_at),
        silent=_seconds(now - of.heard_at),
        estimate=round(of.speed.rate),
        bytes_sent=of.bytes_sent,
        bytes_received=of.bytes_received,
        unacked=_unacked(of),
        reinjected=of.reinjected,
        stalls=of.stalls,
    )


def busiest(streams: Collection[Stream], most: int) -> list[Stream]:
    """Up to `most` streams: first those with most bytes on their way or waiting, then those that
    have carried most."""
    if len(streams) <= most:
        return list(streams)
    return sorted(streams, key=_activity, reverse=True)[:most]


def stream(of: Stream, now: float) -> StreamSnapshot:
    """One stream as it is at `now`."""
    send, receive = of.send, of.receive
    next_data = min(max(send.next, 0), send.buffer.end)
    if not of.connected:
        state = "opening"
    elif send.finished or receive.fin_at is not None:
        state = "half-closed"
    else:
        state = "open"
    return StreamSnapshot(
        stream_id=of.stream_id,
        target=of.target,
        state=state,
        age=_seconds(now - of.created_at),
        sent=send.buffer.end,
        received=receive.data.next,
        unsent=send.backlog,
        unacked=max(0, next_data - max(send.acked, 0)),
        undelivered=receive.data.ready_bytes,
        window=receive.window.size,
        credit=max(0, send.limit - next_data),
        gaps=receive.data.gaps,
    )


def _state(of: Subflow) -> str:
    if of.retiring:
        return "retiring"
    if of.suspect:
        return "suspect"
    return "active"


def _unacked(of: Subflow) -> int:
    count = 0
    for index, (carried, start, stop) in enumerate(of.inflight):
        if index == MAX_RANGES:
            break
        # The OPEN, at -1, and the FIN, at the end, are no bytes.
        low = max(start, carried.send.acked, 0)
        count += max(0, min(stop, carried.send.buffer.end) - low)
    return count


def _activity(of: Stream) -> tuple[int, int]:
    send, data = of.send, of.receive.data
    return send.buffer.end - send.acked + data.ready_bytes, send.buffer.end + data.next


def _seconds(value: float) -> float:
    return round(max(0.0, value), 3)
