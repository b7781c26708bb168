"""What can go wrong inside the engine, and the codes that travel on the wire (docs/SPEC.md)."""

from __future__ import annotations

import enum


class ResetCode(enum.IntEnum):
    """Why a stream was reset. Unknown codes from a newer peer are treated as CANCELLED."""

    CANCELLED = 0  # the application reset its connection
    REFUSED = 1  # the target refused the connection
    UNREACHABLE = 2  # no route to the target, or no answer in time
    UNRESOLVED = 3  # the target's name could not be looked up
    OVERLOADED = 4  # a limit was hit: streams, descriptors, memory
    SESSION_LOST = 5  # the session ended before the stream did
    DRAINING = 6  # the program is shutting down
    INTERNAL = 7  # a fault of ours
    NOT_ALLOWED = 8  # the server lets nobody, or not this client, go to this target
    IDLE = 9  # nothing moved for too long
    LIMIT = 10  # not taken, for a limit of the server's: it may be opened again, later

    @property
    def explanation(self) -> str:
        """In a user's words."""
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    ResetCode.CANCELLED: "the application reset its connection",
    ResetCode.REFUSED: "the target refused the connection",
    ResetCode.UNREACHABLE: "the target cannot be reached",
    ResetCode.UNRESOLVED: "the target's name cannot be looked up",
    ResetCode.OVERLOADED: "too many streams or open files",
    ResetCode.SESSION_LOST: "the session was lost",
    ResetCode.DRAINING: "the other side is shutting down",
    ResetCode.INTERNAL: "an internal error",
    ResetCode.NOT_ALLOWED: "the server does not allow this target",
    ResetCode.IDLE: "nothing moved on it for too long",
    ResetCode.LIMIT: "the server has too many streams",
}

UNTAKEN = frozenset((ResetCode.DRAINING, ResetCode.LIMIT))
"""A server that resets a stream with one of these has done nothing about it."""


class SessionCode(enum.IntEnum):
    """Why a session was ended (GOAWAY)."""

    NORMAL = 0
    PROTOCOL = 1
    FLOW_CONTROL = 2
    LIMIT = 3
    TIMEOUT = 4
    DRAINING = 5  # no new streams; the open ones go on
    SHUTDOWN = 6
    REVOKED = 7


class EngineError(Exception):
    """Base of the engine's errors."""


class LocalError(EngineError):
    """The caller used the engine wrongly, e.g. wrote after finish(). Always a bug of ours."""


class OpenError(EngineError):
    """A stream cannot be opened now, and that is not the caller's fault: as many wait for their
    turns at the peer as may, or the session has ended."""


class RemoteError(EngineError):
    """The peer broke the protocol. Its session ends with `code`."""

    def __init__(self, code: SessionCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def reset_code(value: int) -> ResetCode:
    """Map a code from the wire to one we know."""
    try:
        return ResetCode(value)
    except ValueError:
        return ResetCode.CANCELLED
