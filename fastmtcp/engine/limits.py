"""Every limit of the engine, in one place, each with what it protects against.

All sizes are bytes, all times seconds.
"""

from __future__ import annotations

import msgspec

KIB = 1024
MIB = 1024 * KIB

MAX_HEADER = 512
"""An endless header would let a peer make us buffer without limit."""

MAX_PAYLOAD = 1 * MIB
"""A frame's payload is passed on as it comes, so this bounds only how long one stream may hold
a subflow before another stream gets its turn."""

MAX_REASON = 200
"""Characters of text in a GOAWAY. It ends up in logs."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one session. Both sides have their own; what the peer must know is sent to it."""

    floor_window: int = 64 * KIB
    """Credit that every stream always has, whatever the others hold: a stalled stream can
    never block another. `max_streams * floor_window` bounds what all stalled readers together
    can pin."""

    start_window: int = 1 * MIB
    """Credit a stream gets as soon as it uses its floor, memory permitting."""

    max_window: int = 48 * MIB
    """Ceiling of one stream's auto-tuned window: 2 x rate x round-trip time of the fastest line
    worth supporting (1 Gbit/s at 200 ms)."""

    window_pool: int = 48 * MIB
    """Memory all windows of a session may grow into beyond the floor. A reader that stops pins
    no more than this."""

    max_streams: int = 4096
    """Streams open at once in one session: an OPEN flood costs no more than this many."""

    max_subflows: int = 128
    """Subflows of one session: a peer cannot eat our descriptors through one session."""

    send_buffer: int = 48 * MIB
    """Bytes taken from applications and not yet data-ACKed, per session. A peer that gives
    credit but never acknowledges cannot make us hold more."""

    backlog: int = 512 * KIB
    """Bytes read from one application ahead of what the subflows could take so far."""

    max_gaps: int = 16 * KIB
    """Holes in the reassembly of all streams of a session: each costs 300 bytes, and a peer that
    sends every other byte makes one of each."""

    ack_delay: float = 0.02
    """A data-level ACK waits this long for company: other ACKs, or data to ride with."""

    probe_interval_max: float = 15.0
    """A stream without progress asks the peer for its state after 1, 2, 4 ... seconds, at last
    this often: an ACK or credit may have died with a subflow whose death only one side saw."""

    ping_interval: float = 5.0
    """A subflow that was silent this long is asked whether it lives."""

    subflow_timeout: float = 15.0
    """A subflow that was silent this long although asked is dead."""

    session_timeout: float = 120.0
    """A session without any subflow keeps its streams this long."""


SMALL_STREAM = 128 * KIB
"""A stream that has sent less than this since it was last idle goes before bulk streams."""

IDLE_AFTER = 0.5
"""Seconds without sending after which a bulk stream counts as small again."""

BULK_TURN = 16
"""After this many small chunks comes a bulk one, or a flood of small streams would starve it."""

MIN_CHUNK = 16 * KIB
MAX_CHUNK = 256 * KIB
START_CHUNK = 64 * KIB
CHUNK_TIME = 0.010
"""A chunk is what its subflow delivers in this time: long enough to cost little, short enough
that the last chunks of unequal subflows arrive at about the same time."""

START_RATE = START_CHUNK / CHUNK_TIME
"""What a subflow is taken for until it has been measured, bytes a second."""

MIN_LOWAT = 16 * KIB
MAX_LOWAT = 1 * MIB
START_LOWAT = 256 * KIB
LOWAT_TIME = 0.015
"""Unsent bytes in the kernel are hidden round-trip time; too few starve the subflow."""

MAX_BATCH = 64
"""Frames joined into one system call."""

MAX_ANSWERS = 64 * KIB
"""Control frames waiting to be sent: a peer that asks and does not read costs no more. A peer that
reads cannot have so many streams."""

MAX_OWN_FRAMES = 16
"""Frames waiting for one blocked subflow: a PING flood is not answered without end."""

MAX_HINTS = 32
"""Control frames waiting beyond which those that only help the peer are left out."""
