"""Makes a worker's part of the status document from its sessions."""

from __future__ import annotations

from collections.abc import Callable, Generator

from fastmtcp.engine import snapshot
from fastmtcp.engine.session import Session
from fastmtcp.engine.snapshot import Totals
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.status import document
from fastmtcp.status.document import Observable, Observed, TotalsStatus
from fastmtcp.status.rates import Rates

MAX_SESSIONS = 100
MAX_SUBFLOWS = 1000
MAX_STREAMS = 400
MAX_SESSION_STREAMS = 100
"""What one worker lists at most. All are counted."""


def build(
    service: Observable, rates: Rates, clock: Callable[[], float]
) -> Generator[None, None, document.WorkerReport]:
    """The report of `service`. Yields between its steps, of a few milliseconds at most, so that the
    caller can let other work go on."""
    sums = directed(service.past, service.is_client)
    found: list[tuple[TotalsStatus, Observed]] = []
    # A session that ends meanwhile is counted here, as the sums of the past are taken already.
    for observed in list(service.sessions):
        totals = totals_of(observed, rates, clock())
        sums.add(totals)
        found.append((totals, observed))
        yield
    found.sort(key=lambda one: one[0].bytes_up + one[0].bytes_down, reverse=True)
    sessions: list[document.SessionStatus] = []
    subflows, streams = MAX_SUBFLOWS, MAX_STREAMS
    for totals, observed in found:
        if len(sessions) == MAX_SESSIONS:
            break
        if observed.session.ended is not None:
            continue
        view = View(observed, rates, clock())
        most = min(streams, MAX_SESSION_STREAMS)
        one = yield from view.session(totals, subflows, most, service.target)
        subflows -= len(one.subflows)
        streams -= len(one.streams)
        sessions.append(one)
        yield
    return document.WorkerReport(totals=sums, sessions=sessions, clients=service.clients)


def directed(totals: Totals, is_client: bool) -> TotalsStatus:
    """The engine's counters, with up and down for sent and received."""
    sent, received = totals.bytes_sent, totals.bytes_received
    payload_sent, payload_received = totals.payload_sent, totals.payload_received
    return TotalsStatus(
        subflows=totals.subflows,
        subflows_ended=totals.subflows_ended,
        streams=totals.streams,
        streams_waiting=totals.streams_waiting,
        streams_opened=totals.streams_opened,
        bytes_up=sent if is_client else received,
        bytes_down=received if is_client else sent,
        payload_up=payload_sent if is_client else payload_received,
        payload_down=payload_received if is_client else payload_sent,
        unacked=totals.unacked,
        reinjected=totals.reinjected,
        stalls=totals.stalls,
    )


def totals_of(observed: Observed, rates: Rates, now: float) -> TotalsStatus:
    session = observed.session
    totals = directed(snapshot.totals(session), session.opener)
    totals.sessions = 1
    totals.reconnects = sum(path.reconnects for path in observed.paths())
    for subflow in session.subflows.values():
        up, down = _rate(session, subflow, rates, now)
        totals.rate_up += up
        totals.rate_down += down
    return totals


def _rate(session: Session, subflow: Subflow, rates: Rates, now: float) -> tuple[int, int]:
    """Bytes per second up and down."""
    sent, received = rates.of(subflow, now)
    return (sent, received) if session.opener else (received, sent)


class View:
    """Looks at one session."""

    def __init__(self, observed: Observed, rates: Rates, now: float) -> None:
        self._observed = observed
        self._session = observed.session
        self._rates = rates
        self._now = now

    def session(
        self, totals: TotalsStatus, subflows: int, streams: int, target: str
    ) -> Generator[None, None, document.SessionStatus]:
        session = self._session
        if session.draining or session.peer.draining:
            state = "draining"
        else:
            state = "active" if session.subflows else "waiting"
        made = document.SessionStatus(
            id=self._observed.session_id.hex()[: document.ID_DIGITS],
            peer=self._observed.peer,
            state=state,
            age=round(max(0.0, self._now - session.created_at), 3),
            totals=totals,
            paths=self._paths(),
            subflows=[],
            streams=[],
        )
        for subflow in list(session.subflows.values())[:subflows]:
            yield
            if subflow.subflow_id in session.subflows:
                made.subflows.append(self._subflow(subflow))
        yield
        busiest = snapshot.busiest(session.streams.values(), streams)
        made.streams += [self.stream(stream, target) for stream in busiest]
        return made

    def _paths(self) -> list[document.PathStatus]:
        paths = {
            info.name: document.PathStatus(
                name=info.name,
                wanted=info.wanted,
                reconnects=info.reconnects,
                trouble=info.trouble,
            )
            for info in self._observed.paths()
        }
        for subflow in self._session.subflows.values():
            name = self._observed.path_of(subflow)
            path = paths.setdefault(name, document.PathStatus(name=name))
            up, down = self._rate(subflow)
            sent, received = subflow.bytes_sent, subflow.bytes_received
            path.state = "up"
            # `wanted` does not count the express subflow either.
            path.subflows += not (subflow.role & Role.EXPRESS)
            path.bytes_up += sent if self._session.opener else received
            path.bytes_down += received if self._session.opener else sent
            path.reinjected += subflow.reinjected
            path.stalls += subflow.stalls
            path.rate_up += up
            path.rate_down += down
        return list(paths.values())

    def _rate(self, subflow: Subflow) -> tuple[int, int]:
        return _rate(self._session, subflow, self._rates, self._now)

    def _subflow(self, of: Subflow) -> document.SubflowStatus:
        shot = snapshot.subflow(of, self._now)
        rate_up, rate_down = self._rate(of)
        sock = self._observed.socket_of(of)
        local, remote = sock.addresses()
        sent, received = shot.bytes_sent, shot.bytes_received
        return document.SubflowStatus(
            id=shot.subflow_id,
            path=self._observed.path_of(of),
            local=local,
            remote=remote,
            role=shot.role,
            state=shot.state,
            age=shot.age,
            silent=shot.silent,
            srtt=sock.srtt(),
            estimate=shot.estimate,
            rate_up=rate_up,
            rate_down=rate_down,
            bytes_up=sent if self._session.opener else received,
            bytes_down=received if self._session.opener else sent,
            unacked=shot.unacked,
            reinjected=shot.reinjected,
            stalls=shot.stalls,
        )

    def stream(self, of: Stream, target: str) -> document.StreamStatus:
        shot = snapshot.stream(of, self._now)
        application = self._observed.application_of(of)
        if self._session.opener and of.source:
            # Also while it waits for its target, and behind a load balancer.
            application = of.source
        return document.StreamStatus(
            id=shot.stream_id,
            application=application,
            target=shot.target or target,
            state=shot.state,
            age=shot.age,
            payload_up=shot.sent if self._session.opener else shot.received,
            payload_down=shot.received if self._session.opener else shot.sent,
            unsent=shot.unsent,
            unacked=shot.unacked,
            undelivered=shot.undelivered,
            window=shot.window,
            credit=shot.credit,
            gaps=shot.gaps,
        )
