"""Which subflow sends next, and what."""

from __future__ import annotations

from fastmtcp.engine.limits import FIRST_BYTES, MAX_BATCH, MAX_PAYLOAD
from fastmtcp.engine.outbox import Outbox
from fastmtcp.engine.scheduling.lanes import BULK, SWIFT, Lanes
from fastmtcp.engine.scheduling.scheduler import Scheduler
from fastmtcp.engine.streams.send_buffer import Buffer
from fastmtcp.engine.streams.stream import HeldUp, Stream
from fastmtcp.engine.streams.table import StreamTable
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.codec import encode
from fastmtcp.engine.wire.frames import Blocked, Data, Frame, Open


class Outbound:
    """Makes the frames of a session: control frames that wait, and the streams' data."""

    __slots__ = ("_lanes", "_outbox", "_scheduler", "_table")

    def __init__(
        self, table: StreamTable, outbox: Outbox, scheduler: Scheduler, lanes: Lanes
    ) -> None:
        self._table = table
        self._outbox = outbox
        self._scheduler = scheduler
        self._lanes = lanes

    def pick(self, now: float) -> Subflow | None:
        """See Session.pick()."""
        outbox = self._outbox
        if outbox.own and (only := outbox.ready_subflow()) is not None:
            return only
        scheduler = self._scheduler
        lanes = self._lanes
        if scheduler.has_small and (swift := lanes.pick_swift(now)) is not None:
            return swift
        if outbox.urgent and (any_one := lanes.pick_control(now)) is not None:
            return any_one
        first = scheduler.first_bulk
        if first is None:
            return None
        chosen = lanes.pick_bulk(first, scheduler.bulk_count, now)
        if lanes.held_back is not None and lanes.gate.is_worthwhile(lanes.held_back):
            self.ask_for_credit(first)
        return chosen

    def pull(self, subflow: Subflow, now: float) -> tuple[list[Buffer], int]:
        """See Session.pull()."""
        out: list[Buffer] = []
        outbox = self._outbox
        size = control = 0
        if outbox.own or outbox:
            size = control = self._control_frames(subflow, out)
        scheduler = self._scheduler
        left = min(subflow.speed.chunk, MAX_PAYLOAD) if subflow.lane >= SWIFT else 0
        lanes = self._lanes
        probing = lanes.probing is subflow
        # It may have been picked for something else: control frames, or bulk.
        bulk = subflow.lane == BULK and lanes.held_back is not subflow
        small = not (scheduler.has_small and lanes.is_too_slow(subflow, now))
        # The only one carries what would keep off it, see Lanes.pick_bulk().
        carrier = subflow.subflow_id if lanes.has_choice else None
        frames = 0
        while left > 0 and frames < MAX_BATCH:
            stream = scheduler.next(small=small, bulk=bulk, carrier=carrier)
            if stream is None:
                break
            most = left
            if scheduler.has_small and stream.is_small(now):
                most = min(left, FIRST_BYTES)
            start, stop = stream.send.pull(most)
            size += self._data_frame(stream, start, stop, out)
            subflow.inflight.add(stream, start, stop)
            stream.count_sent(stop - start, now)
            left -= stop - start
            frames += 1
            scheduler.add(stream, now)
            self._table.mark_updated(stream)
            if probing:
                lanes.probing = None
                stream.send.on_lost(start, stop)
                stream.held_up = HeldUp(start, stop, subflow.subflow_id)
                scheduler.promote(stream)
                break
        if size:
            subflow.count_sent(size, now)
        if size > control:
            subflow.delivery.sent(subflow.bytes_sent, now)
        return out, size

    def reinject(self, subflow: Subflow) -> None:
        """What `subflow` carries and nobody acknowledged goes out again elsewhere."""
        for stream, start, stop in subflow.inflight:
            # What was to be avoided a moment ago may be all that is left.
            stream.held_up = None
            self.repeat(subflow, stream, start, stop)

    def repeat(self, holder: Subflow, stream: Stream, start: int, stop: int) -> None:
        """A range that `holder` carries goes out again, as far as it is not acknowledged."""
        if stream.send.on_lost(start, stop):
            holder.reinjected += stop - start
            self._scheduler.promote(stream)

    def ask_for_credit(self, stream: Stream) -> None:
        """Tell the peer that a larger window would help; once for each limit."""
        send = stream.send
        limit = send.limit + send.returned
        if send.asked_at < limit and stream.open_acked:
            send.asked_at = limit
            self._outbox.send(Blocked(stream.stream_id, limit))

    def _control_frames(self, subflow: Subflow, out: list[Buffer]) -> int:
        blob = self._outbox.take_own(subflow)
        if blob:
            subflow.ping_position = subflow.bytes_sent + subflow.overhead + len(blob)
        elif not self._outbox:
            return 0
        if not subflow.retiring:
            # Nothing may follow a RETIRE.
            blob += self._outbox.take()
        out.append(blob)
        return len(blob)

    def _data_frame(self, stream: Stream, start: int, stop: int, out: list[Buffer]) -> int:
        send = stream.send
        end = send.buffer.end
        fin = send.finished and stop > end
        high = stop - fin
        if start < 0:
            low = 0
            limit = stream.receive.window.tell()
            frame: Frame = Open(stream.stream_id, limit, fin, stream.target, stream.source)
        else:
            low = start
            frame = Data(stream.stream_id, start, fin)
        header = encode(frame, high - low)
        out.append(header)
        send.buffer.slice(low, high, out)
        return len(header) + high - low
