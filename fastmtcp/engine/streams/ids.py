"""Stream ids: which were used, which are new. Ids count up from 0 and are never used again."""

from __future__ import annotations

from fastmtcp.engine.wire.errors import RemoteError, SessionCode


class StreamIds:
    """At the opener it hands out ids; at the other side it tells new ids from finished ones.

    Frames of different subflows overtake one another, so an id may be skipped and come later.
    """

    __slots__ = ("_free", "_most_skipped", "_next", "_skipped")

    def __init__(self, most_skipped: int) -> None:
        self._next = 0
        self._skipped: set[int] = set()
        self._free: list[int] = []
        self._most_skipped = most_skipped

    @property
    def skipped(self) -> int:
        """How many ids were skipped and may still come."""
        return len(self._skipped)

    def allocate(self) -> int:
        if self._free:
            return self._free.pop()
        stream_id = self._next
        self._next += 1
        return stream_id

    def take_back(self, stream_id: int) -> None:
        """Nothing was ever sent of this id: it may be used, or the other side would wait for it
        for ever."""
        self._free.append(stream_id)

    def was_allocated(self, stream_id: int) -> bool:
        return 0 <= stream_id < self._next

    def is_new(self, stream_id: int) -> bool:
        """True the first time an id is seen.

        Raises:
            RemoteError: negative, or it skips more ids than may be open at once.
        """
        if stream_id >= self._next:
            skipped = stream_id - self._next
            if skipped + len(self._skipped) > self._most_skipped:
                raise RemoteError(SessionCode.LIMIT, "stream ids skip too far")
            self._skipped.update(range(self._next, stream_id))
            self._next = stream_id + 1
            return True
        if stream_id in self._skipped:
            self._skipped.remove(stream_id)
            return True
        if stream_id < 0:
            raise RemoteError(SessionCode.PROTOCOL, "negative stream id")
        return False
