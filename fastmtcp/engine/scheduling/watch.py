"""Watches the subflows' progress: silence, and ranges that hold up a stream.

All of it hangs on the samples of the operating system, one for each subflow every 20 ms while
something is on its way.
"""

from __future__ import annotations

from collections.abc import Collection

from fastmtcp.engine.scheduling.lanes import Lanes
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.rate import Sample
from fastmtcp.engine.subflows.subflow import Cause, Subflow

STALL = 0.2
"""A subflow with unacknowledged bytes and no progress for this long, seconds, or three round
trips if that is more, is suspect. A policer or a lost burst recovers sooner."""

UNDELIVERED = 0.4
"""The same for what the peer's process reads: it may pause for a moment, and its reports wait for
company."""

REPLACE_AFTER = 3.0
"""A subflow that has been suspect for this long is closed, and dialled again."""

SAMPLE_EVERY = 0.02
"""Seconds between the samples of a subflow."""

_FRESH = 0.15
_SOONER = 0.7


def is_stalled(subflow: Subflow, others: Collection[Subflow], now: float) -> bool:
    """True if the path of `subflow` has gone silent.

    It is not the path's fault if the peer's window is closed, or if nobody gets anything through:
    then the peer is busy, or everything is down and there is nowhere else to go.
    """
    if not subflow.awaits_ack or subflow.peer_window == 0:
        return False
    if now - subflow.progress_at < max(STALL, 3 * subflow.speed.rtt):
        return False
    return any(
        other is not subflow
        and not other.suspect
        and (not other.awaits_ack or now - other.progress_at < _FRESH)
        for other in others
    )


def is_undelivered(subflow: Subflow, others: Collection[Subflow], now: float) -> bool:
    """True if the peer reads nothing of what was sent on `subflow`, though it reads from others:
    it is stuck in a relay, or behind one."""
    delivery = subflow.delivery
    if not delivery.waits:
        return False
    if now - delivery.progress_at < max(UNDELIVERED, 3 * subflow.speed.rtt, delivery.patience):
        return False
    return any(
        other is not subflow and now - other.delivery.progress_at < _FRESH and other.delivery.waits
        for other in others
    )


def update(subflow: Subflow, sample: Sample, others: Collection[Subflow], now: float) -> bool:
    """Take a sample. True if `subflow` became suspect, or is no longer."""
    subflow.on_sample(sample, now)
    if subflow.suspect:
        if subflow.is_cleared():
            subflow.clear()
            return True
        return False
    if is_stalled(subflow, others, now):
        subflow.become_suspect(Cause.KERNEL, now)
    elif is_undelivered(subflow, others, now):
        subflow.become_suspect(Cause.DELIVERY, now)
    return subflow.suspect


def judge(lanes: Lanes, everyone: Collection[Subflow], now: float) -> bool:
    """Set subflows aside that cost more than they bring, and try again those that were. True if
    any has changed."""
    changed = False
    total = sum(subflow.speed.rate for subflow in lanes.bulk)
    for subflow in everyone:
        others = total - (0 if subflow.guard.aside else subflow.speed.rate)
        if subflow.guard.judge(subflow.through, others, now):
            changed = True
    return changed


def is_to_be_replaced(subflow: Subflow, others: Collection[Subflow], now: float) -> bool:
    """True if a suspect subflow should be given up: others work, and it had its time."""
    return (
        subflow.suspect
        and subflow.cause is not Cause.PEER  # then the peer gives it up
        and now - subflow.suspect_since >= REPLACE_AFTER
        and any(not other.suspect for other in others)
    )


def rescue(lanes: Lanes, elapsed: float, now: float) -> list[tuple[Subflow, Stream, int, int]]:
    """Ranges to send once more because they hold up their stream: holder, stream, start, stop.

    A stream with nothing to send, because its window is full or its end has been sent, waits for
    its lowest range. If that is on a subflow where it will take longer than on the best one that
    is free, it is sent there too: at most once per round trip. `elapsed` are the seconds since
    the last call, which the guard counts.
    """
    found = []
    for holder in lanes.bulk:
        if not holder.inflight.has_unacked():
            continue
        stream, start, stop = holder.inflight.first
        send = stream.send
        if send.sendable or not start <= send.acked < stop:
            continue
        best = lanes.pick_other(holder, now)
        if best is None:
            continue
        if send.blocked:
            holder.guard.blame(elapsed)
        if now - stream.rescued_at < max(best.speed.rtt, 0.02):
            continue
        size = min(stop - send.acked, best.speed.chunk)
        there = best.speed.eta(now) + size / (best.speed.rate or holder.speed.rate or 1e6)
        if there < _SOONER * holder.drain_time(now):
            stream.rescued_at = now
            stream.avoid = holder.subflow_id
            found.append((holder, stream, send.acked, send.acked + size))
    return found
