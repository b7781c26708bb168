"""Control frames that wait for a subflow: ACKs, resets, answers.

ACKs are kept as "this stream needs one" and written when they are sent, so they always say the
latest. A reset is said again until the peer has confirmed it.
"""

from __future__ import annotations

from fastmtcp.engine.limits import MAX_ANSWERS, MAX_HINTS, Limits
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.wire.codec import encode
from fastmtcp.engine.wire.errors import RemoteError, ResetCode, SessionCode
from fastmtcp.engine.wire.frames import Ack, Frame, Reset


class Outbox:
    """The control frames of one session."""

    __slots__ = ("_acks", "_frames", "_limits", "_resets", "acks_at", "urgent")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._frames: dict[bytes, None] = {}
        # A dict: the same frame twice says no more than once, and while no subflow takes anything
        # resets and probes are said again and again.
        self._acks: dict[Stream, None] = {}
        self._resets: dict[int, ResetCode] = {}
        self.acks_at: float | None = None
        """When the waiting ACKs must go, if nothing takes them along before."""
        self.urgent = False
        """True if something should be sent now."""

    def __bool__(self) -> bool:
        return bool(self._frames or self._acks)

    def add(self, frame: Frame) -> None:
        self._frames[encode(frame)] = None
        self.urgent = True

    def hint(self, frame: Frame) -> None:
        """Queue a frame that helps the peer, but that it can do without: not in a crowd."""
        if len(self._frames) < MAX_HINTS:
            self.add(frame)

    def answer(self, frame: Frame) -> None:
        """Queue the answer to a frame of the peer.

        Raises:
            RemoteError: the peer asks more and more and takes no answer.
        """
        if len(self._frames) >= MAX_ANSWERS:
            raise RemoteError(SessionCode.LIMIT, "too many answers that nobody takes")
        self.add(frame)

    def ack(self, stream: Stream, now: float, urgent: bool) -> None:
        """`stream` owes its peer an ACK: now, or within the ACK delay."""
        self._acks[stream] = None
        if urgent:
            self.urgent = True
        elif self.acks_at is None:
            self.acks_at = now + self._limits.ack_delay

    def forget(self, stream: Stream) -> None:
        self._acks.pop(stream, None)
        if not self:
            self.urgent = False

    def reset(self, stream_id: int, code: ResetCode) -> None:
        """Reset a stream, and remember it until the peer confirms.

        Raises:
            RemoteError: the peer never confirms and makes us reset more and more.
        """
        if len(self._resets) >= 2 * self._limits.max_streams:
            raise RemoteError(SessionCode.LIMIT, "too many resets without an answer")
        self._resets[stream_id] = code
        self.add(Reset(stream_id, int(code)))

    def reset_confirmed(self, stream_id: int) -> None:
        self._resets.pop(stream_id, None)

    def is_resetting(self, stream_id: int) -> bool:
        return stream_id in self._resets

    def repeat_resets(self) -> None:
        """Say all unconfirmed resets again: the subflow that carried them may have died."""
        for stream_id, code in self._resets.items():
            self.add(Reset(stream_id, int(code)))

    def on_time(self, now: float) -> None:
        if self.acks_at is not None and now >= self.acks_at:
            self.acks_at = None
            self.urgent = bool(self)

    def take(self) -> bytes:
        """Everything that waits, as bytes for one subflow."""
        parts = list(self._frames)
        for stream in self._acks:
            receive = stream.receive
            receive.told = receive.received
            limit = receive.window.tell()
            parts.append(encode(Ack(stream.stream_id, receive.told, limit, stream.confirmed)))
        self._frames.clear()
        self._acks.clear()
        self.urgent = False
        self.acks_at = None
        return b"".join(parts)

    def clear(self) -> None:
        self._frames.clear()
        self._acks.clear()
        self._resets.clear()
        self.urgent = False
        self.acks_at = None
