"""The streams of a session, and what they have in common: ids, limits, memory, counters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection

from fastmtcp.engine.limits import STREAM_COST, Limits
from fastmtcp.engine.quota import Holding
from fastmtcp.engine.streams.flow_control import WindowPool
from fastmtcp.engine.streams.ids import StreamIds
from fastmtcp.engine.streams.reassembly import GapPool
from fastmtcp.engine.streams.receive_side import ReceiveSide
from fastmtcp.engine.streams.send_memory import SendMemory
from fastmtcp.engine.streams.stream import NO_ID, Stream, StreamOwner
from fastmtcp.engine.wire.errors import RemoteError, ResetCode, SessionCode


class StreamTable:
    """See the module. It sends nothing: its callers tell the peer."""

    __slots__ = (
        "_handed",
        "_ids",
        "_limits",
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
        "parting",
        "streams",
        "streams_opened",
        "updated",
        "waiting",
        "windows",
    )

    def __init__(
        self, owner: StreamOwner, limits: Limits, holding: Holding, *, opener: bool
    ) -> None:
        """`opener` is true at the client, the only side that opens streams."""
        self._owner = owner
        self._limits = limits
        self.opener = opener
        self.holding = holding
        self.streams: dict[int, Stream] = {}
        self.find: Callable[[int], Stream | None] = self.streams.get
        """The stream with this id, if it is here. (No method: it is asked for every frame.)"""
        self.parting: dict[int, Stream] = {}
        """Streams that this side has reset, and whose last bytes are still on their way to the
        peer (fastmtcp.engine.resets)."""
        self.memory = SendMemory(limits, holding, self.mark_updated)
        self.windows = WindowPool(limits.window_pool, holding)
        self.gaps = GapPool(limits.max_gaps)
        self.updated: dict[Stream, None] = {}
        """Streams whose application may have something to do."""
        self._handed: Collection[Stream] = ()
        self.opened: list[Stream] = []
        """Streams that the peer has opened."""
        self.waiting: OrderedDict[Stream, None] = OrderedDict()
        """Streams of this side that the peer knows nothing of, in the order of their turns."""
        self.streams_opened = 0
        self.acked = 0
        """Bytes of applications that the peer has acknowledged."""
        self._past_sent = 0
        self._past_received = 0
        # What a client may have sent that is not here yet: its open streams and its resets.
        self._ids = StreamIds(3 * limits.max_streams)

    # --- finding, opening, accepting ------------------------------------------------------

    def open(self, now: float, limit: int, target: str, source: str) -> Stream:
        """A new stream of this side, the opener, which waits for start(). The peer gives it
        `limit` as credit."""
        stream = self._make(NO_ID, limit, now, target, source)
        self.waiting[stream] = None
        return stream

    def start(self) -> Stream:
        """The stream whose turn it is has an id from now on, and may be sent."""
        stream, _ = self.waiting.popitem(last=False)
        stream.stream_id = self._ids.allocate()
        self._add(stream)
        stream.receive.window.start()
        self.streams_opened += 1
        return stream

    def withdraw(self, stream: Stream) -> None:
        """The peer has not taken this stream of ours and never will, under the id it has: it is
        in no session until one adopts it."""
        if stream in self.waiting:
            del self.waiting[stream]
        else:
            del self.streams[stream.stream_id]
            self._count(-1)
            self.streams_opened -= 1
        self.updated.pop(stream, None)
        self.memory.forget(stream)
        self.memory.let_go(stream.send.weight)
        stream.receive.window.close()
        stream.stream_id = NO_ID

    def adopt(self, stream: Stream, limit: int, now: float, *, first: bool) -> None:
        """A stream that was withdrawn waits here, as the `first` or the last."""
        stream.begin_anew(self._owner, self._receive_side(now), limit)
        self.memory.add(stream.send.weight)
        self.waiting[stream] = None
        self.waiting.move_to_end(stream, last=not first)

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
        """A new stream of the peer. None if it is one too many, which is counted."""
        limit = self._limit_hit(now)
        if limit:
            self.holding.client.refuse(limit)
            return None
        stream = self._make(stream_id, 0, now)
        self._add(stream)
        return stream

    def never_opened(self, stream_id: int) -> None:
        """The peer has reset a stream that is not here: its OPEN, if that comes, is too late."""
        if not self.opener:
            self._ids.is_new(stream_id)

    def mark_opened(self, stream: Stream) -> None:
        self.streams_opened += 1
        self.opened.append(stream)

    def mark_updated(self, stream: Stream) -> None:
        self.updated[stream] = None

    def take_updated(self) -> dict[Stream, None]:
        """Those marked since the last call. What the applications have not taken of what came in
        before that stays."""
        for stream in self._handed:
            data = stream.receive.data
            if data.ready and data.fresh:
                data.settle()
        updated = self.updated
        self._handed = ()
        if updated:
            self._handed = updated
            self.updated = {}
        return updated

    # --- the end of a stream --------------------------------------------------------------

    def reset(self, stream: Stream, code: ResetCode) -> None:
        """Nothing more is sent on the stream, and what came in is thrown away."""
        stream.reset_code = code
        self.forget(stream)

    def part(self, stream: Stream, code: ResetCode) -> None:
        """The same, but what was written goes on being sent, until drop()."""
        stream.reset_code = code
        del self.streams[stream.stream_id]
        self.parting[stream.stream_id] = stream
        self._end_receiving(stream)

    def drop(self, stream_id: int) -> None:
        """What a stream that has parted still had to send is delivered, or given up."""
        self.stop_sending(self.parting.pop(stream_id))
        self._count(-1)

    def stop_sending(self, stream: Stream) -> None:
        """Nothing that was written is sent any more."""
        weight = stream.send.weight
        stream.send.drop()
        self.memory.let_go(weight)

    def forget(self, stream: Stream) -> None:
        """The stream is finished or was reset: it gives back what it holds."""
        if self.streams.pop(stream.stream_id, None) is not None:
            self._count(-1)
        elif stream in self.waiting:
            del self.waiting[stream]
        else:
            return
        self._end_receiving(stream)
        self.stop_sending(stream)

    def take_back(self, stream: Stream) -> None:
        """The peer has never heard of this stream, which was reset: another may have its id."""
        self._ids.take_back(stream.stream_id)

    def _end_receiving(self, stream: Stream) -> None:
        self.memory.forget(stream)
        self._past_sent += stream.send.buffer.end
        self._past_received += stream.receive.data.next
        stream.receive.window.close()
        if stream.reset_code is not None:
            stream.receive.data.clear()

    # --- counters -------------------------------------------------------------------------

    def on_acked(self, count: int, weight: int) -> None:
        """The peer has acknowledged `count` bytes, which took `weight` bytes of memory."""
        self.acked += count
        self.memory.let_go(weight)

    @property
    def skipped(self) -> int:
        """How many ids the peer has skipped, which are remembered."""
        return self._ids.skipped

    @property
    def held(self) -> int:
        """Bytes of all streams that are kept for a possible reinjection."""
        tables = (self.streams.values(), self.parting.values(), self.waiting)
        return sum(stream.send.held for streams in tables for stream in streams)

    @property
    def payload_sent(self) -> int:
        """Bytes that applications have written, to all streams there ever were."""
        return self._past_sent + sum(s.send.buffer.end for s in self.streams.values())

    @property
    def payload_received(self) -> int:
        """In-order bytes received, on all streams there ever were."""
        return self._past_received + sum(s.receive.data.next for s in self.streams.values())

    # --- internal -------------------------------------------------------------------------

    def _add(self, stream: Stream) -> None:
        self.streams[stream.stream_id] = stream
        self._count(1)

    def _count(self, more: int) -> None:
        self.holding.client.streams += more
        self.holding.add(more * STREAM_COST)

    def _receive_side(self, now: float) -> ReceiveSide:
        return ReceiveSide(self._limits, self.windows, self.gaps, now, self.holding)

    def _make(
        self, stream_id: int, limit: int, now: float, target: str = "", source: str = ""
    ) -> Stream:
        return Stream(
            self._owner,
            stream_id,
            self._receive_side(now),
            opener=self.opener,
            limit=limit,
            now=now,
            target=target,
            source=source,
        )

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
        return "" if client.opens.take(now) else "opens_per_second"
