"""The limits of a session, each with what it protects against.

All sizes are bytes, all times seconds. The fields of Limits that have a Meta are keys of the table
[limits] in a configuration file (fastmtcp.config.limits); the rest is fixed, most of it by the
wire. docs/SECURITY.md says what happens at each.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

MAX_HEADER = 512
"""An endless header would let a peer make us buffer without limit."""

MAX_PAYLOAD = 1 * MIB
"""A frame's payload is passed on as it comes, so this bounds only how long one stream may hold
a subflow before another stream gets its turn."""

MAX_REASON = 200
"""Characters of text in a GOAWAY. It ends up in logs."""

MIN_HEADER_LIMIT = 320
MAX_CHUNK = 256 * KIB
"""What a sender may count on: no header is longer, and no payload."""

Size = Annotated[int, Meta(ge=64 * KIB, le=4 * GIB)]
IdleTime = Annotated[float, Meta(ge=0, le=30 * 86400)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one session. Both sides have their own; what the peer must know is sent to it."""

    max_header: Annotated[int, Meta(ge=MIN_HEADER_LIMIT, le=MAX_HEADER)] = MAX_HEADER
    """MAX_HEADER, or less."""

    max_payload: Annotated[int, Meta(ge=MAX_CHUNK, le=MAX_PAYLOAD)] = MAX_PAYLOAD
    """MAX_PAYLOAD, or less."""

    floor_window: Annotated[int, Meta(ge=64 * KIB, le=16 * MIB)] = 64 * KIB
    """Credit that every stream always has, whatever the others hold: a stalled stream can
    never block another. `max_streams * floor_window` bounds what all stalled readers together
    can pin."""

    start_window: Size = 1 * MIB
    """Credit a stream gets as soon as it uses its floor, memory permitting."""

    max_window: Size = 48 * MIB
    """Ceiling of one stream's auto-tuned window, and so of the span that its reassembly covers:
    2 x rate x round-trip time of the fastest line worth supporting (1 Gbit/s at 200 ms)."""

    window_pool: Size = 48 * MIB
    """Memory all windows of a session may grow into beyond the floor. A reader that stops pins
    no more than this."""

    max_streams: Annotated[int, Meta(ge=8, le=65536)] = 4096
    """Streams open at once in one session: an OPEN flood costs no more than this many."""

    max_subflows: Annotated[int, Meta(ge=10, le=1024)] = 128
    """Subflows of one session: a peer cannot eat our descriptors through one session."""

    send_buffer: Size = 48 * MIB
    """Bytes taken from applications and not yet data-ACKed, per session, beyond the first 64 KiB
    of each stream. A peer that gives credit but never acknowledges cannot make us hold more."""

    backlog: Annotated[int, Meta(ge=64 * KIB, le=64 * MIB)] = 512 * KIB
    """Bytes read from one application ahead of what the subflows could take so far."""

    max_gaps: Annotated[int, Meta(ge=64, le=1 << 20)] = 16 * KIB
    """Holes in the reassembly of all streams of a session: each costs 300 bytes, and a peer that
    sends every other byte makes one of each."""

    worker_memory: Annotated[int, Meta(ge=16 * MIB, le=1024 * GIB)] = 512 * MIB
    """Bytes of memory that all sessions of a worker take together, whatever for: many sessions,
    each within its limits, must not fill the machine."""

    ack_delay: float = 0.02
    """A data-level ACK waits this long for company: other ACKs, or data to ride with."""

    probe_interval_max: float = 15.0
    """A stream without progress asks the peer for its state after 1, 2, 4 ... seconds, at last
    this often: an ACK or credit may have died with a subflow whose death only one side saw."""

    ping_interval: Annotated[float, Meta(ge=1, le=300)] = 5.0
    """A subflow that was silent this long is asked whether it lives."""

    subflow_timeout: Annotated[float, Meta(ge=3, le=900)] = 15.0
    """A subflow that was silent this long although asked is dead."""

    session_timeout: float = 120.0
    """A session without any subflow keeps its streams this long. A setting of its own."""

    opens_per_second: float = 5000.0
    """Streams that one client may open in a second, and at once; 0 is any number. Each is a
    connection to a target, which a flood of OPEN and RESET would hit."""

    session_idle_timeout: float = 0.0
    """A session without a stream for this long is ended; 0 is never."""

    stream_idle_timeout: IdleTime = 0.0
    """A stream on which nothing moved for this long is reset; 0 is never. A peer that opens streams
    and says nothing holds a connection to the target for each."""

    half_closed_timeout: IdleTime = 0.0
    """A stream of which one direction has ended, and on which nothing moved for this long, is
    reset; 0 is never. A target that pays no attention to the end of its applications would keep
    the places of all of them."""

    @property
    def slab_memory(self) -> int:
        """Bytes of slabs that may be in use at once (fastmtcp.io.buffers): what keeps one of them
        may be an eighth of it, and is counted as that."""
        return min(MAX_SLABS, self.worker_memory >> 2)


SESSION_COST = 16 * KIB
SUBFLOW_COST = 8 * KIB
TLS_COST = 128 * KIB
STREAM_COST = 4 * KIB
GAP_COST = 320
RANGE_COST = 112
RECORD_COST = 192
"""Bytes of memory that are counted for each session, for each subflow and its TLS, for each stream
and its relay; for each gap in what was received, each range on its way, and each control frame that
waits or stream id that was skipped. They are a little above what was measured."""

MAX_SLABS = 48 * MIB
"""Bytes of slabs that a worker uses at once, or a quarter of its memory if that is less."""

SMALL_STREAM = 128 * KIB
"""A stream that has sent less than this since it was last idle goes before bulk streams."""

FIRST_BYTES = 16 * KIB
"""The first so many bytes of a stream, since it began or was last idle, go before all others: a
request, an answer. It is also the turn of a small stream while others wait."""

IDLE_AFTER = 0.5
"""Seconds without sending after which a bulk stream counts as small again."""

BULK_TURN = 16
"""After this many small chunks comes a bulk one, or a flood of small streams would starve it; and
after as many first bytes another small one."""

MIN_CHUNK = 16 * KIB
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

MAX_RESETS = 3
"""RESETs of a session that the peer has not confirmed, as a multiple of max_streams: one that never
confirms ends its session. A client opens no stream while there are twice max_streams of them."""

LAST_BYTES_PATIENCE = 3
"""Seconds without progress after which what came before a reset is given up: it may be that the
peer does not send it, or that the application does not take it."""

LAST_BYTES_ROUNDS = 8
"""The same in round trips, if that is longer."""

LAST_BYTES_LONGEST = 10
"""Seconds after which it is given up whatever moves: a reset must not be an end without end."""

MAX_OWN_FRAMES = 16
"""Frames waiting for one blocked subflow: a PING flood is not answered without end."""

MAX_HINTS = 32
"""Control frames waiting beyond which those that only help the peer are left out."""

MIN_SEND_ROOM = 256 * KIB
"""Bytes that each session may have unacknowledged, however little of its worker's memory is left:
others that never acknowledge must not stop it."""

OWN_SEND_ROOM = 64 * KIB
"""Bytes of those that every stream may have unacknowledged, however full the session's send buffer
is: bulk that waits for its ACKs must not keep a request of another stream waiting."""

SHARE = 8
"""Of what is shared (by streams the window pool, by sessions what their client may have) they may
have this many times what nobody has: one that comes finds something at once, and its share as soon
as the others have given back what is above theirs."""

CLIENT_SHARE = 3
"""A client holds at most this many times what is left of its worker's memory: one alone has up to
three quarters of it, and whoever comes then finds as much as it asks for."""

TURN_WORK = 500
"""Frames of one client, in all its sessions, that are handled in a turn of the loop. Single bytes,
PINGs and the like in their thousands must not make the other clients of the worker wait."""

TURN_CHUNKS = 64
"""Chunks that are sent to one client, in all its sessions, in a turn of the loop."""

OPEN_WORK = 20
"""An OPEN costs as much as this many other frames: a connection to the target is made for it."""

READ_WORK = 4
"""A read from a socket costs as much as this many frames."""

LEFT_TIMEOUT = 20.0
"""Seconds that a server waits for a client whose connections have all ended with a FIN and nothing
else: its process has died, most likely, and nobody will come for its streams."""

REPEAT_SPACING = 50e-6
"""Seconds for each stream until all control frames may be said again, some ten times what saying
them costs: a peer that loses subflow after subflow must not make us do nothing else."""
