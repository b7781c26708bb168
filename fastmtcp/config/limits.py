"""The table [limits] of a configuration file: what a peer may make a worker hold and do.

All sizes are bytes, all times seconds. The fields that have a Meta are the keys of the table.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from fastmtcp.engine.limits import MIB, IdleTime, Limits

MEMORY_PART = 4
"""All workers' sessions together hold this part of what the control group may use. The processes
themselves and the kernel's buffers of their sockets, which are charged to the group too, take the
rest."""

_LEAST = 16 * MIB

AnyLimits = TypeVar("AnyLimits", bound=Limits)


class ClientLimits(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of a client worker and its session."""


class ServerLimits(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of a server worker and its sessions."""

    max_handshakes: Annotated[int, Meta(ge=1, le=65536)] = 1024
    """Connections of one worker that have not proved anything yet: more are closed at once."""

    max_sessions: Annotated[int, Meta(ge=1, le=65536)] = 1024
    """Sessions of one worker: clients that make ever new ones cost no more than this many."""

    max_client_sessions: Annotated[int, Meta(ge=1, le=65536)] = 256
    """Of those, sessions of one client: it cannot take all places."""

    max_client_streams: Annotated[int, Meta(ge=8, le=1 << 20)] = 16384
    """Streams of one client in one worker, in all its sessions: each has a descriptor."""

    max_client_subflows: Annotated[int, Meta(ge=10, le=65536)] = 1024
    """Subflows of one client in one worker, in all its sessions: each has a descriptor, and the
    state of its TLS."""

    opens_per_second: Annotated[float, Meta(ge=0, le=1e6)] = 5000.0
    session_idle_timeout: IdleTime = 0.0


def within(limits: AnyLimits, memory: int | None, workers: int) -> AnyLimits:
    """`limits` lowered to what each of `workers` may have of `memory` bytes (None: no limit): the
    kernel would kill one that holds more, and cut all its streams. A `worker_memory` that the user
    has set stays as it is."""
    if memory is None or limits.worker_memory != Limits().worker_memory:
        return limits
    most = max(_LEAST, memory // MEMORY_PART // workers)
    names = ("worker_memory", "window_pool", "send_buffer", "max_window", "start_window")
    return msgspec.structs.replace(
        limits, **{name: min(most, getattr(limits, name)) for name in names}
    )
