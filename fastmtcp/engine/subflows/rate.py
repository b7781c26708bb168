"""How fast a subflow is."""

from __future__ import annotations

import msgspec


class Sample(msgspec.Struct, frozen=True, gc=False):
    """What the operating system knows of a connection (TCP_INFO, tcp(7)). Bytes and seconds."""

    rtt: float
    delivery_rate: float
    app_limited: bool
    not_sent: int
    unacked: int
    bytes_acked: int
    peer_window: int = -1
    """The peer's TCP window, -1 where the system does not tell."""
