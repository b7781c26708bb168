"""The frames of wire version 1 (docs/SPEC.md, section 4).

Each header is a msgpack array whose first element is the frame's number.
"""

from __future__ import annotations

import msgspec

VERSION = 1


class Open(msgspec.Struct, array_like=True, tag=1, gc=False):
    """Opens stream `stream`; the payload is its first bytes, at offset 0."""

    stream: int
    limit: int
    """The opener's flow-control limit: the peer may send bytes below this offset."""
    fin: bool
    target: str = ""
    """Where to connect; empty for the server's own target."""
    source: str = ""
    """Address of the application; empty if it is not known."""


class Data(msgspec.Struct, array_like=True, tag=2, gc=False):
    """Bytes of a stream; with `fin` the stream ends after them. An empty one asks for an ACK."""

    stream: int
    offset: int
    fin: bool


class Ack(msgspec.Struct, array_like=True, tag=3, gc=False):
    """Data-level ACK and credit."""

    stream: int
    received: int
    """The sender of this frame holds all bytes below; the FIN counts as one more byte."""
    limit: int
    connected: bool = False
    """From the server: the stream's target is connected."""


class Reset(msgspec.Struct, array_like=True, tag=4, gc=False):
    """The stream ends here, in both directions, incomplete."""

    stream: int
    code: int
    end: int = 0
    """Bytes below this offset come all the same: the receiver waits for them."""


class ResetAck(msgspec.Struct, array_like=True, tag=5, gc=False):
    """The stream is gone here, by its reset: the sender of that may forget it."""

    stream: int


class Closed(msgspec.Struct, array_like=True, tag=6, gc=False):
    """Answer to bytes of a stream that is gone: all of it was received, or it was reset."""

    stream: int


class Ping(msgspec.Struct, array_like=True, tag=7, gc=False):
    """Are you there? Answered with a Pong on the same subflow."""

    token: int


class Pong(msgspec.Struct, array_like=True, tag=8, gc=False):
    """Answer to a Ping."""

    token: int


class Goaway(msgspec.Struct, array_like=True, tag=9, gc=False):
    """The session ends, or (DRAINING) takes no new streams."""

    code: int
    reason: str = ""


class Blocked(msgspec.Struct, array_like=True, tag=10, gc=False):
    """The sender has more bytes than credit, or soon will: a larger window would help it."""

    stream: int
    limit: int
    """The limit that holds it back."""


class Busy(msgspec.Struct, array_like=True, tag=11, gc=False):
    """Bulk data waits at the server, and every subflow that may carry it is full."""


class Gone(msgspec.Struct, array_like=True, tag=12, gc=False):
    """This side has lost subflow `subflow`, or given it up: the other need not find out."""

    subflow: int


class Got(msgspec.Struct, array_like=True, tag=13, gc=False):
    """How much of subflow `subflow` this side has read: bytes since it joined the session."""

    subflow: int
    received: int


class Stalled(msgspec.Struct, array_like=True, tag=14, gc=False):
    """Nothing that this side sent on subflow `subflow` gets through: the other should not rely on
    it either, until something comes in on it."""

    subflow: int


class Retire(msgspec.Struct, array_like=True, tag=15, gc=False):
    """This side sends nothing more on the subflow that this travels on."""

    received: int
    """How much of the subflow the sender has read: bytes since it joined the session."""


class Recall(msgspec.Struct, array_like=True, tag=16, gc=False):
    """The sender of this frame would like `credit` bytes of credit back, in all: others need it
    more. Answered with a Return."""

    stream: int
    credit: int


class Return(msgspec.Struct, array_like=True, tag=17, gc=False):
    """Credit that the sender of this frame has given back, in all: data go no further than the
    limit less this."""

    stream: int
    credit: int


Frame = (
    Open
    | Data
    | Ack
    | Reset
    | ResetAck
    | Closed
    | Ping
    | Pong
    | Goaway
    | Blocked
    | Busy
    | Gone
    | Got
    | Stalled
    | Retire
    | Recall
    | Return
)
