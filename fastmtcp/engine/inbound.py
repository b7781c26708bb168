"""What the peer's frames do to a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastmtcp.engine.limits import MAX_REASON, OPEN_WORK
from fastmtcp.engine.outbox import Outbox
from fastmtcp.engine.quota import Bucket
from fastmtcp.engine.scheduling.scheduler import Scheduler
from fastmtcp.engine.streams.ids import StreamIds
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.delivery import Reports
from fastmtcp.engine.subflows.subflow import Cause, State, Subflow
from fastmtcp.engine.wire.codec import FrameReader
from fastmtcp.engine.wire.errors import RemoteError, ResetCode, SessionCode, reset_code
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
    Reset,
    ResetAck,
    Stalled,
)

if TYPE_CHECKING:
    from fastmtcp.engine.session import Session


class Inbound:
    """Reads the frames of all subflows of a session."""

    def __init__(
        self,
        session: Session,
        outbox: Outbox,
        reports: Reports,
        scheduler: Scheduler,
        ids: StreamIds,
        opens: Bucket,
    ) -> None:
        self.work_left = 0
        self._session = session
        self._outbox = outbox
        self._reports = reports
        self._scheduler = scheduler
        self._ids = ids
        self._opens = opens
        self._readers: dict[int, FrameReader] = {}
        self._reader: FrameReader | None = None
        self._feeding: Subflow | None = None
        self._now = session.now

    def attach(self, subflow: Subflow) -> None:
        self._readers[subflow.subflow_id] = FrameReader(
            self._on_frame, self._on_data, self._session.limits
        )

    def detach(self, subflow: Subflow) -> None:
        del self._readers[subflow.subflow_id]

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

    def _on_data(self, stream_id: int, offset: int, piece: memoryview, fin: bool) -> None:
        if self._feeding is not None:
            self._reports.owe(self._feeding)
        stream = self._session.streams.get(stream_id)
        if stream is None:
            known = self._stream_for(stream_id)
            if known is None:
                return
            stream = known
        receive = stream.receive
        if receive.accept(offset, piece, fin):
            self._session.touch(stream)
        if stream.open_received:
            self._outbox.ack(stream, self._now, receive.ack_is_urgent)
        if self._session.holding.memory.free < 0:
            self._session.holding.memory.most().give_up()

    def _stream_for(self, stream_id: int) -> Stream | None:
        """A frame for a stream that is not in the table: new, refused, or gone."""
        if self._session.ended is not None:
            return None
        if self._session.opener:
            if not self._ids.was_allocated(stream_id):
                raise RemoteError(SessionCode.PROTOCOL, "frame for a stream never opened")
        elif self._ids.is_new(stream_id):
            limit = self._limit_hit()
            if limit:
                self._session.refused[limit] = self._session.refused.get(limit, 0) + 1
                self._outbox.reset(stream_id, ResetCode.OVERLOADED)
                return None
            stream = Stream(self._session, stream_id, opener=False, limit=0)
            self._session.add(stream)
            return stream
        if not self._outbox.is_resetting(stream_id):
            self._outbox.answer(Closed(stream_id))
        return None

    def _limit_hit(self) -> str:
        """The limit that keeps the peer from opening one more stream; empty if it may."""
        most = self._session.limits.max_streams
        client = self._session.holding.client
        # The caller has not seen the touched ones yet: opening and resetting in one breath must
        # not be a way around the limit.
        if len(self._session.streams) >= most or len(self._session.touched) >= 2 * most:
            return "max_streams"
        if client.streams >= client.max_streams:
            return "max_client_streams"
        return "" if self._opens.take(self._now) else "opens_per_second"

    def _on_frame(self, frame: Frame) -> None:
        if self._session.ended is not None:
            return
        kind = type(frame)
        if kind is Ack:
            self._on_ack(frame)  # type: ignore[arg-type]
        elif kind is Open:
            self._on_open(frame)  # type: ignore[arg-type]
        elif kind is Reset:
            self._on_reset(frame)  # type: ignore[arg-type]
        elif kind is ResetAck:
            self._outbox.reset_confirmed(frame.stream)  # type: ignore[union-attr]
        elif kind is Closed:
            self._on_closed(frame)  # type: ignore[arg-type]
        elif kind is Ping:
            self._session.say(self._feeding, Pong(frame.token))  # type: ignore[union-attr]
        elif kind is Blocked:
            self._on_blocked(frame)  # type: ignore[arg-type]
        elif kind is Busy:
            self._session.peer_demand_at = self._now
        elif kind is Got:
            self._on_got(frame)  # type: ignore[arg-type]
        elif kind is Stalled:
            self._on_stalled(frame)  # type: ignore[arg-type]
        elif kind is Gone:
            self._on_gone(frame)  # type: ignore[arg-type]
        elif kind is Goaway:
            self._on_goaway(frame)  # type: ignore[arg-type]

    def _on_open(self, frame: Open) -> None:
        if self._session.opener:
            raise RemoteError(SessionCode.PROTOCOL, "OPEN from the server")
        stream = self._session.streams.get(frame.stream) or self._stream_for(frame.stream)
        if stream is None or stream.open_received:
            return
        if frame.limit < 0:
            raise RemoteError(SessionCode.PROTOCOL, "negative limit")
        stream.open_received = True
        stream.target = frame.target
        stream.source = frame.source
        stream.send.limit = max(stream.send.limit, frame.limit)  # an ACK may have overtaken it
        self._outbox.ack(stream, self._now, urgent=False)
        self._session.streams_opened += 1
        self._session.opened.append(stream)
        if self._reader is not None:
            self._reader.work_left -= OPEN_WORK

    def _on_ack(self, frame: Ack) -> None:
        stream = self._session.streams.get(frame.stream)
        if stream is None:
            return
        if frame.connected and self._session.opener and not stream.confirmed:
            stream.confirmed = True
            stream.idle_probes = 0
            self._session.touch(stream)
        send = stream.send
        before = send.buffer.base
        if send.on_ack(frame.received, frame.limit):
            count = send.buffer.base - before
            self._session.acked += count
            self._session.memory.let_go(count)
            stream.idle_probes = 0
            self._scheduler.add(stream, self._now)
            self._session.touch(stream)
            if stream.finished:
                self._session.forget(stream)

    def _on_blocked(self, frame: Blocked) -> None:
        stream = self._session.streams.get(frame.stream)
        if stream is None or not stream.open_received:
            return
        receive = stream.receive
        if receive.window.on_blocked(frame.limit, receive.data.ready_bytes, self._now):
            self._outbox.ack(stream, self._now, urgent=True)

    def _on_got(self, frame: Got) -> None:
        subflow = self._session.subflows.get(frame.subflow)
        if subflow is None:
            return
        if frame.received > subflow.bytes_sent:
            raise RemoteError(SessionCode.PROTOCOL, "GOT beyond what was sent")
        subflow.delivery.on_got(frame.received, self._now)

    def _on_stalled(self, frame: Stalled) -> None:
        subflow = self._session.subflows.get(frame.subflow)
        if subflow is None or subflow is self._feeding or subflow.suspect:
            return
        # To doubt a subflow is work for each stream: a peer cannot have it done without end.
        if not subflow.stalls or self._now - subflow.suspect_since >= 1.0:
            subflow.become_suspect(Cause.PEER, self._now)
            self._session.doubt(subflow)

    def _on_gone(self, frame: Gone) -> None:
        subflow = self._session.subflows.get(frame.subflow)
        if subflow is not None and subflow.state is not State.GONE:
            subflow.end()
            self._session.gone.append(subflow)

    def _on_reset(self, frame: Reset) -> None:
        self._outbox.answer(ResetAck(frame.stream))
        self._outbox.reset_confirmed(frame.stream)
        stream = self._session.streams.get(frame.stream)
        if stream is not None:
            stream.reset_code = reset_code(frame.code)
            self._session.touch(stream)
            self._session.forget(stream)
        elif not self._session.opener:
            self._ids.is_new(frame.stream)  # it will never be opened any more

    def _on_closed(self, frame: Closed) -> None:
        """The peer has forgotten a stream that we still hold: our last ACK from it was lost."""
        stream = self._session.streams.get(frame.stream)
        if stream is None:
            return
        send = stream.send
        if send.finished and send.next > send.buffer.end and stream.receive.fin_at is not None:
            held = send.held
            send.on_closed()
            self._session.acked += held
            self._session.memory.let_go(held)
            if stream.finished:
                self._session.forget(stream)
            return
        stream.reset_code = ResetCode.CANCELLED
        self._session.touch(stream)
        self._session.forget(stream)

    def _on_goaway(self, frame: Goaway) -> None:
        if frame.code == SessionCode.DRAINING:
            self._session.peer_draining = True
            return
        try:
            code = SessionCode(frame.code)
        except ValueError:
            code = SessionCode.PROTOCOL
        self._session.ended_by_peer = True
        self._session.end(code, frame.reason[:MAX_REASON])
