"""Asking whether the other side is still there: probes of streams, pings of subflows."""

from __future__ import annotations

from fastmtcp.engine.limits import Limits
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.frames import Data


def probe(stream: Stream) -> Data:
    """Asks for the peer's view of a stream: an empty DATA frame is answered with an ACK."""
    send = stream.send
    # An acknowledged FIN is one byte behind the end.
    return Data(stream.stream_id, min(max(send.acked, 0), send.buffer.end), False)


def needs_news(stream: Stream) -> bool:
    """True if this stream waits for an ACK, for credit or for its target, and the word may have
    got lost."""
    send = stream.send
    if not stream.open_received or not stream.open_sent or send.dropped:
        return False
    return send.unacked or send.blocked or (stream.opener and not stream.connected)


def is_stuck(stream: Stream, limits: Limits) -> bool:
    """True if a stream without progress should be probed now. Call it once a second."""
    if not needs_news(stream):
        return False
    mark = (stream.send.acked, stream.send.limit)
    if mark != stream.probe_mark:
        stream.probe_mark = mark
        stream.idle_probes = 0
        return False
    stream.idle_probes += 1
    # 1, 2, 4, 8 ... seconds after the last progress, then every `probe_interval_max`.
    ticks = stream.idle_probes
    return ticks & (ticks - 1) == 0 or ticks % int(limits.probe_interval_max) == 0


def is_idle(stream: Stream, limits: Limits, now: float) -> bool:
    """True if nothing has moved on a stream for as long as it may. Call it once a second."""
    send, receive = stream.send, stream.receive
    moved = send.acked + send.buffer.end + receive.data.next + receive.window.taken
    if moved != stream.moved:
        stream.moved = moved
        stream.moved_at = now
    idle = now - stream.moved_at
    if limits.half_closed_timeout and stream.is_half_closed and idle >= limits.half_closed_timeout:
        return True
    return bool(limits.stream_idle_timeout) and idle >= limits.stream_idle_timeout


def wants_ping(subflow: Subflow, limits: Limits, now: float) -> bool:
    """True if a silent subflow should be asked now; notes that it is."""
    inflight = subflow.inflight
    inflight.has_unacked()
    if inflight.delivered:
        # A data-level ACK for it is as good as a word on it.
        inflight.delivered = False
        subflow.heard_at = now
        subflow.pinged_at = None
    if subflow.pinged_at is not None or now - subflow.heard_at < limits.ping_interval:
        return False
    subflow.pinged_at = now
    return True


def is_unanswered(subflow: Subflow, limits: Limits, now: float) -> bool:
    """True if a subflow is dead, as nothing has answered its PING. After a pause of our own the
    PING has only just been sent, so what counts is both the silence and how long it is out."""
    return (
        subflow.pinged_at is not None
        and now - subflow.heard_at >= limits.subflow_timeout
        and now - subflow.pinged_at >= limits.subflow_timeout - limits.ping_interval
    )
