"""What an engine tells its caller."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.errors import SessionCode


class Events(msgspec.Struct):
    """What has happened in a session since its caller last asked."""

    updated: Collection[Stream]
    """Streams on which the application may have something to do, each once."""
    opened: list[Stream]
    """Streams that the peer has opened."""
    returned: list[Stream]
    """Streams of this side that the peer has not taken and will not take in this session, as it
    is draining: another session may adopt them."""
    draining: bool
    """The peer takes no new streams from now on."""
    gone: list[Subflow]
    """Subflows that the peer has lost or given up: close and detach them."""
    parted: list[Subflow]
    """Retired subflows of which each side has had all: send their last_report(), close and detach
    them."""
    end: tuple[SessionCode, str] | None
    """Why the session has ended: close it."""
