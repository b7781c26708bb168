"""The receiving half of a stream: reassembly, the FIN, and the credit given to the peer."""

from __future__ import annotations

from fastmtcp.engine.limits import MIB, Limits
from fastmtcp.engine.quota import Holding
from fastmtcp.engine.streams.flow_control import ReceiveWindow, WindowPool
from fastmtcp.engine.streams.reassembly import GapPool, Reassembly
from fastmtcp.engine.wire.errors import RemoteError, SessionCode

_ACK_EVERY = 1 * MIB


class ReceiveSide:
    """Everything that came in and has not been taken by the application yet."""

    __slots__ = ("data", "fin_at", "told", "window")

    def __init__(
        self,
        limits: Limits,
        pool: WindowPool,
        gaps: GapPool,
        now: float,
        holding: Holding | None = None,
    ) -> None:
        self.data = Reassembly(gaps, holding)
        self.window = ReceiveWindow(limits, pool, now)
        self.fin_at: int | None = None
        self.told = 0
        """What the last ACK said."""

    @property
    def received(self) -> int:
        """The data-level ACK: all below is here; the FIN counts as one byte."""
        return self.data.next + (self.data.next == self.fin_at)

    @property
    def is_all_here(self) -> bool:
        """True if every byte up to the FIN has been received."""
        return self.fin_at is not None and self.data.next == self.fin_at

    @property
    def complete(self) -> bool:
        """True if the FIN is here and the application took every byte before it."""
        return self.window.taken == self.fin_at

    @property
    def ack_is_urgent(self) -> bool:
        """True if the peer should not wait for a delayed ACK: it holds much. (That there is credit
        shows when the application takes bytes, not when they come.)"""
        return self.received - self.told >= min(self.window.size >> 2, _ACK_EVERY)

    def accept(self, offset: int, piece: memoryview, fin: bool) -> bool:
        """Take a piece. True if the application has something new: bytes, or the end.

        Raises:
            RemoteError: beyond the credit, or contradicting an earlier FIN.
        """
        end = offset + len(piece)
        if end > self.window.limit:
            raise RemoteError(SessionCode.FLOW_CONTROL, "data beyond the flow-control window")
        if offset < 0:
            raise RemoteError(SessionCode.PROTOCOL, "negative offset")
        if fin:
            if self.fin_at is None:
                if self.data.highest > end:
                    raise RemoteError(SessionCode.PROTOCOL, "FIN below received data")
                self.fin_at = end
                self.window.finish(end)
            elif self.fin_at != end:
                raise RemoteError(SessionCode.PROTOCOL, "two different FINs")
        elif self.fin_at is not None and end > self.fin_at:
            raise RemoteError(SessionCode.PROTOCOL, "data behind the FIN")
        fresh = self.data.insert(offset, piece)
        return fresh or self.data.next == self.fin_at
