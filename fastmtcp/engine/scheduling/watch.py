"""Watches the progress of subflows: finds those that have fallen silent, and ranges that hold up
their streams.

The caller takes a sample of each subflow every 20 ms while anything is on its way (TCP_INFO), and
calls these functions with it.
"""

from __future__ import annotations

from collections.abc import Collection

from fastmtcp.engine.scheduling.lanes import Lanes
from fastmtcp.engine.streams.stream import HeldUp, Stream
from fastmtcp.engine.subflows.rate import Sample
from fastmtcp.engine.subflows.subflow import Cause, Subflow

STALL = 0.2
"""Seconds, or three round trips if that is more. A subflow is suspect when bytes of it are on their
way and the other kernel has acknowledged nothing for so long. After a lost burst, or behind a
policer (a router that drops what is above a rate), TCP goes on sooner."""

UNDELIVERED = 0.4
"""Seconds in the same sense for what the peer's process reads. They are more, since the process may
pause for a moment and sends a report only together with other control frames."""

REPLACE_AFTER = 3.0
"""Seconds. A subflow that has been suspect for so long is closed; the client connects another."""

SAMPLE_EVERY = 0.02
"""Seconds between the samples of a subflow."""

_FRESH = 0.15
"""Seconds, or a round trip if that is more, as nothing can be heard sooner. A subflow that has made
progress within these works."""

_SOONER = 0.7
"""A range is sent a second time if that takes at most this share of the time of the first copy."""


def is_stalled(subflow: Subflow, others: Collection[Subflow], now: float) -> bool:
    """True if the path of `subflow` has fallen silent while another one works.

    A closed TCP window means that the peer is busy, which is no fault of the path. If none of the
    subflows makes progress, the peer is busy or all paths are down: in both cases it does not help
    to send the bytes again on another subflow.
    """
    if not subflow.awaits_ack or subflow.peer_window == 0:
        return False
    if now - subflow.progress_at < max(STALL, 3 * subflow.speed.rtt):
        return False
    return any(
        other is not subflow
        and other.works
        and (not other.awaits_ack or now - other.progress_at < max(_FRESH, other.speed.rtt))
        for other in others
    )


def is_undelivered(subflow: Subflow, others: Collection[Subflow], now: float) -> bool:
    """True if the peer's process reads nothing of what was sent on `subflow`, though it reads what
    others bring: the bytes are stuck in a relay, or behind one."""
    delivery = subflow.delivery
    if not delivery.waits:
        return False
    if now - delivery.progress_at < max(UNDELIVERED, 3 * subflow.speed.rtt, delivery.patience):
        return False
    return any(
        other is not subflow
        and other.delivery.waits
        and now - other.delivery.progress_at < max(_FRESH, other.delivery.rtt)
        for other in others
    )


def update(subflow: Subflow, sample: Sample, others: Collection[Subflow], now: float) -> bool:
    """Take a sample of `subflow`. True if that makes it suspect, or clears it."""
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
    """Let each subflow's guard judge it: one that costs the others more than it brings is set
    aside, and is used again after a while. True if that has changed for any."""
    changed = False
    total = sum(subflow.speed.rate for subflow in lanes.bulk)
    for subflow in everyone:
        others = total - (0 if subflow.guard.aside else subflow.speed.rate)
        if subflow.guard.judge(subflow.through, others, now):
            changed = True
    return changed


def is_to_be_replaced(subflow: Subflow, others: Collection[Subflow], now: float) -> bool:
    """True if a subflow has been suspect for too long, while others work: it should be closed."""
    return (
        subflow.suspect
        # What the peer suspects, the peer closes.
        and subflow.cause is not Cause.PEER
        and now - subflow.suspect_since >= REPLACE_AFTER
        and any(other.works for other in others)
    )


def rescue(lanes: Lanes, elapsed: float, now: float) -> list[tuple[Subflow, Stream, int, int]]:
    """Ranges to send once more because they hold up their streams. Each is given as the subflow
    that carries it, the stream, and where it starts and stops.

    A stream that can send nothing new, as its window is full or its end is sent, only waits for
    the acknowledgement of its lowest range. If another subflow is ready on which that range would
    arrive clearly sooner than on the one that carries it, it is sent there too, at most once in a
    round trip. `elapsed` are the seconds since the last call: the subflow's guard is told that the
    stream has stood still for so long.
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
            copy = HeldUp(send.acked, send.acked + size, holder.subflow_id)
            stream.held_up = copy
            found.append((holder, stream, copy.start, copy.stop))
    return found
