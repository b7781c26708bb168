"""The document that `fastmtcp status --json` prints, as Structs. Their field names are its keys.

Bytes are payload and protocol together unless a key says payload; times are seconds; rates are
bytes per second, measured over the last one to two seconds. `up` is from the client to the server
and `down` the other way, whichever of the two answers. No key, secret or whole session id is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from fastmtcp.engine.session import Session
from fastmtcp.engine.snapshot import Totals
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.subflow import Subflow

FORMAT = 1
"""Of the document. New keys may come without a new number; none goes or changes its meaning."""

ID_DIGITS = 12
"""Of a session id this many hexadecimal digits are shown, as in the log."""


class TotalsStatus(msgspec.Struct, kw_only=True):
    """Sums over a session, a worker or an instance, what is gone by now included."""

    sessions: int = 0
    """Now open, like subflows and streams."""
    subflows: int = 0
    subflows_ended: int = 0
    reconnects: int = 0
    """Subflows that were lost and replaced. Known at the client."""
    streams: int = 0
    streams_waiting: int = 0
    """Those that the server's limits do not let be opened yet; `streams` is without them."""
    streams_opened: int = 0
    rate_up: int = 0
    rate_down: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    payload_up: int = 0
    """What the applications sent, once, however often it travelled."""
    payload_down: int = 0
    unacked: int = 0
    """Bytes this side keeps until the other has data-ACKed them."""
    reinjected: int = 0
    """Bytes this side sent, or has yet to send, once more on another subflow."""
    stalls: int = 0
    """How often a subflow made no progress and became suspect."""

    def add(self, other: TotalsStatus) -> None:
        """Add the sums of `other`."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class PathStatus(msgspec.Struct, kw_only=True):
    """A way to the server; at the server, one address of the client. Counters are those of the
    subflows that are up now, the reconnects excepted."""

    name: str
    state: str = "down"
    """`up` with a subflow at least, or `down`."""
    subflows: int = 0
    wanted: int | None = None
    """Subflows it should have; null at the server, which does not know."""
    rate_up: int = 0
    rate_down: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    reinjected: int = 0
    stalls: int = 0
    reconnects: int = 0
    """Subflows that were lost and replaced. Known at the client."""
    trouble: str = ""
    """Why the last attempt to connect failed; empty once one has worked."""


class SubflowStatus(msgspec.Struct, kw_only=True):
    """One TCP connection between client and server."""

    id: int
    path: str
    local: str
    remote: str
    role: list[str]
    """`up`, `down` or both: who may send data; and `backup`, `express`."""
    state: str
    """`active`, `suspect` (no progress), `retiring`."""
    age: float
    silent: float
    """Since something came in on it."""
    srtt: float | None
    """Smoothed round-trip time, from the system; null where it does not tell."""
    estimate: int
    """Rate in the sending direction that the scheduler reckons with; 0 while unknown."""
    rate_up: int
    rate_down: int
    bytes_up: int
    bytes_down: int
    unacked: int
    reinjected: int
    stalls: int


class StreamStatus(msgspec.Struct, kw_only=True):
    """One forwarded connection."""

    id: int
    application: str
    """Address of the application at the client, of the target at the server."""
    target: str
    """What the server was asked to connect to; empty at a client that leaves it to the server."""
    state: str
    """`opening`, `open`, `half-closed`."""
    age: float
    payload_up: int
    payload_down: int
    unsent: int
    """Taken from the application and not sent yet."""
    unacked: int
    """Sent and not data-ACKed yet."""
    undelivered: int
    """Received in order and not taken by the application yet."""
    window: int
    credit: int
    gaps: int


class SessionStatus(msgspec.Struct, kw_only=True):
    """What joins one client worker to one server worker."""

    id: str
    """The first digits, the same at both ends; empty until the server has given it."""
    peer: str
    """The server's paths; at the server the client's name and address."""
    state: str
    """`active`, `waiting` (no subflow is up), `draining` (no new streams)."""
    age: float
    totals: TotalsStatus
    paths: list[PathStatus]
    subflows: list[SubflowStatus]
    streams: list[StreamStatus]
    """The busiest, if there are many: `totals.streams` says how many there are."""


class WorkerReport(msgspec.Struct, kw_only=True):
    """What a worker says of itself."""

    totals: TotalsStatus
    sessions: list[SessionStatus]
    """Those that carried most, if there are many: `totals.sessions` says how many there are."""
    clients: str = ""
    """Stands for the list of clients that it lets in; empty at a client."""


class WorkerStatus(msgspec.Struct, kw_only=True):
    """One worker process."""

    index: int
    pid: int | None
    state: str
    """`serving`, `starting`, `down` (it will be started again), `silent` (it did not answer)."""
    uptime: float
    restarts: int
    memory: int | None
    """Proportional set size, bytes: pages that processes share count in part for each."""
    totals: TotalsStatus
    sessions: list[SessionStatus]
    clients: str = ""
    """Stands for the list of clients that it lets in, another text for another list; empty at a
    client."""


class InstanceStatus(msgspec.Struct, kw_only=True):
    """One running `fastmtcp-server` or `fastmtcp-client`."""

    format: int
    program: str
    version: str
    pid: int
    uptime: float
    state: str
    """`starting`, `ready` or `stopping`."""
    control: str
    """The name that `fastmtcp status --socket` takes."""
    listening: list[str]
    totals: TotalsStatus
    workers: list[WorkerStatus]
    clients_file: str = ""
    """The server's list of clients; empty without one."""


class PathInfo(msgspec.Struct, kw_only=True):
    """What only the pool knows of a path."""

    name: str
    wanted: int | None = None
    reconnects: int = 0
    trouble: str = ""


class ObservedSocket(Protocol):
    """The socket of a subflow, as the status command shows it."""

    def addresses(self) -> tuple[str, str]:
        """The local and the remote one; empty once the connection is gone."""

    def srtt(self) -> float | None:
        """Smoothed round-trip time in seconds; None if the system does not tell."""


class Observed(Protocol):
    """A session as its service shows it to the status command."""

    @property
    def session(self) -> Session: ...

    @property
    def session_id(self) -> bytes:
        """Empty as long as it is not known."""

    @property
    def peer(self) -> str:
        """Who is at the other end."""

    def paths(self) -> list[PathInfo]:
        """All paths, also those without a subflow. Those of subflows may be missing."""

    def path_of(self, subflow: Subflow) -> str:
        """The name of the path that a subflow takes."""

    def socket_of(self, subflow: Subflow) -> ObservedSocket:
        """The socket of a subflow that is in the session."""

    def application_of(self, stream: Stream) -> str:
        """The address of the application behind a stream; empty without one."""


class Observable(Protocol):
    """A service that can be asked for its status."""

    @property
    def is_client(self) -> bool: ...

    @property
    def sessions(self) -> Sequence[Observed]:
        """The sessions that are open."""

    @property
    def past(self) -> Totals:
        """Sums over the sessions that are over."""

    @property
    def target(self) -> str:
        """Where streams go that name no target; empty at the client."""

    @property
    def clients(self) -> str:
        """Stands for the list of clients that are let in; empty at the client."""
