"""What the peer's frames do to a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from fastmtcp.engine.limits import MAX_REASON, OPEN_WORK, Limits
from fastmtcp.engine.outbox import Outbox
from fastmtcp.engine.peer import PeerState
from fastmtcp.engine.resets import Resets
from fastmtcp.engine.scheduling.scheduler import Scheduler
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.streams.table import StreamTable
from fastmtcp.engine.subflows.subflow import Cause, State, Subflow
from fastmtcp.engine.wire.codec import FrameReader
from fastmtcp.engine.wire.errors import UNTAKEN, RemoteError, ResetCode, SessionCode, reset_code
from fastmtcp.engine.wire.frames import (
    Ack,
    Blocked,
    Busy,
    Closed,
    Frame,
    Goaway,
    Gone,
    Got,
    Open,
    Ping,
    Pong,
    Recall,
    Reset,
    ResetAck,
    Retire,
    Return,
    Stalled,
)


class InboundOwner(Protocol):
    """The session: what concerns more than a stream or a subflow."""

    def doubt(self, subflow: Subflow) -> None:
        """`subflow` has become suspect."""

    def on_gone(self, subflow: Subflow) -> None:
        """The peer has lost `subflow`, or given it up."""

    def on_retired(self, subflow: Subflow) -> None:
        """Nothing more will come on `subflow`, and all that came is here."""

    def on_untaken(self, stream: Stream, code: ResetCode) -> None:
        """The peer has not taken `stream` and has forgotten its id."""

    def on_draining(self) -> None:
        """The peer takes no new streams."""

    def end(self, code: SessionCode, reason: str) -> None:
        """The peer ends the session."""


class Inbound:
    """Reads the frames of all subflows of a session."""

    def __init__(
        self,
        owner: InboundOwner,
        table: StreamTable,
        subflows: dict[int, Subflow],
        outbox: Outbox,
        resets: Resets,
        scheduler: Scheduler,
        peer: PeerState,
        limits: Limits,
        now: float,
    ) -> None:
        self.work_left = 0
        self._owner = owner
        self._table = table
        self._subflows = subflows
        self._outbox = outbox
        self._resets = resets
        self._scheduler = scheduler
        self._peer = peer
        self._limits = limits
        self._ended = False
        self._readers: dict[int, FrameReader] = {}
        self._now = now
        # Set by receive(), from which all that reads them is called.
        self._reader: FrameReader
        self._feeding: Subflow
        # Each handler takes the frame that its key names.
        self._handlers: dict[type[Frame], Callable[[Any], None]] = {
            Open: self._on_open,
            Ack: self._on_ack,
            Reset: self._on_reset,
            ResetAck: self._on_reset_ack,
            Closed: self._on_closed,
            Ping: self._on_ping,
            Pong: self._on_pong,
            Goaway: self._on_goaway,
            Blocked: self._on_blocked,
            Recall: self._on_recall,
            Return: self._on_return,
            Busy: self._on_busy,
            Gone: self._on_gone,
            Got: self._on_got,
            Stalled: self._on_stalled,
            Retire: self._on_retire,
        }

    def attach(self, subflow: Subflow) -> None:
        self._readers[subflow.subflow_id] = FrameReader(self._on_frame, self._on_data, self._limits)

    def detach(self, subflow: Subflow) -> None:
        del self._readers[subflow.subflow_id]

    def end(self) -> None:
        """The session has ended: whatever still comes in means nothing."""
        self._ended = True

    def receive(self, subflow: Subflow, view: memoryview, now: float, work: int) -> int:
        """See Session.receive()."""
        self._now = now
        subflow.heard_at = now
        subflow.pinged_at = None
        self._feeding = subflow
        self._reader = reader = self._readers[subflow.subflow_id]
        taken = reader.feed(view, work)
        subflow.bytes_received += taken
        self.work_left = reader.work_left
        return taken

    # --- data -----------------------------------------------------------------------------

    def _on_data(self, stream_id: int, offset: int, piece: memoryview, fin: bool) -> None:
        self._outbox.report(self._feeding)
        stream = self._table.find(stream_id) or self._accept(stream_id)
        if stream is None:
            return
        receive = stream.receive
        if receive.accept(offset, piece, fin):
            self._table.mark_updated(stream)
        if stream.open_received:
            self._outbox.ack(stream, self._now, receive.ack_is_urgent)

    def _accept(self, stream_id: int) -> Stream | None:
        """A frame for a stream that is not in the table: new, refused, or gone."""
        if self._ended:
            return None
        if self._table.is_new(stream_id):
            stream = self._table.accept(stream_id, self._now)
            if stream is None:
                self._outbox.reset(stream_id, ResetCode.LIMIT)
            return stream
        if not self._outbox.is_resetting(stream_id):
            self._outbox.answer(Closed(stream_id))
        return None

    # --- frames of streams ----------------------------------------------------------------

    def _on_frame(self, frame: Frame) -> None:
        if not self._ended:
            self._handlers[type(frame)](frame)

    def _on_open(self, frame: Open) -> None:
        if self._table.opener:
            raise RemoteError(SessionCode.PROTOCOL, "OPEN from the server")
        stream = self._table.find(frame.stream) or self._accept(frame.stream)
        if stream is None or stream.open_received:
            return
        if frame.limit < 0:
            raise RemoteError(SessionCode.PROTOCOL, "negative limit")
        stream.open_received = True
        stream.target = frame.target
        stream.source = frame.source
        stream.send.raise_limit(frame.limit)  # an ACK may have overtaken it
        self._outbox.ack(stream, self._now, urgent=False)
        self._table.mark_opened(stream)
        self._reader.work_left -= OPEN_WORK

    def _on_ack(self, frame: Ack) -> None:
        stream = self._table.find(frame.stream) or self._table.parting.get(frame.stream)
        if stream is None:
            return
        if frame.connected and self._table.opener and not stream.confirmed:
            stream.confirmed = True
            stream.idle_probes = 0
            self._table.mark_updated(stream)
        send = stream.send
        buffer = send.buffer
        before, weight = buffer.base, buffer.weight
        if send.on_ack(frame.received, frame.limit):
            self._table.on_acked(buffer.base - before, weight - buffer.weight)
            stream.idle_probes = 0
            self._scheduler.add(stream, self._now)
            self._table.mark_updated(stream)
            if stream.reset_code is not None:
                if send.acked >= send.buffer.end:
                    self._resets.drop(frame.stream)
            elif stream.finished:
                self._table.forget(stream)

    def _on_blocked(self, frame: Blocked) -> None:
        stream = self._table.find(frame.stream)
        if stream is None or not stream.open_received:
            return
        receive = stream.receive
        if receive.window.on_blocked(frame.limit, receive.data.ready_bytes, self._now):
            self._outbox.ack(stream, self._now, urgent=True)

    def _on_recall(self, frame: Recall) -> None:
        stream = self._table.find(frame.stream) or self._table.parting.get(frame.stream)
        if stream is not None:
            # Also if that is nothing new: the answer may have got lost.
            self._outbox.answer(Return(frame.stream, stream.send.give_back(frame.credit)))

    def _on_return(self, frame: Return) -> None:
        stream = self._table.find(frame.stream)
        if stream is not None:
            receive = stream.receive
            receive.window.on_return(frame.credit, receive.data.highest)

    def _on_reset(self, frame: Reset) -> None:
        stream = self._table.find(frame.stream)
        code = reset_code(frame.code)
        if stream is not None and stream.is_untaken and code in UNTAKEN:
            self._outbox.answer(ResetAck(frame.stream))
            self._owner.on_untaken(stream, code)
        else:
            self._resets.on_reset(frame, self._now)

    def _on_reset_ack(self, frame: ResetAck) -> None:
        self._resets.on_confirmed(frame.stream)

    def _on_closed(self, frame: Closed) -> None:
        """The peer has forgotten a stream that we still hold: our last ACK from it was lost."""
        stream = self._table.find(frame.stream)
        if stream is None:
            self._resets.drop(frame.stream)
            return
        if stream.ending is not None:
            # An answer to what was sent before the peer's reset was here.
            return
        send = stream.send
        if send.finished and send.next > send.buffer.end and stream.receive.fin_at is not None:
            held, weight = send.held, send.weight
            send.on_closed()
            self._table.on_acked(held, weight)
            if stream.finished:
                self._table.forget(stream)
        else:
            self._table.mark_updated(stream)
            self._table.reset(stream, ResetCode.CANCELLED)
            self._outbox.forget(stream)

    # --- frames of subflows ---------------------------------------------------------------

    def _on_ping(self, frame: Ping) -> None:
        self._outbox.send_on(self._feeding, Pong(frame.token))

    def _on_pong(self, frame: Pong) -> None:
        """Nothing to do: receive() has noted already that something came in on the subflow."""

    def _on_got(self, frame: Got) -> None:
        subflow = self._subflows.get(frame.subflow)
        if subflow is None:
            return
        if frame.received > subflow.bytes_sent:
            raise RemoteError(SessionCode.PROTOCOL, "GOT beyond what was sent")
        subflow.delivery.on_got(frame.received, self._now)

    def _on_stalled(self, frame: Stalled) -> None:
        subflow = self._subflows.get(frame.subflow)
        if subflow is None or subflow is self._feeding or subflow.suspect:
            return
        # To doubt a subflow is work for each stream: a peer cannot have it done without end.
        if not subflow.stalls or self._now - subflow.suspect_since >= 1.0:
            subflow.become_suspect(Cause.PEER, self._now)
            self._owner.doubt(subflow)

    def _on_gone(self, frame: Gone) -> None:
        subflow = self._subflows.get(frame.subflow)
        if subflow is not None and subflow.state is not State.GONE:
            subflow.end()
            self._owner.on_gone(subflow)

    def _on_retire(self, frame: Retire) -> None:
        subflow = self._feeding
        if subflow is None:
            return
        if self._table.opener and not subflow.retiring:
            raise RemoteError(SessionCode.PROTOCOL, "RETIRE from the server, which was not asked")
        self._on_got(Got(subflow.subflow_id, frame.received))
        self._owner.on_retired(subflow)

    # --- frames of the session ------------------------------------------------------------

    def _on_busy(self, frame: Busy) -> None:
        self._peer.demand_at = self._now

    def _on_goaway(self, frame: Goaway) -> None:
        if frame.code == SessionCode.DRAINING:
            self._owner.on_draining()
            return
        try:
            code = SessionCode(frame.code)
        except ValueError:
            code = SessionCode.PROTOCOL
        self._peer.ended = True
        self._owner.end(code, frame.reason[:MAX_REASON])
