"""A session: many streams over a set of subflows, between one client worker and one server worker.

The caller (fastmtcp.driver) drives it with a few verbs and asks it what to send:

    attach / detach        a subflow is there / is gone
    receive                bytes arrived on a subflow
    open, stream.write ... what the applications do
    pick, pull             which subflow should send, and what
    deadline, on_time      when to call again for timers
    on_sample, rescue      what the system knows of the subflows
    take_events            streams updated, opened or returned, subflows gone, the end
"""

from __future__ import annotations

from fastmtcp.engine.events import Events
from fastmtcp.engine.inbound import Inbound
from fastmtcp.engine.limits import MAX_REASON, Limits
from fastmtcp.engine.outbound import Outbound
from fastmtcp.engine.outbox import Outbox
from fastmtcp.engine.overhead import Overhead
from fastmtcp.engine.peer import PeerState
from fastmtcp.engine.quota import Bucket, ClientQuota, Holding, Memory
from fastmtcp.engine.resets import Resets
from fastmtcp.engine.scheduling import watch
from fastmtcp.engine.scheduling.demand import Demand
from fastmtcp.engine.scheduling.lanes import Lanes
from fastmtcp.engine.scheduling.scheduler import Scheduler
from fastmtcp.engine.streams.send_buffer import Buffer
from fastmtcp.engine.streams.stream import NO_ID, Stream
from fastmtcp.engine.streams.table import StreamTable
from fastmtcp.engine.subflows.rate import Sample
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.subflows.subflow import Past, Subflow
from fastmtcp.engine.timers import Timers
from fastmtcp.engine.wire.codec import encode
from fastmtcp.engine.wire.errors import LocalError, OpenError, RemoteError, ResetCode, SessionCode
from fastmtcp.engine.wire.frames import Busy, Goaway, Gone, Got, Stalled


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
        client: ClientQuota | None = None,
    ) -> None:
        """`peer_floor` and `peer_streams` are what the peer lets this side do, as in PeerState.
        `memory` is that of the worker, `client` whose session it is; without them it has nothing
        to share."""
        self.opener = opener
        self.limits = limits
        self.peer = PeerState(peer_floor, peer_streams)
        client = client or ClientQuota(opens=Bucket(limits.opens_per_second, now))
        self.holding = Holding(memory, client)
        self.holding.give_up = self.give_up
        self.holding.memory.holdings.add(self.holding)
        self.table = StreamTable(self, limits, self.holding, opener=opener)
        self.subflows: dict[int, Subflow] = {}
        self.ended: tuple[SessionCode, str] | None = None
        """Why the session ended; everything in it was reset."""
        self.created_at = now
        self.demand = Demand()
        """Whether what this side sends waits for subflows."""
        self.past = Past()
        self._scheduler = Scheduler()
        self._lanes = Lanes()
        self._outbox = Outbox(limits)
        self._now = now
        self._rescued_at = now
        self._returned: list[Stream] = []
        self._draining = False
        self._start_at = now
        self._gone: list[Subflow] = []
        self._parted: list[Subflow] = []
        self._end: tuple[SessionCode, str] | None = None
        self._overhead = Overhead(self.holding, self.table, self._outbox)
        self._resets = Resets(self.table, self._outbox, limits)
        self._timers = Timers(self.table, self.subflows, self._outbox, self._resets, limits, now)
        self._outbound = Outbound(self.table, self._outbox, self._scheduler, self._lanes)
        own = (self._outbox, self._resets, self._scheduler, self.peer)
        self._inbound = Inbound(self, self.table, self.subflows, *own, limits, now)

    # --- what the caller asks -------------------------------------------------------------

    @property
    def streams(self) -> dict[int, Stream]:
        """The streams that are open, by id."""
        return self.table.streams

    @property
    def held(self) -> int:
        """Bytes kept for a possible reinjection."""
        return self.table.held

    @property
    def draining(self) -> bool:
        """True once this side takes no new streams."""
        return self._outbox.draining

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
        table = self.table
        return not (table.streams or table.waiting or table.parting or self._outbox)

    @property
    def is_over(self) -> bool:
        """True if no stream is here, and the peer knows how each has ended."""
        return not self.table.streams and not self._outbox.is_resetting_any

    def take_events(self) -> Events | None:
        """What has happened since the last call, None if nothing has."""
        table = self.table
        updated = table.take_updated()
        news = updated or table.opened or self._returned or self._draining
        if not (news or self._gone or self._parted or self._end):
            return None
        returned, gone, parted = self._returned, self._gone, self._parted
        events = Events(updated, table.opened, returned, self._draining, gone, parted, self._end)
        table.opened = []
        self._returned = []
        self._draining = False
        self._gone, self._parted = [], []
        self._end = None
        return events

    # --- subflows -----------------------------------------------------------------------

    def may_attach(self, subflow_id: int) -> bool:
        """True if a new subflow may have this id, and there is room for it."""
        if subflow_id in self.subflows or self.holding.client.subflows_left <= 0:
            return False
        return len(self.subflows) < self.limits.max_subflows

    def attach(self, subflow_id: int, now: float, role: Role = Role.BOTH, cost: int = 0) -> Subflow:
        """A subflow was authenticated and may carry frames. It takes `cost` bytes of memory
        beside what each takes.

        Raises:
            RemoteError: the id is taken, or there are too many.
        """
        if not self.may_attach(subflow_id):
            raise RemoteError(SessionCode.LIMIT, "too many subflows, or one id used twice")
        subflow = Subflow(subflow_id, now, role, sends=role.carries(client=self.opener))
        self.subflows[subflow_id] = subflow
        self._inbound.attach(subflow)
        self._overhead.attach(subflow, cost)
        self._timers.empty_since = None
        self._lanes.refresh(self.subflows.values())
        return subflow

    def detach(self, subflow: Subflow, now: float, *, by_fin: bool = False) -> None:
        """A subflow is gone: what it carried and nobody acknowledged goes out again elsewhere.
        `by_fin` is true if all that was seen of its end is a FIN of the peer."""
        if self.subflows.pop(subflow.subflow_id, None) is None:
            return
        self._inbound.detach(subflow)
        self._overhead.detach(subflow)
        self._outbox.forget_subflow(subflow)
        is_whole = subflow.is_whole
        subflow.ready = False
        subflow.end()
        self._now = now
        self._lanes.refresh(self.subflows.values())
        self._timers.on_detached(now, by_fin=by_fin, is_last=not self.subflows)
        if self.ended is not None:
            self.past.add(subflow)
            return
        if not is_whole:
            self._outbound.reinject(subflow)
        subflow.inflight.clear()
        self.past.add(subflow)
        if is_whole:
            return
        if by_fin and not self.opener:
            self._timers.repeat_later(subflow, now)
        else:
            # The peer may not have seen it die. Of the last one the next that comes tells.
            self._outbox.hint(Gone(subflow.subflow_id))
        self._timers.repeat_wanted = True

    def retire(self, subflow: Subflow) -> None:
        """Give `subflow` nothing new, and have the peer do so too: Events.parted says when it may
        be closed without anything being sent twice. The client's choice."""
        if not subflow.retiring:
            self._outbox.retire(subflow)
            subflow.retire()
        self._lanes.refresh(self.subflows.values())

    def last_report(self, subflow: Subflow) -> bytes:
        """The last frame for a subflow that has parted: the peer has nothing to send again."""
        return encode(Got(subflow.subflow_id, subflow.bytes_received))

    # --- streams ------------------------------------------------------------------------

    def open(self, now: float, target: str = "", source: str = "") -> Stream:
        """Open a stream. It is sent with its first bytes, or when it is announced; and if the
        limits of the two sides want it so, not before its turn has come.

        Raises:
            OpenError: too many streams wait for their turns, or the session has ended.
        """
        self._check_waiting()
        self._now = now
        stream = self.table.open(now, self.peer.floor, target, source)
        if len(self.table.waiting) == 1 and self._may_start(now):
            self.table.start()
        return stream

    def adopt(self, stream: Stream, now: float) -> None:
        """Take over a stream that another session has returned.

        Raises:
            OpenError: as open() does.
        """
        self._check_waiting()
        self._now = now
        self.table.adopt(stream, self.peer.floor, now, first=False)
        self.table.mark_updated(stream)

    def set_peer_limits(self, floor: int, streams: int, opens: float = 0.0) -> None:
        """The server told its limits: streams opened before that may start now."""
        self.peer.floor = floor
        self.peer.streams = streams
        self.peer.set_pace(opens, self._now)
        for stream in (*self.table.streams.values(), *self.table.waiting):
            stream.send.raise_limit(floor)
            if stream.stream_id != NO_ID:
                self._scheduler.add(stream, self._now)
            self.table.mark_updated(stream)

    def room_for(self, stream: Stream) -> int:
        send = stream.send
        credit = send.limit - send.buffer.end
        if credit * 4 < send.limit - send.acked:
            self._outbound.ask_for_credit(stream)
        return self.table.memory.room(stream, min(credit, self.limits.backlog - send.backlog))

    def on_written(self, stream: Stream, count: int) -> None:
        self.table.memory.add(count)
        if stream.stream_id != NO_ID:
            self._scheduler.add(stream, self._now)

    def on_taken(self, stream: Stream, count: int, now: float) -> None:
        stream.receive.window.take(count, now)
        if stream.ending is not None:
            self._resets.settle(stream)
        elif stream.receive.window.worth_telling:
            self._outbox.ack(stream, now, urgent=True)

    def on_confirmed(self, stream: Stream) -> None:
        # The target's answer to first bytes will take the ACK along. Without first bytes the
        # target may have nothing to say, and the application at the client waits for the ACK.
        self._outbox.ack(stream, self._now, urgent=not stream.receive.received)

    def finish_if_done(self, stream: Stream) -> None:
        if stream.ending is not None:
            self._resets.settle(stream)
        elif stream.reset_code is None and stream.finished:
            self.table.forget(stream)

    def reset_stream(self, stream: Stream, code: ResetCode) -> None:
        """Reset a stream of this side's own accord and tell the peer."""
        try:
            self._resets.reset(stream, code, connected=bool(self.subflows))
        except RemoteError as error:
            self.end(error.code, str(error))

    # --- sending ------------------------------------------------------------------------

    def pick(self, now: float) -> Subflow | None:
        """The subflow that should send now: the ready one on which a chunk would arrive first.

        None if there is nothing to send, or no subflow for it.
        """
        if self._timers.may_repeat(now) and self.ended is None:
            self._timers.repeat(now)
        if self.table.waiting:
            self._start_waiting(now)
        return self._outbound.pick(now)

    def pull(self, subflow: Subflow, now: float) -> tuple[list[Buffer], int]:
        """What `subflow` sends next, and how many bytes that is: waiting control frames, then
        about one chunk of data."""
        self._now = now
        return self._outbound.pull(subflow, now)

    def on_sample(self, subflow: Subflow, sample: Sample, now: float) -> bool:
        """What the system knows of a subflow, every SAMPLE_EVERY seconds while not idle().

        True if the subflow should be given up: close and detach it.
        """
        self._overhead.weigh(subflow)
        others = self.subflows.values()
        changed = watch.update(subflow, sample, others, now)
        if changed and subflow.suspect:
            self._outbox.hint(Stalled(subflow.subflow_id))
            self.doubt(subflow)
        if changed:
            self._lanes.refresh(others)
        return watch.is_to_be_replaced(subflow, others, now)

    def rescue(self, now: float) -> None:
        """Send ranges that hold up their streams once more. Call it after all samples."""
        self._now = now
        # After a time in which nothing was on its way, no subflow can have stood still for long.
        elapsed = min(now - self._rescued_at, 2 * watch.SAMPLE_EVERY)
        self._rescued_at = now
        subflows = self.subflows.values()
        if watch.judge(self._lanes, subflows, now):
            self._lanes.refresh(subflows)
        self._lanes.gate.update(self._lanes.bulk)
        for holder, stream, start, stop in watch.rescue(self._lanes, elapsed, now):
            self._outbound.repeat(holder, stream, start, stop)

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
        taken = self._inbound.receive(subflow, view, now, work)
        flood = self._inbound.work_left <= 0 or subflow.unread
        if (flood or self.holding.memory.free < 0) and self.ended is None:
            subflow.unread = len(view) - taken
            self._overhead.weigh(subflow)
            self._overhead.check()
        return taken

    @property
    def work_left(self) -> int:
        """What the last receive() left of its `work`."""
        return self._inbound.work_left

    def doubt(self, subflow: Subflow) -> None:
        """`subflow` has become suspect: what may be stuck on it goes out elsewhere too."""
        self._outbound.reinject(subflow)
        self._lanes.refresh(self.subflows.values())
        self._timers.repeat_wanted = True

    def on_untaken(self, stream: Stream, code: ResetCode) -> None:
        """The peer has refused `stream` before it did anything about it."""
        if code is ResetCode.DRAINING:
            self.on_draining()
            if stream.stream_id != NO_ID:
                self._return(stream)
            return
        self._withdraw(stream)
        self.peer.on_refused(self._resets.at_peer, self._now)
        self.table.adopt(stream, self.peer.floor, self._now, first=True)

    def on_draining(self) -> None:
        """The peer takes no new streams: those that it does not know of are for another session."""
        if self.peer.draining:
            return
        self.peer.draining = self._draining = True
        if self.opener:
            unsent = [one for one in self.table.streams.values() if not one.open_sent]
            for stream in (*unsent, *self.table.waiting):
                self._return(stream)

    def on_gone(self, subflow: Subflow) -> None:
        """The peer has lost `subflow`, or given it up."""
        self._gone.append(subflow)

    def on_retired(self, subflow: Subflow) -> None:
        """The peer sends nothing more on `subflow`, and all that it has sent is here."""
        if self.opener:
            self._parted.append(subflow)
        else:
            self.retire(subflow)

    # --- timers and the end ---------------------------------------------------------------

    def deadline(self) -> float:
        """When on_time() must be called at the latest."""
        when = self._timers.deadline
        return min(when, self._start_at) if self.table.waiting else when

    def on_time(self, now: float) -> list[Subflow]:
        """Do what is due. Returns the subflows that are dead: close and detach them."""
        self._now = now
        if self.ended is not None:
            return []
        due = self._timers.on_time(now)
        if due is None:
            return []
        self._overhead.check()
        for stream in due.idle:
            self.table.mark_updated(stream)
            self.reset_stream(stream, ResetCode.IDLE)
        if due.end is not None:
            self.end(*due.end)
        return due.dead

    def end(self, code: SessionCode, reason: str) -> None:
        """End the session: every stream is reset, those of which all is here when it is delivered.
        The caller closes the subflows."""
        if self.ended is not None:
            return
        self.ended = self._end = (code, reason)
        self._inbound.end()
        if self.peer.ended and code is SessionCode.NORMAL:
            # The peer had no stream left: it has never seen these.
            for stream in [s for s in self.table.streams.values() if s.is_untaken]:
                self._return(stream)
            for stream in list(self.table.waiting):
                self._return(stream)
        self._resets.end_all()
        self._outbox.clear()
        self._overhead.end(list(self.subflows.values()))
        self.holding.memory.holdings.discard(self.holding)

    def goaway(self, code: SessionCode, reason: str) -> bytes:
        """A GOAWAY frame, for the caller to send on each subflow before it closes them."""
        text = reason.encode()[:MAX_REASON].decode(errors="ignore")
        return encode(Goaway(int(code), text))

    def drain(self) -> None:
        """Tell the peer that this side takes no new streams."""
        self._outbox.drain()

    # --- streams that wait for their turns ------------------------------------------------

    def _check_waiting(self) -> None:
        if not self.opener:
            raise LocalError("only the client opens streams")
        if self.ended is not None:
            raise OpenError("the session has ended")
        count = len(self.table.waiting)
        if count >= self.limits.max_streams:
            raise OpenError(f"{count} streams wait to be opened, the limit")

    def _may_start(self, now: float) -> bool:
        """True if one more stream may be opened now: that is taken as done."""
        most = self.limits.max_streams
        return (
            len(self.table.streams) < most
            and self._outbox.unconfirmed < 2 * most
            and self.peer.has_place(self._resets.at_peer, now)
            and self.peer.take_turn(now)
        )

    def _start_waiting(self, now: float) -> None:
        waiting = self.table.waiting
        while waiting and self._may_start(now):
            self._scheduler.add(self.table.start(), now)
        if waiting:
            self._start_at = self.peer.again_at(now)

    def _withdraw(self, stream: Stream) -> None:
        """Nothing of `stream` is left in this session."""
        self.table.withdraw(stream)
        self._outbox.forget(stream)
        self._scheduler.remove(stream)
        for subflow in self.subflows.values():
            subflow.inflight.forget(stream)

    def _return(self, stream: Stream) -> None:
        self._withdraw(stream)
        self._returned.append(stream)

    def give_up(self) -> None:
        """Make room for others."""
        text = "the worker's memory is used up, and this session holds most of it"
        self.end(SessionCode.LIMIT, text)
