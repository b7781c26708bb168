"""The streams of a session, and what they have in common: ids, limits, memory, counters."""

from __future__ import annotations

from collections.abc import Callable

from fastmtcp.engine.limits import Limits
from fastmtcp.engine.quota import Bucket, Holding
from fastmtcp.engine.streams.flow_control import WindowPool
from fastmtcp.engine.streams.ids import StreamIds
from fastmtcp.engine.streams.reassembly import GapPool
from fastmtcp.engine.streams.receive_side import ReceiveSide
from fastmtcp.engine.streams.send_memory import SendMemory
from fastmtcp.engine.streams.stream import Stream, StreamOwner
from fastmtcp.engine.wire.errors import RemoteError, ResetCode, SessionCode


class StreamTable:
    """See the module. It sends nothing: its callers tell the peer."""

    __slots__ = (
        "_ids",
        "_limits",
        "_opens",
        "_owner",
        "_past_received",
        "_past_sent",
        "acked",
        "find",
        "gaps",
        "holding",
        "memory",
        "opened",
        "opener",
        "refused",
        "streams",
        "streams_opened",
        "updated",
        "windows",
    )

    def __init__(
        self, owner: StreamOwner, limits: Limits, holding: Holding, *, opener: bool, now: float
    ) -> None:
        """`opener` is true at the client, the only side that opens streams."""
        self._owner = owner
        self._limits = limits
        self.opener = opener
        self.holding = holding
        self.streams: dict[int, Stream] = {}
        self.find: Callable[[int], Stream | None] = self.streams.get
        """The stream with this id, if it is here. (No method: it is asked for every frame.)"""
        self.memory = SendMemory(limits, holding, self.mark_updated)
        self.windows = WindowPool(limits.window_pool, holding.memory)
        self.gaps = GapPool(limits.max_gaps)
        self.updated: dict[Stream, None] = {}
        """Streams whose application may have something to do."""
        self.opened: list[Stream] = []
        """Streams that the peer has opened."""
        self.refused: dict[str, int] = {}
        """How many streams of the peer were refused, by the limit that was hit."""
        self.streams_opened = 0
        self.acked = 0
        """Bytes of applications that the peer has acknowledged."""
        self._past_sent = 0
        self._past_received = 0
        # What a client may have sent that is not here yet: its open streams and its resets.
        self._ids = StreamIds(3 * limits.max_streams)
        self._opens = Bucket(limits.opens_per_second, now)

    # --- finding, opening, accepting ------------------------------------------------------

    def open(self, now: float, limit: int, target: str, source: str) -> Stream:
        """A new stream of this side, the opener. The peer gives it `limit` as credit."""
        stream = self._add(self._ids.allocate(), limit, now, target, source)
        stream.receive.window.start()
        self.streams_opened += 1
        return stream

    def is_new(self, stream_id: int) -> bool:
        """True the first time that the peer names a stream it may open. An id that is neither new
        nor in the table is that of a stream which is gone.

        Raises:
            RemoteError: such a stream cannot exist.
        """
        if not self.opener:
            return self._ids.is_new(stream_id)
        if not self._ids.was_allocated(stream_id):
            raise RemoteError(SessionCode.PROTOCOL, "frame for a stream never opened")
        return False

    def accept(self, stream_id: int, now: float) -> Stream | None:
        """A new stream of the peer. None if it is one too many, which is counted in `refused`."""
        limit = self._limit_hit(now)
        if limit:
            self.refused[limit] = self.refused.get(limit, 0) + 1
            return None
        return self._add(stream_id, 0, now)

    def never_opened(self, stream_id: int) -> None:
        """The peer has reset a stream that is not here: its OPEN, if that comes, is too late."""
        if not self.opener:
            self._ids.is_new(stream_id)

    def mark_opened(self, stream: Stream) -> None:
        self.streams_opened += 1
        self.opened.append(stream)

    def mark_updated(self, stream: Stream) -> None:
        self.updated[stream] = None

    # --- the end of a stream --------------------------------------------------------------

    def reset(self, stream: Stream, code: ResetCode) -> None:
        """Nothing more is sent on the stream, and what came in is thrown away."""
        stream.reset_code = code
        self.forget(stream)

    def forget(self, stream: Stream) -> None:
        """The stream is finished or was reset: it gives back what it holds."""
        if self.streams.pop(stream.stream_id, None) is None:
            return
        self.memory.forget(stream)
        self.holding.client.streams -= 1
        self._past_sent += stream.send.buffer.end
        self._past_received += stream.receive.data.next
        held = stream.send.held
        stream.send.buffer.clear()
        self.memory.let_go(held)
        stream.receive.window.close()
        if stream.reset_code is not None:
            stream.receive.data.clear()

    # --- counters -------------------------------------------------------------------------

    def on_acked(self, count: int) -> None:
        """The peer has acknowledged `count` bytes: they need not be held any longer."""
        self.acked += count
        self.memory.let_go(count)

    @property
    def payload_sent(self) -> int:
        """Bytes that applications have written, to all streams there ever were."""
        return self._past_sent + sum(s.send.buffer.end for s in self.streams.values())

    @property
    def payload_received(self) -> int:
        """In-order bytes received, on all streams there ever were."""
        return self._past_received + sum(s.receive.data.next for s in self.streams.values())

    # --- internal -------------------------------------------------------------------------

    def _add(
        self, stream_id: int, limit: int, now: float, target: str = "", source: str = ""
    ) -> Stream:
        stream = Stream(
            self._owner,
            stream_id,
            ReceiveSide(self._limits, self.windows, self.gaps, self.holding),
            opener=self.opener,
            limit=limit,
            now=now,
            target=target,
            source=source,
        )
        self.streams[stream_id] = stream
        self.holding.client.streams += 1
        return stream

    def _limit_hit(self, now: float) -> str:
        """The limit that keeps the peer from opening one more stream; empty if it may."""
        most = self._limits.max_streams
        client = self.holding.client
        # The caller has not seen the updated ones yet: opening and resetting in one breath must
        # not be a way around the limit.
        if len(self.streams) >= most or len(self.updated) >= 2 * most:
            return "max_streams"
        if client.streams >= client.max_streams:
            return "max_client_streams"
        return "" if self._opens.take(now) else "opens_per_second"
