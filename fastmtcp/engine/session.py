"""A session: many streams over a set of subflows, between one client worker and one server worker.

The caller (fastmtcp.io) drives it with a few verbs and asks it what to send:

    attach / detach        a subflow is there / is gone
    receive                bytes arrived on a subflow
    open, stream.write ... what the applications do
    pick, pull             which subflow should send, and what
    deadline, on_time      when to call again for timers
    on_sample, rescue      what the system knows of the subflows
    touched, opened        streams on which something happened (taken by the caller)
    gone                   subflows that the peer has given up (taken by the caller)
    refused                how many streams were refused, by limit (taken by the caller)
"""

from __future__ import annotations

from fastmtcp.engine.inbound import Inbound
from fastmtcp.engine.limits import MAX_BATCH, MAX_OWN_FRAMES, MAX_PAYLOAD, MAX_REASON, Limits
from fastmtcp.engine.outbox import Outbox
from fastmtcp.engine.quota import Bucket, Client, Holding, Memory
from fastmtcp.engine.scheduling import watch
from fastmtcp.engine.scheduling.demand import Demand
from fastmtcp.engine.scheduling.lanes import BULK, SWIFT, Lanes
from fastmtcp.engine.scheduling.scheduler import Scheduler
from fastmtcp.engine.streams.flow_control import WindowPool
from fastmtcp.engine.streams.ids import StreamIds
from fastmtcp.engine.streams.reassembly import GapPool
from fastmtcp.engine.streams.send_buffer import Buffer
from fastmtcp.engine.streams.send_memory import SendMemory
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.delivery import Reports
from fastmtcp.engine.subflows.rate import Sample
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.subflows.subflow import Past, Subflow
from fastmtcp.engine.timers import Upkeep
from fastmtcp.engine.wire.codec import encode
from fastmtcp.engine.wire.errors import LocalError, RemoteError, ResetCode, SessionCode
from fastmtcp.engine.wire.frames import Blocked, Busy, Data, Frame, Goaway, Gone, Open, Stalled


class Session:
    """See the module. `opener` is true at the client, the only side that opens streams."""

    def __init__(
        self,
        *,
        opener: bool,
        limits: Limits,
        now: float,
        peer_floor: int = 0,
        peer_streams: int = 0,
        memory: Memory | None = None,
        client: Client | None = None,
    ) -> None:
        """`memory` is that of the worker, `client` whose session it is; without them it has
        nothing to share."""
        self.opener = opener
        self.limits = limits
        self.peer_floor = peer_floor
        """Credit that the peer gives to every new stream of ours."""
        self.peer_streams = peer_streams
        """Streams that the peer lets us have open at once."""
        self.holding = Holding(memory, client)
        self.holding.give_up = self._give_up
        self.holding.memory.holdings.add(self.holding)
        self.memory = SendMemory(limits, self.holding, self.touch)
        self.pool = WindowPool(limits.window_pool, self.holding.memory)
        self.gaps = GapPool(limits.max_gaps)
        self.streams: dict[int, Stream] = {}
        self.subflows: dict[int, Subflow] = {}
        self.touched: list[Stream] = []
        self.opened: list[Stream] = []
        self.gone: list[Subflow] = []
        self.refused: dict[str, int] = {}
        self.ended: tuple[SessionCode, str] | None = None
        """Why the session ended; everything in it was reset."""
        self.ended_by_peer = False
        """True if the peer has ended it."""
        self.draining = False
        """True once this side takes no new streams."""
        self.peer_draining = False
        self.streams_opened = 0
        self.created_at = now
        self.demand = Demand()
        """Whether what this side sends waits for subflows."""
        self.peer_demand_at = float("-inf")
        """When the server last said the same of what it sends (BUSY)."""
        self.acked = 0
        """Bytes of applications that the peer has acknowledged."""
        self.past = Past()
        self.past_payload_sent = 0
        """Bytes that applications wrote to streams that are gone."""
        self.past_payload_received = 0
        """In-order bytes received on streams that are gone."""
        self._scheduler = Scheduler()
        self._lanes = Lanes()
        self._outbox = Outbox(limits)
        self._reports = Reports()
        self._own_waiting = False
        # What a client may have sent that is not here yet: its open streams and its resets.
        self._ids = StreamIds(3 * limits.max_streams)
        self._now = now
        self._upkeep = Upkeep(self, self._outbox, now)
        self._rescued_at = now
        opens = Bucket(limits.opens_per_second, now)
        self._inbound = Inbound(
            self, self._outbox, self._reports, self._scheduler, self._ids, opens
        )

    # --- subflows -----------------------------------------------------------------------

    def may_attach(self, subflow_id: int) -> bool:
        """True if a new subflow may have this id, and there is room for it."""
        return subflow_id not in self.subflows and len(self.subflows) < self.limits.max_subflows

    def attach(self, subflow_id: int, now: float, role: Role = Role.BOTH) -> Subflow:
        """A subflow was authenticated and may carry frames.

        Raises:
            RemoteError: the id is taken, or there are too many.
        """
        if not self.may_attach(subflow_id):
            raise RemoteError(SessionCode.LIMIT, "too many subflows, or one id used twice")
        subflow = Subflow(subflow_id, now, role, sends=role.carries(client=self.opener))
        self.subflows[subflow_id] = subflow
        self._inbound.attach(subflow)
        self._upkeep.empty_since = None
        self._lanes.refresh(self.subflows.values())
        return subflow

    def detach(self, subflow: Subflow, now: float) -> None:
        """A subflow is gone: what it carried and nobody acknowledged goes out again elsewhere."""
        if self.subflows.pop(subflow.subflow_id, None) is None:
            return
        self._inbound.detach(subflow)
        self._reports.forget(subflow)
        subflow.ready = False
        subflow.end()
        self._now = now
        self._lanes.refresh(self.subflows.values())
        if not self.subflows:
            self._upkeep.empty_since = now
        if self.ended is not None:
            self.past.add(subflow)
            return
        self._reinject(subflow)
        subflow.inflight.clear()
        self.past.add(subflow)
        if self.subflows:
            # The peer may not have seen it die.
            self._outbox.hint(Gone(subflow.subflow_id))
        self._upkeep.repeat_wanted = True

    def retire(self, subflow: Subflow) -> None:
        """Give `subflow` nothing new. Close and detach it when it carries nothing any more."""
        subflow.retire()
        self._lanes.refresh(self.subflows.values())

    # --- streams ------------------------------------------------------------------------

    def open(self, now: float, target: str = "", source: str = "") -> Stream:
        """Open a stream. It is sent with its first bytes, or at once if there are none.

        Raises:
            LocalError: too many streams, or the session has ended.
        """
        if not self.opener or self.ended is not None:
            raise LocalError("cannot open a stream here")
        if len(self.streams) >= self.limits.max_streams or (
            self.peer_streams and len(self.streams) >= self.peer_streams
        ):
            raise LocalError(f"{len(self.streams)} streams are open, the limit")
        self._now = now
        stream = Stream(
            self,
            self._ids.allocate(),
            opener=True,
            limit=self.peer_floor,
            target=target,
            source=source,
        )
        stream.receive.window.start()
        self.add(stream)
        self.streams_opened += 1
        return stream

    def set_peer_limits(self, floor: int, streams: int) -> None:
        """The server told its limits: streams opened before that may start now."""
        self.peer_floor = floor
        self.peer_streams = streams
        for stream in self.streams.values():
            stream.send.limit = max(stream.send.limit, floor)
            self._scheduler.add(stream, self._now)
            self.touch(stream)

    def room_for(self, stream: Stream) -> int:
        send = stream.send
        credit = send.limit - send.buffer.end
        if credit * 4 < send.limit - send.acked:
            self._ask_for_credit(stream)
        return self.memory.room(stream, min(credit, self.limits.backlog - send.backlog))

    def on_written(self, stream: Stream, count: int) -> None:
        self.memory.add(count)
        self._scheduler.add(stream, self._now)

    def on_taken(self, stream: Stream, count: int, now: float) -> None:
        stream.receive.window.take(count, now)
        if stream.receive.fin_at is None and stream.receive.ack_is_urgent:
            self._outbox.ack(stream, now, urgent=True)

    def on_confirmed(self, stream: Stream) -> None:
        # The target's answer to first bytes will take the ACK along; else somebody waits for it.
        self._outbox.ack(stream, self._now, urgent=not stream.receive.received)

    def finish_if_done(self, stream: Stream) -> None:
        if stream.reset_code is None and stream.finished:
            self.forget(stream)

    def reset_stream(self, stream: Stream, code: ResetCode) -> None:
        """Reset a stream of this side's own accord and tell the peer."""
        if self.streams.get(stream.stream_id) is not stream:
            return
        stream.reset_code = code
        self.forget(stream)
        if self.ended is None:
            try:
                self._outbox.reset(stream.stream_id, code)
            except RemoteError as error:
                self.end(error.code, str(error))

    @property
    def idle(self) -> bool:
        """True if nothing is on its way and no subflow needs watching."""
        return not any(
            subflow.awaits_ack or subflow.inflight.has_unacked()
            for subflow in self.subflows.values()
        )

    @property
    def is_quiet(self) -> bool:
        """True if no stream is open and nothing waits to be sent."""
        return not self.streams and not self._outbox

    @property
    def now(self) -> float:
        """The time of the last call."""
        return self._now

    @property
    def held(self) -> int:
        """Bytes kept for a possible reinjection."""
        return self.memory.held

    # --- sending ------------------------------------------------------------------------

    def pick(self, now: float) -> Subflow | None:
        """The subflow that should send now: the ready one on which a chunk would arrive first.

        None if there is nothing to send, or nobody who could.
        """
        if self._upkeep.may_repeat(now):
            self._upkeep.repeat(now)
        if self._own_waiting:
            waiting = [subflow for subflow in self.subflows.values() if subflow.own]
            self._own_waiting = bool(waiting)
            for subflow in waiting:
                if subflow.ready:
                    return subflow
        scheduler = self._scheduler
        lanes = self._lanes
        if scheduler.has_small and (swift := lanes.pick_swift(now)) is not None:
            return swift
        if self._outbox.urgent and (any_one := lanes.pick_control(now)) is not None:
            return any_one
        first = scheduler.first_bulk
        if first is None:
            return None
        chosen = lanes.pick_bulk(first, scheduler.bulk_count, now)
        if lanes.held_back is not None and lanes.gate.is_worthwhile(lanes.held_back):
            self._ask_for_credit(first)
        return chosen

    def pull(self, subflow: Subflow, now: float) -> tuple[list[Buffer], int]:
        """What `subflow` sends next, and how many bytes that is: waiting control frames, then
        about one chunk of data."""
        self._now = now
        out: list[Buffer] = []
        size = 0
        if self._outbox or subflow.own:
            blob = b"".join(subflow.own)
            if blob:
                subflow.own.clear()
                subflow.ping_position = subflow.bytes_sent + len(blob)
            blob += self._outbox.take() + self._reports.take()
            out.append(blob)
            size = len(blob)
        scheduler = self._scheduler
        control = size
        left = min(subflow.speed.chunk, MAX_PAYLOAD) if subflow.lane >= SWIFT else 0
        bulk = subflow.lane == BULK
        probing = self._lanes.probing is subflow
        frames = 0
        while left > 0 and frames < MAX_BATCH:
            stream = scheduler.next(bulk=bulk)
            if stream is None:
                break
            start, stop = stream.send.pull(left)
            size += self._data_frame(stream, start, stop, out)
            subflow.inflight.add(stream, start, stop)
            stream.count_sent(stop - start, now)
            left -= stop - start
            frames += 1
            scheduler.add(stream, now)
            self.touch(stream)
            if probing:
                self._lanes.probing = None
                if stream.send.on_lost(start, stop):
                    stream.avoid = subflow.subflow_id
                    scheduler.promote(stream)
                break
        if size:
            subflow.count_sent(size, now)
        if size > control:
            subflow.delivery.sent(subflow.bytes_sent, now)
        return out, size

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

    def on_sample(self, subflow: Subflow, sample: Sample, now: float) -> bool:
        """What the system knows of a subflow, every SAMPLE_EVERY seconds while not idle().

        True if the subflow should be given up: close and detach it.
        """
        others = self.subflows.values()
        changed = watch.update(subflow, sample, others, now)
        if changed and subflow.suspect:
            self._outbox.hint(Stalled(subflow.subflow_id))
            self.doubt(subflow)
        if changed:
            self._lanes.refresh(others)
        return watch.is_to_be_replaced(subflow, others, now)

    def doubt(self, subflow: Subflow) -> None:
        """`subflow` has become suspect: say elsewhere what may be stuck on it."""
        self._reinject(subflow)
        self._lanes.refresh(self.subflows.values())
        self._upkeep.repeat_wanted = True

    def rescue(self, now: float) -> None:
        """Send ranges that hold up their streams once more. Call it after all samples."""
        self._now = now
        # After a time in which nothing was on its way, nobody can have stood still for long.
        elapsed = min(now - self._rescued_at, 2 * watch.SAMPLE_EVERY)
        self._rescued_at = now
        subflows = self.subflows.values()
        if watch.judge(self._lanes, subflows, now):
            self._lanes.refresh(subflows)
        self._lanes.gate.update(self._lanes.bulk)
        for holder, stream, start, stop in watch.rescue(self._lanes, elapsed, now):
            if stream.send.on_lost(start, stop):
                holder.reinjected += stop - start
                self._scheduler.promote(stream)

    def watch_demand(self, now: float) -> None:
        """See whether bulk waits for subflows. Call it after all samples."""
        lanes = self._lanes
        free = lanes.held_back is None and any(subflow.ready for subflow in lanes.bulk)
        waits = self._scheduler.first_bulk is not None and bool(lanes.bulk) and not free
        if self.demand.sample(waits, now) and not self.opener:
            # Only the client opens subflows.
            self._outbox.hint(Busy())

    # --- receiving ----------------------------------------------------------------------

    def receive(self, subflow: Subflow, view: memoryview, now: float, work: int = 1 << 62) -> int:
        """Bytes arrived on `subflow`. Takes as many as make about `work` frames and returns how
        many that were; the caller comes again with the rest, later.

        Raises:
            RemoteError: the peer broke the protocol. The caller ends the session with it.
        """
        self._now = now
        return self._inbound.receive(subflow, view, now, work)

    @property
    def work_left(self) -> int:
        """What the last receive() left of its `work`."""
        return self._inbound.work_left

    # --- timers and the end ---------------------------------------------------------------

    def deadline(self) -> float:
        """When on_time() must be called at the latest."""
        return self._upkeep.deadline

    def on_time(self, now: float) -> list[Subflow]:
        """Do what is due. Returns the subflows that are dead: close and detach them."""
        self._now = now
        return self._upkeep.on_time(now)

    def end(self, code: SessionCode, reason: str) -> None:
        """End the session: every stream is reset, the caller closes the subflows."""
        if self.ended is not None:
            return
        self.ended = (code, reason)
        for stream in list(self.streams.values()):
            # All that is left to do for a complete stream is between us and the application.
            if not (stream.send.complete and stream.receive.is_all_here):
                stream.reset_code = ResetCode.SESSION_LOST
            self.touch(stream)
            self.forget(stream)
        self._outbox.clear()
        for subflow in self.subflows.values():
            subflow.own.clear()
        self.holding.memory.holdings.discard(self.holding)

    def goaway(self, code: SessionCode, reason: str) -> bytes:
        """A GOAWAY frame, for the caller to send on each subflow before it closes them."""
        text = reason.encode()[:MAX_REASON].decode(errors="ignore")
        return encode(Goaway(int(code), text))

    def drain(self) -> None:
        """Tell the peer that this side takes no new streams."""
        self.draining = True
        self._outbox.add(Goaway(int(SessionCode.DRAINING), "shutting down"))

    # --- internal -------------------------------------------------------------------------

    def _reinject(self, subflow: Subflow) -> None:
        """What `subflow` carries and nobody acknowledged goes out again elsewhere."""
        for stream, start, stop in subflow.inflight:
            if stream.reset_code is None and stream.send.on_lost(start, stop):
                subflow.reinjected += stop - start
                self._scheduler.promote(stream)

    def _ask_for_credit(self, stream: Stream) -> None:
        """Tell the peer that a larger window would help; once for each limit."""
        send = stream.send
        if send.asked_at < send.limit and send.acked >= 0:
            send.asked_at = send.limit
            self._outbox.add(Blocked(stream.stream_id, send.limit))

    def owe_reports(self) -> None:
        """Tell the peer once more what has been read of each subflow."""
        for subflow in self.subflows.values():
            self._reports.owe(subflow)

    def touch(self, stream: Stream) -> None:
        if not stream.touched:
            stream.touched = True
            self.touched.append(stream)

    def say(self, subflow: Subflow | None, frame: Frame) -> None:
        """Queue a frame that must travel on this very subflow."""
        if subflow is not None and len(subflow.own) < MAX_OWN_FRAMES:
            subflow.own.append(encode(frame))
            self._own_waiting = True

    def _give_up(self) -> None:
        text = "the worker's memory is used up, and this session holds most of it"
        self.end(SessionCode.LIMIT, text)

    def add(self, stream: Stream) -> None:
        self.streams[stream.stream_id] = stream
        self.holding.client.streams += 1

    def forget(self, stream: Stream) -> None:
        if self.streams.pop(stream.stream_id, None) is None:
            return
        self.memory.forget(stream)
        self.holding.client.streams -= 1
        self.past_payload_sent += stream.send.buffer.end
        self.past_payload_received += stream.receive.data.next
        held = stream.send.held
        stream.send.buffer.clear()
        self.memory.let_go(held)
        stream.receive.window.close()
        if stream.reset_code is not None:
            stream.receive.data.clear()
            self._outbox.forget(stream)
