"""What sessions share: the memory of their worker, and what one client may have in it."""

from __future__ import annotations

from collections.abc import Callable

from fastmtcp.engine.limits import CLIENT_SHARE, SHARE

_UNLIMITED = 1 << 62


class Memory:
    """The bytes that the sessions of one worker may hold together, received and sent ones."""

    __slots__ = ("free", "holdings", "reserve", "size")

    def __init__(self, size: int = _UNLIMITED) -> None:
        self.size = size
        self.free = size
        self.reserve = size >> 3
        """For what cannot be refused: bytes that the peers have credit for, and a little to send
        for everybody. Sessions share the rest."""
        self.holdings: set[Holding] = set()

    def make_room(self) -> None:
        """It is used up: end the session that is to go."""
        if self.holdings:
            self.most().give_up()

    def most(self) -> Holding:
        """The largest holding of the client that holds most in all its sessions: a client with
        many small sessions must not drive out another that has one large session."""
        client = max((holding.client for holding in self.holdings), key=lambda one: one.bytes)
        return max(
            (holding for holding in self.holdings if holding.client is client),
            key=lambda holding: holding.bytes,
        )


class ClientQuota:
    """What all sessions of one client have in this worker. The caller knows which sessions are one
    client's: those that use the same key."""

    __slots__ = (
        "bytes",
        "max_streams",
        "max_subflows",
        "opens",
        "refused",
        "sessions",
        "streams",
        "subflows",
    )

    def __init__(
        self,
        max_streams: int = _UNLIMITED,
        max_subflows: int = _UNLIMITED,
        opens: Bucket | None = None,
    ) -> None:
        """`opens` is how many streams it may open in a second; without it any number."""
        self.max_streams = max_streams
        self.max_subflows = max_subflows
        self.opens = opens or Bucket(0, 0.0)
        self.refused: dict[str, int] = {}
        """How many of its streams were refused, by the limit that was hit."""
        self.bytes = 0
        """What its sessions hold."""
        self.sessions = 0
        self.streams = 0
        self.subflows = 0

    @property
    def subflows_left(self) -> int:
        """How many more it may have."""
        return self.max_subflows - self.subflows

    def refuse(self, limit: str) -> None:
        """One of its streams is refused for `limit`."""
        self.refused[limit] = self.refused.get(limit, 0) + 1

    def take_refused(self) -> dict[str, int]:
        """How many were refused since the last call."""
        refused, self.refused = self.refused, {}
        return refused


class Holding:
    """What one session holds of its worker's memory."""

    __slots__ = ("bytes", "client", "give_up", "memory")

    def __init__(self, memory: Memory | None = None, client: ClientQuota | None = None) -> None:
        self.memory = memory or Memory()
        self.client = client or ClientQuota()
        self.bytes = 0
        self.give_up: Callable[[], None] = _nothing
        """Ends the session, to make room for the others."""

    def add(self, count: int) -> None:
        """`count` bytes more, or less if it is negative."""
        self.bytes += count
        self.client.bytes += count
        self.memory.free -= count

    @property
    def spare(self) -> int:
        """What the session may take now. All that its client has, in however many sessions, may be
        CLIENT_SHARE times what nobody has then, and all that the session has SHARE times what its
        client may take beyond that (dynamic thresholds, as in the shared buffers of switches).
        Clients that want more than there is come to have the same, and so do the sessions of each,
        whoever was first: one that has more takes nothing until what it gives back has made up for
        it."""
        left = self.memory.free - self.memory.reserve
        of_client = (CLIENT_SHARE * left - self.client.bytes) // (CLIENT_SHARE + 1)
        spare = (SHARE * of_client - self.bytes) // (SHARE + 1)
        return spare if spare > 0 else 0


class Bucket:
    """So many a second, and `most` at once, which is a second's worth if not given (a token
    bucket)."""

    __slots__ = ("_at", "_left", "most", "rate")

    def __init__(self, rate: float, now: float, most: float | None = None) -> None:
        self.rate = rate
        self.most = max(rate, 1.0) if most is None else most
        self._left = self.most
        self._at = now

    def fill(self, now: float, most: float | None = None) -> float:
        """What may pass at `now`; this time `most` at once, if given."""
        left = self._left + (now - self._at) * self.rate
        self._left = min(self.most if most is None else most, left)
        self._at = now
        return self._left

    def spend(self, count: float) -> None:
        """`count` pass. If that is more than there is, those that follow wait for longer."""
        self._left -= count

    def take(self, now: float) -> bool:
        """True if one more may pass, which is spent then. The rate 0 is no limit."""
        if not self.rate:
            return True
        if self.fill(now) < 1:
            return False
        self._left -= 1
        return True

    def delay(self, now: float) -> float:
        """Seconds until one may pass."""
        return max(0.0, 1 - self.fill(now)) / self.rate


def _nothing() -> None:
    """Stands for a holding whose session nobody can end."""
