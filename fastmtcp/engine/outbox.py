"""Control frames that wait for a subflow: ACKs, resets, answers, reports.

ACKs are kept as "this stream needs one" and written when they are sent, so they always carry the
latest values; so are reports of what was read of a subflow. A reset is sent again until the peer
has confirmed it.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastmtcp.engine.limits import MAX_ANSWERS, MAX_HINTS, MAX_OWN_FRAMES, MAX_RESETS, Limits
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.codec import encode
from fastmtcp.engine.wire.errors import RemoteError, ResetCode, SessionCode
from fastmtcp.engine.wire.frames import Ack, Frame, Goaway, Got, Reset, Retire


class Outbox:
    """The control frames of one session."""

    __slots__ = (
        "_acks",
        "_frames",
        "_limits",
        "_reports",
        "_resets",
        "_retires",
        "acks_at",
        "draining",
        "own",
        "urgent",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._frames: dict[bytes, None] = {}
        # A dict: the same frame twice says no more than once, and while no subflow takes anything
        # resets and probes are queued again and again.
        self._acks: dict[Stream, None] = {}
        self._resets: dict[int, Reset] = {}
        self._reports: dict[Subflow, None] = {}
        self._retires: set[Subflow] = set()
        self.own: dict[Subflow, list[bytes]] = {}
        """Frames that must travel on one subflow and no other (PING, PONG)."""
        self.draining = False
        """True once the peer was told that this side takes no new streams."""
        self.acks_at: float | None = None
        """When the waiting ACKs must go, if nothing takes them along before."""
        self.urgent = False
        """True if something should be sent now."""

    def __bool__(self) -> bool:
        """True if there is anything that any subflow may carry; reports only ride along."""
        return bool(self._frames or self._acks)

    def send(self, frame: Frame) -> None:
        """Queue a frame for any subflow."""
        self._frames[encode(frame)] = None
        self.urgent = True

    def hint(self, frame: Frame) -> None:
        """Queue a frame that helps the peer, but that it can do without: not in a crowd."""
        if len(self._frames) < MAX_HINTS:
            self.send(frame)

    def answer(self, frame: Frame) -> None:
        """Queue the answer to a frame of the peer.

        Raises:
            RemoteError: the peer asks more and more and takes no answer.
        """
        if len(self._frames) >= MAX_ANSWERS:
            raise RemoteError(SessionCode.LIMIT, "too many answers that nobody takes")
        self.send(frame)

    def send_on(self, subflow: Subflow, frame: Frame) -> None:
        """Queue a frame that must travel on this very subflow."""
        if subflow in self._retires:
            return
        frames = self.own.setdefault(subflow, [])
        if len(frames) < MAX_OWN_FRAMES:
            frames.append(encode(frame))

    def retire(self, subflow: Subflow) -> None:
        """Send on `subflow` what must travel on it, and then that nothing more will come."""
        self.own.setdefault(subflow, [])
        self._retires.add(subflow)

    def ready_subflow(self) -> Subflow | None:
        """A subflow that would take bytes now, and for which frames of its own wait."""
        for subflow in self.own:
            if subflow.ready:
                return subflow
        return None

    def report(self, subflow: Subflow) -> None:
        """The peer is to be told what has been read of `subflow`, with the next control frames."""
        self._reports[subflow] = None

    def ack(self, stream: Stream, now: float, urgent: bool) -> None:
        """`stream` owes its peer an ACK: now, or within the ACK delay."""
        self._acks[stream] = None
        if urgent:
            self.urgent = True
        elif self.acks_at is None:
            self.acks_at = now + self._limits.ack_delay

    def forget_subflow(self, subflow: Subflow) -> None:
        self._reports.pop(subflow, None)
        self._retires.discard(subflow)
        self.own.pop(subflow, None)

    def forget(self, stream: Stream) -> None:
        self._acks.pop(stream, None)
        if not self:
            self.urgent = False

    @property
    def records(self) -> int:
        """How many frames wait or are kept until they are confirmed."""
        return len(self._frames) + len(self._resets)

    @property
    def unconfirmed(self) -> int:
        """How many resets the peer has not confirmed."""
        return len(self._resets)

    def reset(self, stream_id: int, code: ResetCode, end: int = 0) -> None:
        """Reset a stream, and remember it until the peer confirms. A second time it replaces the
        first. `end` is as in the frame.

        Raises:
            RemoteError: the peer never confirms and makes us reset more and more.
        """
        # A client opens nothing above two thirds of this: its own applications, which come and go
        # during an outage, must not end the session.
        full = len(self._resets) >= MAX_RESETS * self._limits.max_streams
        if full and stream_id not in self._resets:
            raise RemoteError(SessionCode.LIMIT, "too many resets without an answer")
        self._resets[stream_id] = frame = Reset(stream_id, int(code), end)
        self.send(frame)

    def reset_confirmed(self, stream_id: int) -> None:
        self._resets.pop(stream_id, None)

    @property
    def is_resetting_any(self) -> bool:
        return bool(self._resets)

    def is_resetting(self, stream_id: int) -> bool:
        return stream_id in self._resets

    def repeat_resets(self) -> None:
        """Send all unconfirmed resets again: the subflow that carried them may have died."""
        for frame in self._resets.values():
            self.send(frame)

    def drain(self) -> None:
        """Tell the peer that this side takes no new streams."""
        self.draining = True
        self.send(Goaway(int(SessionCode.DRAINING), "shutting down"))

    def repeat(self, subflows: Iterable[Subflow]) -> None:
        """Send everything again that may have died with a subflow and is known here; `subflows`
        are those that are left."""
        for subflow in subflows:
            self.report(subflow)
        self.repeat_resets()
        if self.draining:
            self.drain()

    def on_time(self, now: float) -> None:
        if self.acks_at is not None and now >= self.acks_at:
            self.acks_at = None
            self.urgent = bool(self)

    def take_own(self, subflow: Subflow) -> bytes:
        """The frames that must travel on `subflow`."""
        frames = self.own.pop(subflow, None)
        if frames is None:
            return b""
        if subflow in self._retires:
            frames.append(encode(Retire(subflow.bytes_received)))
        return b"".join(frames)

    def take(self) -> bytes:
        """Everything that any subflow may carry, as bytes for one."""
        parts = list(self._frames)
        for stream in self._acks:
            receive = stream.receive
            receive.told = receive.received
            limit = receive.window.tell()
            parts.append(encode(Ack(stream.stream_id, receive.told, limit, stream.confirmed)))
        for subflow in self._reports:
            parts.append(encode(Got(subflow.subflow_id, subflow.bytes_received)))
        self._frames.clear()
        self._acks.clear()
        self._reports.clear()
        self.urgent = False
        self.acks_at = None
        return b"".join(parts)

    def clear(self) -> None:
        self._frames.clear()
        self._acks.clear()
        self._resets.clear()
        self.own.clear()
        self._retires.clear()
        self.urgent = False
        self.acks_at = None
