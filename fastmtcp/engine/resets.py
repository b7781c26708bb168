"""Resets of streams, and the last bytes that came before them.

A TCP connection that is reset has often just said why: a server that answers "413" and closes with
the upload unread, a proxy that refuses. So RESET says how far the stream goes.

    this side resets     the stream *parts*: its application is gone, what it wrote is sent, and
                         sent again, until the peer has acknowledged it
    the peer resets      the stream is *ending*: its application is served until it has all of that,
                         and then its end is reset; that is what RESET_ACK says

A stream that waits for its turn has nothing at the peer, and does not part. One that the peer turns
out not to have taken is dropped.

Both end after a few seconds without progress, and a few more with it, and hold no more than open
streams do. What is given up is cut short, but the end is a reset all the same.
"""

from __future__ import annotations

from collections.abc import Collection

from fastmtcp.engine.limits import (
    LAST_BYTES_LONGEST,
    LAST_BYTES_PATIENCE,
    LAST_BYTES_ROUNDS,
    Limits,
)
from fastmtcp.engine.outbox import Outbox
from fastmtcp.engine.scheduling import liveness
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.streams.table import StreamTable
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.errors import RemoteError, ResetCode, SessionCode, reset_code
from fastmtcp.engine.wire.frames import Reset, ResetAck


class Resets:
    """Those of one session."""

    __slots__ = ("_limits", "_outbox", "_table", "_waits")

    def __init__(self, table: StreamTable, outbox: Outbox, limits: Limits) -> None:
        self._table = table
        self._outbox = outbox
        self._limits = limits
        self._waits: dict[Stream, _Wait] = {}
        """Of all streams that part or are ending."""

    def reset(self, stream: Stream, code: ResetCode, *, connected: bool) -> None:
        """This side resets a stream; `connected` if there is a subflow.

        Raises:
            RemoteError: too many resets that the peer does not confirm.
        """
        if stream in self._table.waiting:
            self._table.reset(stream, code)
            return
        if self._table.find(stream.stream_id) is not stream:
            if stream.reset_code is None and not stream.finished:
                # It has outlived its session, to be delivered, and its application is gone.
                stream.reset_code = code
                stream.receive.data.clear()
            return
        if stream.ending is not None:
            self._end(stream, code)
            return
        send = stream.send
        self._outbox.forget(stream)
        if not stream.open_sent and not (send.buffer.end and connected):
            self._table.reset(stream, code)
            self._table.take_back(stream)
            return
        end = max(0, min(send.acked, send.buffer.end))
        # What was said before a limit or a fault of ours is not worth more of it.
        if code is ResetCode.CANCELLED and end < send.buffer.end and self._has_room:
            end = send.buffer.end
            self._table.part(stream, code)
            self._waits[stream] = _Wait()
        else:
            self._table.reset(stream, code)
        self._outbox.reset(stream.stream_id, code, end)

    def on_reset(self, frame: Reset, now: float) -> None:
        """The peer resets a stream.

        Raises:
            RemoteError: it cannot.
        """
        if frame.end < 0:
            raise RemoteError(SessionCode.PROTOCOL, "negative offset")
        self.on_confirmed(frame.stream)
        stream = self._table.find(frame.stream) or self._accept(frame, now)
        if stream is None:
            self._outbox.answer(ResetAck(frame.stream))
            return
        if stream.ending is None:
            self._start(stream, reset_code(frame.code), frame.end)
        else:
            # It cannot send all of it after all.
            stream.ends_at = min(stream.ends_at, frame.end)
        self._table.mark_updated(stream)
        self.settle(stream)

    def on_confirmed(self, stream_id: int) -> None:
        """The peer has dropped a stream that this side has reset."""
        self._outbox.reset_confirmed(stream_id)
        self.drop(stream_id)

    def drop(self, stream_id: int) -> None:
        """What a stream that parts had to send has arrived, or nobody wants it any more."""
        stream = self._table.parting.get(stream_id)
        if stream is not None:
            del self._waits[stream]
            self._table.drop(stream_id)

    def settle(self, stream: Stream) -> None:
        """Reset the application's end of a stream that is ending, if it has all that came."""
        data = stream.receive.data
        if not stream.open_received:
            waits = stream.ends_at > 0
        else:
            waits = (
                data.next < stream.ends_at
                or data.ready_bytes > 0
                or (stream.receive.is_all_here and not stream.end_taken)
            )
        if not waits and stream.ending is not None:
            self._end(stream, stream.ending)

    def on_time(self, subflows: Collection[Subflow]) -> None:
        """To be called once a second: ask for news, and give up what does not move. (A pause of our
        own is no more than one call.)"""
        if not self._waits:
            return
        slowest = max((subflow.speed.rtt for subflow in subflows), default=0.0)
        patience = max(LAST_BYTES_PATIENCE, round(LAST_BYTES_ROUNDS * slowest))
        for stream, wait in list(self._waits.items()):
            if not wait.is_over(stream, patience):
                if stream.send.unacked and stream.open_sent:
                    self._outbox.send(liveness.probe(stream))
            elif stream.ending is not None:
                self._end(stream, stream.ending)
            else:
                assert stream.reset_code is not None
                end = max(0, stream.send.acked)
                self.drop(stream.stream_id)
                self._outbox.reset(stream.stream_id, stream.reset_code, end)

    def repeat(self) -> None:
        """A subflow has died: ask for the news that it may have had."""
        for stream in self._table.parting.values():
            if not stream.send.lost and stream.open_sent:
                self._outbox.send(liveness.probe(stream))

    def end_all(self) -> None:
        """The session ends: every stream is reset, but what is complete is delivered first."""
        for stream_id in list(self._table.parting):
            self.drop(stream_id)
        for stream in list(self._table.waiting):
            self._table.mark_updated(stream)
            self._table.reset(stream, ResetCode.SESSION_LOST)
        # Nobody has heard of these, so nobody would take what is here, or give it back.
        unknown = set(self._table.opened)
        self._table.opened = []
        for stream in list(self._table.streams.values()):
            self._table.mark_updated(stream)
            receive = stream.receive
            all_here = receive.is_all_here and stream not in unknown
            if stream.ending is not None and stream not in unknown:
                all_here = stream.open_received and receive.data.next >= stream.ends_at
            if not all_here:
                self._table.reset(stream, ResetCode.SESSION_LOST)
            elif stream.ending is not None or not stream.send.complete:
                if stream.ending is None:
                    stream.ending = ResetCode.SESSION_LOST
                stream.ends_at = 0
                self._table.forget(stream)
                self.settle(stream)
            else:
                # All that is left to do is between us and the application.
                self._table.forget(stream)
        self._waits.clear()

    @property
    def at_peer(self) -> int:
        """How many streams of this side have their places at the peer. One that was reset has its
        own until that is confirmed."""
        return len(self._table.streams) + self._outbox.unconfirmed

    @property
    def _has_room(self) -> bool:
        table = self._table
        return len(table.streams) + len(table.parting) <= self._limits.max_streams

    def _accept(self, frame: Reset, now: float) -> Stream | None:
        """The peer resets a stream that is not here: gone, or its OPEN is still to come."""
        table = self._table
        if not frame.end or table.opener:
            table.never_opened(frame.stream)
            return None
        return table.accept(frame.stream, now) if table.is_new(frame.stream) else None

    def _start(self, stream: Stream, code: ResetCode, end: int) -> None:
        stream.ending = code
        stream.ends_at = end
        self._table.stop_sending(stream)
        self._waits[stream] = _Wait()

    def _end(self, stream: Stream, code: ResetCode) -> None:
        self._waits.pop(stream, None)
        alive = self._table.find(stream.stream_id) is stream
        self._table.reset(stream, code)
        if alive:
            self._table.mark_updated(stream)
            self._outbox.forget(stream)
            self._outbox.send(ResetAck(stream.stream_id))


class _Wait:
    """How long the last bytes of a stream have taken, in calls once a second."""

    __slots__ = ("_calls", "_idle", "_mark")

    def __init__(self) -> None:
        self._mark = -1
        self._idle = 0
        self._calls = 0

    def is_over(self, stream: Stream, patience: int) -> bool:
        mark = stream.send.acked + stream.receive.data.next + stream.receive.window.taken
        self._calls += 1
        self._idle = 0 if mark != self._mark else self._idle + 1
        self._mark = mark
        return self._idle >= patience or self._calls > max(LAST_BYTES_LONGEST, 2 * patience)
