"""What the peer of a session has said about itself."""

from __future__ import annotations


class PeerState:
    """Only Session and Inbound write it."""

    __slots__ = ("demand_at", "draining", "ended", "floor", "max_streams")

    def __init__(self, floor: int, max_streams: int) -> None:
        self.floor = floor
        """Credit that it gives to every new stream of ours."""
        self.max_streams = max_streams
        """Streams that it lets us have open at once; 0 while that is not known."""
        self.draining = False
        """True once it takes no new streams."""
        self.ended = False
        """True once it has ended the session."""
        self.demand_at = float("-inf")
        """When the server last said that what it sends waits for subflows (BUSY)."""
