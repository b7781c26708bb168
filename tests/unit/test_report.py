"""A worker's part of the status document, from real sessions without sockets."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import msgspec
import pytest
from fastmtcp.engine import snapshot
from fastmtcp.engine.limits import Limits
from fastmtcp.engine.session import Session
from fastmtcp.engine.snapshot import Totals
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.errors import SessionCode
from fastmtcp.status import report
from fastmtcp.status.document import Observed, PathInfo, WorkerReport
from fastmtcp.status.rates import Rates

from tests.unit.wire import START, Pair


class Socket:
    """What a subflow's socket tells."""

    def __init__(self, path: str) -> None:
        self.path = path

    def addresses(self) -> tuple[str, str]:
        return "127.0.0.1:1", "127.0.0.1:2"

    def srtt(self) -> float:
        return 0.04


class Shown:
    """A session as a role shows it."""

    def __init__(self, session: Session, *paths: PathInfo) -> None:
        self.session = session
        self.session_id = b"\x12" * 16
        self.peer = "somewhere"
        self._paths = list(paths)
        self._sockets = {
            subflow: Socket("a" if subflow.subflow_id % 2 == 0 else "b")
            for subflow in session.subflows.values()
        }

    def paths(self) -> list[PathInfo]:
        return self._paths

    def path_of(self, subflow: Subflow) -> str:
        return self.socket_of(subflow).path

    def socket_of(self, subflow: Subflow) -> Socket:
        return self._sockets[subflow]

    def application_of(self, _stream: Stream) -> str:
        return ""


class Role:
    def __init__(self, *sessions: Observed, is_client: bool = True) -> None:
        self.sessions = list(sessions)
        self.is_client = is_client
        self.past = Totals()
        self.target = "" if is_client else "10.0.0.1:80"
        self.clients = "" if is_client else "0123456789abcdef"


def make(role: Role, rates: Rates | None = None, now: float = START + 2) -> WorkerReport:
    return finish(report.build(role, rates or Rates(), lambda: now))


def finish(work: Generator[None, None, WorkerReport]) -> WorkerReport:
    def run() -> Generator[None, None, None]:
        made.append((yield from work))

    made: list[WorkerReport] = []
    for _ in run():
        pass
    return made[0]


def busy_pair() -> Pair:
    pair = Pair(subflows=3)
    mine, theirs = pair.open(b"u" * 5000)
    theirs.write(b"d" * 700)
    pair.exchange()
    pair.take(mine)
    return pair


def test_up_is_from_the_client_to_the_server_at_both_ends() -> None:
    pair = busy_pair()
    near = make(Role(Shown(pair.client)))
    far = make(Role(Shown(pair.server), is_client=False))
    for one in (near, far):
        assert (one.totals.payload_up, one.totals.payload_down) == (5000, 700)
        (session,) = one.sessions
        (stream,) = session.streams
        assert (stream.payload_up, stream.payload_down) == (5000, 700)
        assert session.totals == one.totals
    for name in ("bytes_up", "bytes_down", "subflows", "streams", "streams_opened", "sessions"):
        assert getattr(near.totals, name) == getattr(far.totals, name) > 0
    ups = [one.bytes_up for one in near.sessions[0].subflows]
    assert ups == [one.bytes_up for one in far.sessions[0].subflows]
    assert sum(ups) == near.totals.bytes_up


def test_a_stream_without_a_target_goes_to_the_servers() -> None:
    pair = busy_pair()
    assert make(Role(Shown(pair.client))).sessions[0].streams[0].target == ""
    far = make(Role(Shown(pair.server), is_client=False))
    assert far.sessions[0].streams[0].target == "10.0.0.1:80"
    pair.open(b"x", target="example.com:22")
    far = make(Role(Shown(pair.server), is_client=False))
    assert {one.target for one in far.sessions[0].streams} == {"10.0.0.1:80", "example.com:22"}


def test_rates_add_up_from_subflow_to_worker() -> None:
    pair, rates = busy_pair(), Rates()
    subflows = list(pair.client.subflows.values())
    for second in (START, START + 1):
        rates.sample(subflows, second)
    for index, subflow in enumerate(subflows):
        subflow.bytes_sent += 1000 * (index + 1)
        subflow.bytes_received += 10
    made = make(Role(Shown(pair.client, PathInfo(name="b", wanted=1))), rates)
    (session,) = made.sessions
    assert [one.rate_up for one in session.subflows] == [500, 1000, 1500]
    assert {path.name: (path.rate_up, path.subflows) for path in session.paths} == {
        "b": (1000, 1),
        "a": (2000, 2),
    }
    for way in ("bytes_up", "bytes_down"):
        assert sum(getattr(path, way) for path in session.paths) == getattr(made.totals, way)
    assert made.totals.rate_up == session.totals.rate_up == 3000
    assert made.totals.rate_down == 15


def test_what_the_pool_knows_of_its_paths() -> None:
    session = Session(opener=True, limits=Limits(), now=START)
    paths = (
        PathInfo(name="a", wanted=2, reconnects=3, trouble="refused"),
        PathInfo(name="c", wanted=1),
    )
    (shown,) = make(Role(Shown(session, *paths))).sessions
    assert [(p.name, p.state, p.wanted, p.reconnects, p.trouble) for p in shown.paths] == [
        ("a", "down", 2, 3, "refused"),
        ("c", "down", 1, 0, ""),
    ]
    assert shown.totals.reconnects == 3


def test_the_state_of_a_session() -> None:
    pair = Pair(subflows=1)
    shown = Shown(pair.client)
    assert make(Role(shown)).sessions[0].state == "active"
    pair.server.drain()
    pair.exchange()
    assert make(Role(shown)).sessions[0].state == "draining"
    alone = Session(opener=True, limits=Limits(), now=START)
    assert make(Role(Shown(alone))).sessions[0].state == "waiting"


def test_only_the_beginning_of_a_session_id_is_shown() -> None:
    (session,) = make(Role(Shown(Pair(subflows=1).client))).sessions
    assert session.id == "12" * 6


def test_sessions_that_are_over_count_in_the_sums_only() -> None:
    pair = busy_pair()
    shown = Shown(pair.client)
    role = Role(shown)
    work = report.build(role, Rates(), lambda: START + 2)
    next(work)
    # It ends while the report is made: the role has it among the past from now on.
    pair.client.end(SessionCode.NORMAL, "over")
    role.sessions.clear()
    role.past.add(snapshot.totals(pair.client))
    made = finish(work)
    assert made.sessions == []
    assert made.totals.payload_up == 5000
    later = make(role)
    assert (later.totals.payload_up, later.totals.sessions) == (5000, 0)


def test_lists_have_an_end_and_all_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_SESSIONS", 2)
    monkeypatch.setattr(report, "MAX_SUBFLOWS", 4)
    monkeypatch.setattr(report, "MAX_STREAMS", 5)
    monkeypatch.setattr(report, "MAX_SESSION_STREAMS", 3)
    pairs = [Pair(subflows=3) for _ in range(3)]
    for index, pair in enumerate(pairs):
        for _ in range(4):
            pair.open(b"x" * 100 * (index + 1))
    made = make(Role(*(Shown(pair.client) for pair in pairs)))
    assert made.totals.sessions == 3
    assert (made.totals.subflows, made.totals.streams) == (9, 12)
    # Those that carried most.
    assert [one.totals.payload_up for one in made.sessions] == [1200, 800]
    assert [len(one.subflows) for one in made.sessions] == [3, 1]
    assert [len(one.streams) for one in made.sessions] == [3, 2]
    assert [one.totals.subflows for one in made.sessions] == [3, 3]


def test_other_work_has_its_turn_for_each_session_and_subflow() -> None:
    role = Role(*(Shown(Pair(subflows=4).client) for _ in range(5)))
    assert len(list(report.build(role, Rates(), lambda: START))) >= 5 + 5 * 4


def test_a_subflow_that_goes_meanwhile_is_left_out() -> None:
    pair = Pair(subflows=3)
    work = report.build(Role(Shown(pair.client)), Rates(), lambda: START)
    next(work)
    next(work)
    pair.client.detach(pair.client.subflows[1], START)
    (session,) = finish(work).sessions
    assert [one.id for one in session.subflows] == [0, 2]


KEYS = {
    "WorkerReport": {"totals", "sessions"},
    "SessionStatus": {"id", "peer", "state", "age", "totals", "paths", "subflows", "streams"},
    "PathStatus": {
        *("name", "state", "subflows", "wanted", "rate_up", "rate_down", "bytes_up", "bytes_down"),
        *("reinjected", "stalls", "reconnects", "trouble"),
    },
    "SubflowStatus": {
        *("id", "path", "local", "remote", "role", "state", "age", "silent", "srtt", "estimate"),
        *("rate_up", "rate_down", "bytes_up", "bytes_down", "unacked", "reinjected", "stalls"),
    },
    "StreamStatus": {
        *("id", "application", "target", "state", "age", "payload_up", "payload_down"),
        *("unsent", "unacked", "undelivered", "window", "credit", "gaps"),
    },
    "TotalsStatus": {
        *("sessions", "subflows", "subflows_ended", "reconnects", "streams", "streams_opened"),
        "streams_waiting",
        *("rate_up", "rate_down", "bytes_up", "bytes_down", "payload_up", "payload_down"),
        *("unacked", "reinjected", "stalls"),
    },
}


def test_the_keys_of_the_document_stay() -> None:
    """Scripts read them: one may be added, none renamed or removed."""
    document: Any = msgspec.to_builtins(make(Role(Shown(busy_pair().client))))
    session = document["sessions"][0]
    found = {
        "WorkerReport": document,
        "SessionStatus": session,
        "PathStatus": session["paths"][0],
        "SubflowStatus": session["subflows"][0],
        "StreamStatus": session["streams"][0],
        "TotalsStatus": document["totals"],
    }
    assert {name: set(value) & KEYS[name] for name, value in found.items()} == KEYS
