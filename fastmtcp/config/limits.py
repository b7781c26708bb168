"""The table [limits] of a configuration file: what a peer may make a worker hold and do.

All sizes are bytes, all times seconds. The fields that have a Meta are the keys of the table.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from fastmtcp.engine.limits import IdleTime, Limits


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

    opens_per_second: Annotated[float, Meta(ge=0, le=1e6)] = 5000.0
    session_idle_timeout: IdleTime = 0.0
