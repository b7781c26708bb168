"""What the peer of a session has said about itself."""

from __future__ import annotations

from fastmtcp.engine.quota import Bucket

_PACE = 7 / 8
_AT_ONCE = 1 / 2
"""Of what the peer lets this side open in a second: what has waited on the way comes all at once,
and must not be too much then."""

_RETRY = 0.25
"""Seconds after a refusal until some more streams are tried than were open then."""

_NEVER = float("inf")


class PeerState:
    """Only Session and Inbound write it."""

    __slots__ = (
        "_most",
        "_opens",
        "_retry_at",
        "demand_at",
        "draining",
        "ended",
        "floor",
        "streams",
    )

    def __init__(self, floor: int, streams: int) -> None:
        self.floor = floor
        """Credit that it gives to every new stream of ours."""
        self.streams = streams
        """Streams that it lets us have open at once; 0 while that is not known."""
        self.draining = False
        """True once it takes no new streams."""
        self.ended = False
        """True once it has ended the session."""
        self.demand_at = float("-inf")
        """When the server last said that what it sends waits for subflows (BUSY)."""
        self._opens = Bucket(0, 0.0)
        # After a refusal: streams that may be open, until the peer has taken more.
        self._most = _NEVER
        self._retry_at = 0.0

    def set_pace(self, opens: float, now: float) -> None:
        """It lets us open so many streams in a second, and at once; 0 is any number."""
        self._opens = Bucket(opens * _PACE, now, max(1.0, opens * _AT_ONCE))

    def on_refused(self, count: int, now: float) -> None:
        """It has refused a stream for a limit that only it knows, as all sessions of a client
        share it; `count` streams are left."""
        self._most = min(self._most, count)
        self._retry_at = now + _RETRY

    def has_place(self, count: int, now: float) -> bool:
        """True if it may take one more beside `count` streams. To open it needs take_turn() too."""
        if self.draining or (self.streams and count >= self.streams):
            return False
        if count >= self._most and now >= self._retry_at:
            self._most = count + max(1, count >> 1)
            self._retry_at = now + _RETRY
        return count < self._most

    def take_turn(self, now: float) -> bool:
        """True if a stream may be opened now without being one too many in a second."""
        return self._opens.take(now)

    def again_at(self, now: float) -> float:
        """When it is worth to ask again, if no stream ends before."""
        when = self._retry_at if self._retry_at > now else _NEVER
        delay = self._opens.delay(now) if self._opens.rate else 0.0
        return min(when, now + delay) if delay else when
