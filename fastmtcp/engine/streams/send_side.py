"""The sending half of a stream.

Offsets here are in ACK space: the OPEN is the byte at -1, data are 0 to end-1, the FIN is the byte
at `end`. So OPEN and FIN are sent, lost, sent again and acknowledged by the same few lines as data.
"""

from __future__ import annotations

from fastmtcp.engine.limits import MIN_CHUNK
from fastmtcp.engine.streams.ranges import RangeSet
from fastmtcp.engine.streams.send_buffer import Buffer, SendBuffer
from fastmtcp.engine.wire.errors import LocalError, RemoteError, SessionCode


class SendSide:
    """Which bytes wait, which are on their way, which are lost, which are acknowledged.

    Invariants: acked <= next <= buffer.end + finished; the buffer holds [acked, end).
    """

    __slots__ = (
        "acked",
        "asked_at",
        "buffer",
        "dropped",
        "finished",
        "limit",
        "lost",
        "next",
        "returned",
    )

    def __init__(self, *, opener: bool, limit: int) -> None:
        self.buffer = SendBuffer()
        self.limit = limit
        """The peer's credit: data below this offset may be sent. It goes back only by what this
        side returns."""
        self.returned = 0
        """Bytes of credit that were given back, in all."""
        self.next = -1 if opener else 0
        self.acked = self.next
        self.lost = RangeSet()
        self.finished = False
        self.dropped = False
        """True once nothing more is sent or sent again, see drop()."""
        self.asked_at = -1
        """The limit at which the peer was last asked for a larger window."""

    def restart(self, limit: int) -> None:
        """The peer has taken nothing, not even the OPEN: all of it is to be sent, from the start,
        with `limit` as credit."""
        self.next = self.acked = -1
        self.lost = RangeSet()
        self.limit = limit
        self.returned = 0
        self.asked_at = -1

    @property
    def backlog(self) -> int:
        """Bytes written and not yet given to a subflow."""
        return self.buffer.end - max(self.next, 0) if self.next < self.buffer.end else 0

    @property
    def held(self) -> int:
        """Bytes kept for a possible reinjection."""
        return self.buffer.end - self.buffer.base

    @property
    def weight(self) -> int:
        """Bytes of memory that they take."""
        return self.buffer.weight

    @property
    def unacked(self) -> bool:
        """True if something on its way has not been acknowledged."""
        return self.acked < self.next

    @property
    def complete(self) -> bool:
        """True if everything, the FIN included, is acknowledged."""
        return self.finished and self.acked > self.buffer.end and not self.dropped

    @property
    def blocked(self) -> bool:
        """True if the application may not write, or only crumbs, until there is credit."""
        return not self.finished and self.limit - self.buffer.end < MIN_CHUNK

    @property
    def sendable(self) -> bool:
        if self.lost or self.next < 0:
            return True
        end = self.buffer.end
        if self.next < end:
            return self.next < self.limit
        return self.finished and self.next == end

    def write(self, view: Buffer) -> None:
        if self.finished:
            raise LocalError("write after finish")
        self.buffer.append(view)

    def pull(self, most: int) -> tuple[int, int]:
        """The next range to send, lost ones first. Call only if `sendable`."""
        if self.lost:
            return self.lost.take(most)
        start = self.next
        end = self.buffer.end
        stop = max(min(start + most, end, self.limit), start)
        if start < 0:
            stop = max(stop, 0)
        if self.finished and stop == end:
            stop += 1
        self.next = stop
        return start, stop

    def on_ack(self, received: int, limit: int) -> bool:
        """The peer holds all below `received` and may be sent all below `limit`.

        Returns whether anything is new. ACKs overtake one another: older ones are ignored.

        Raises:
            RemoteError: an ACK for bytes that were never sent.
        """
        if received > self.next:
            raise RemoteError(SessionCode.PROTOCOL, "ACK beyond what was sent")
        news = False
        if received > self.acked:
            self.acked = received
            self.buffer.release(min(received, self.buffer.end))
            if self.lost:
                self.lost.drop_below(received)
            news = True
        if limit - self.returned > self.limit:
            self.limit = limit - self.returned
            news = True
        return news

    def raise_limit(self, limit: int) -> None:
        """The peer says without an ACK so much credit there is, with what was given back since."""
        self.limit = max(self.limit, limit - self.returned)

    def give_back(self, wanted: int) -> int:
        """The peer wants `wanted` bytes of credit back, in all. Returns how many it gets, in all:
        what the application has written may still be sent."""
        back = min(wanted - self.returned, self.limit - self.buffer.end)
        if back > 0:
            self.limit -= back
            self.returned += back
            self.asked_at = -1
        return self.returned

    def on_closed(self) -> None:
        """The peer has received everything and forgotten the stream."""
        self.acked = self.next
        self.lost.drop_below(self.acked)
        self.buffer.clear()

    def drop(self) -> None:
        """Nothing more is sent, nor sent again: to all that ask it looks acknowledged, and yet is
        never complete."""
        self.dropped = self.dropped or not self.complete
        self.buffer.clear()
        self.next = self.acked = self.buffer.end + self.finished
        self.lost.drop_below(self.next)

    def on_lost(self, start: int, stop: int) -> bool:
        """The subflow that carried [start, stop) died. True if any of it must be sent again."""
        start = max(start, self.acked)
        if start >= stop:
            return False
        self.lost.add(start, stop)
        return True
