"""One forwarded connection: a send side, a receive side, and what became of it."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from fastmtcp.engine.limits import FIRST_BYTES, IDLE_AFTER, SMALL_STREAM
from fastmtcp.engine.streams.receive_side import ReceiveSide
from fastmtcp.engine.streams.send_buffer import Buffer
from fastmtcp.engine.streams.send_side import SendSide
from fastmtcp.engine.wire.errors import ResetCode

NO_ID = -1
"""Of a stream that waits: the peer knows nothing of it, and no session has given it an id."""

NO_SUBFLOW = -1
"""Stands for a subflow's id where there is none."""


class HeldUp(NamedTuple):
    """A range that goes out once more, because the subflow that carries it holds it up or only
    tries out how fast it is: the copy must not go there. It ends with the range."""

    start: int
    stop: int
    subflow_id: int


class StreamWatcher(Protocol):
    """Whoever wants to know what happens to a stream: a relay, or what comes before it."""

    def update(self) -> None:
        """Something has happened to the stream: look at it."""


class StreamOwner(Protocol):
    """The session of a stream: what the application does has effects beyond the stream."""

    def room_for(self, stream: Stream) -> int:
        """How many bytes the stream may take from its application now."""

    def on_written(self, stream: Stream, count: int) -> None:
        """More bytes, which take `count` bytes of memory, an OPEN or a FIN wait to be sent."""

    def on_taken(self, stream: Stream, count: int, now: float) -> None:
        """The application took `count` bytes: the peer may get new credit."""

    def on_confirmed(self, stream: Stream) -> None:
        """The target is connected: the peer is to be told."""

    def reset_stream(self, stream: Stream, code: ResetCode) -> None:
        """Give the stream up and tell the peer."""

    def finish_if_done(self, stream: Stream) -> None:
        """The application was told of the peer's FIN: the stream may be forgotten."""


class Stream:
    """The application's side of a stream.

    States: open -> (finished | ending -> reset | reset). A stream is finished when both directions
    are: our FIN is acknowledged, and the application took everything up to the peer's FIN. It is
    never half there: if it cannot be finished, it is reset at both ends.
    """

    __slots__ = (
        "_owner",
        "_recent",
        "_sent_at",
        "confirmed",
        "created_at",
        "end_taken",
        "ending",
        "ends_at",
        "held_up",
        "idle_probes",
        "moved",
        "moved_at",
        "open_received",
        "opener",
        "probe_mark",
        "queue",
        "receive",
        "rescued_at",
        "reset_code",
        "send",
        "source",
        "stream_id",
        "target",
        "watcher",
    )

    def __init__(
        self,
        owner: StreamOwner,
        stream_id: int,
        receive: ReceiveSide,
        *,
        opener: bool,
        limit: int,
        now: float,
        target: str = "",
        source: str = "",
    ) -> None:
        self._owner = owner
        self.stream_id = stream_id
        self.created_at = now
        self.target = target
        self.source = source
        """The application's address, as it says itself or the client knows it; or empty."""
        self.send = SendSide(opener=opener, limit=limit)
        self.opener = opener
        """True at the side that opened the stream, the client."""
        self.receive = receive
        self.open_received = opener
        """Data may overtake the OPEN; until that is here nothing is acknowledged."""
        self.confirmed = False
        """The server has said that the target is connected: at the client, heard; at the server,
        said or about to be. See `connected`."""
        self.reset_code: ResetCode | None = None
        """Set once the application's end is to be reset, whichever side began."""
        self.ending: ResetCode | None = None
        """Set once the peer has reset the stream, or the session has ended: nothing more is sent,
        and the application gets what came before its own end is reset (fastmtcp.engine.resets)."""
        self.ends_at = 0
        """With `ending`: bytes below this offset are still waited for."""
        self.end_taken = False
        """True once the application was told of the peer's FIN."""
        self.watcher: StreamWatcher | None = None
        """Is told when something happens to this stream."""
        self.rescued_at = 0.0
        self.held_up: HeldUp | None = None
        """The range of this stream that was sent once more last."""
        self.queue: deque[Stream] | None = None
        """The scheduler's queue that this stream waits in."""
        self.probe_mark = (-2, -2)
        self.idle_probes = 0
        self.moved = 0
        """All bytes that the applications and the peer have moved, when last looked at."""
        self.moved_at = now
        self._recent = 0
        self._sent_at = 0.0

    # --- what the application does -------------------------------------------------------

    @property
    def owner(self) -> StreamOwner:
        """The session that it is in, or was last."""
        return self._owner

    @property
    def room(self) -> int:
        """Bytes that may be read from the application now."""
        if self.send.finished or self.send.dropped or self.reset_code is not None:
            return 0
        return self._owner.room_for(self)

    def write(self, view: Buffer) -> None:
        """The application sent `view`. The stream keeps it until it is data-ACKed.

        Raises:
            LocalError: after finish().
        """
        if self._may_send:
            send = self.send
            before = send.buffer.weight
            send.write(view)
            self._owner.on_written(self, send.buffer.weight - before)

    def announce(self) -> None:
        """Open the stream at the peer now, even if there are no bytes to go with the OPEN."""
        if self._may_send:
            self._owner.on_written(self, 0)

    def confirm(self) -> None:
        """At the server: the target is connected, the client may know."""
        if self._may_send and not self.confirmed:
            self.confirmed = True
            self._owner.on_confirmed(self)

    def finish(self) -> None:
        """The application sent its FIN."""
        if self._may_send and not self.send.finished:
            self.send.finished = True
            self._owner.on_written(self, 0)

    def reset(self, code: ResetCode) -> None:
        """Give up the stream at both ends."""
        if self.reset_code is None:
            self._owner.reset_stream(self, code)

    def begin_anew(self, owner: StreamOwner, receive: ReceiveSide, limit: int) -> None:
        """The peer has taken nothing of it: it waits to be opened again, by `owner`."""
        self._owner = owner
        self.stream_id = NO_ID
        self.receive = receive
        self.send.restart(limit)
        self.idle_probes = 0
        self.held_up = None

    def drop(self, code: ResetCode) -> None:
        """No session takes it any more."""
        self.reset_code = code
        self.send.buffer.clear()
        if self.watcher is not None:
            self.watcher.update()

    def take(self, count: int, now: float) -> None:
        """The application took `count` bytes from the front of `receive.data.ready`."""
        self.receive.data.take(count)
        self._owner.on_taken(self, count, now)

    def take_end(self) -> None:
        """The application was told of the peer's FIN."""
        self.end_taken = True
        self._owner.finish_if_done(self)

    @property
    def _may_send(self) -> bool:
        return self.reset_code is None and not self.send.dropped

    @property
    def open_sent(self) -> bool:
        """True once the OPEN, the byte before the first, has been given to a subflow."""
        return self.send.next >= 0

    @property
    def open_acked(self) -> bool:
        """True once the peer is known to have the OPEN."""
        return self.send.acked >= 0

    @property
    def is_untaken(self) -> bool:
        """True at the opener while nothing shows that the peer has taken even the OPEN: all that
        was sent is still held."""
        return self.opener and not self.open_acked and not self.connected

    @property
    def connected(self) -> bool:
        """True once the target is connected, as far as this side knows."""
        # What comes from the target may overtake the ACK that says so.
        return self.confirmed or (self.opener and self.receive.received > 0)

    @property
    def at_end(self) -> bool:
        """True if the application has taken every byte and the peer's FIN comes next."""
        return self.receive.complete

    @property
    def finished(self) -> bool:
        return self.send.complete and self.receive.complete

    @property
    def is_half_closed(self) -> bool:
        """True if one direction has ended, as far as this side knows, and the other has not."""
        return self.send.finished != (self.receive.fin_at is not None)

    # --- what the scheduler asks ----------------------------------------------------------

    @property
    def avoid(self) -> int:
        """Id of the subflow on which the next lost range must not go, NO_SUBFLOW if it may go on
        any."""
        held_up, lost = self.held_up, self.send.lost
        if held_up is None or not lost:
            return NO_SUBFLOW
        start, stop = lost.first
        return held_up.subflow_id if held_up.start <= start < stop <= held_up.stop else NO_SUBFLOW

    def is_small(self, now: float) -> bool:
        """True for a stream that should go before bulk: new, or idle until a moment ago."""
        if self._recent < SMALL_STREAM:
            return True
        if now - self._sent_at > IDLE_AFTER:
            self._recent = 0
            return True
        return False

    @property
    def is_at_first_bytes(self) -> bool:
        """True for a small stream that has hardly sent anything. Ask is_small() before."""
        return self._recent < FIRST_BYTES

    def count_sent(self, size: int, now: float) -> None:
        if now - self._sent_at > IDLE_AFTER:
            self._recent = 0
        self._recent += size
        self._sent_at = now
