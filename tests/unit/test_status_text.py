"""The status as text: aligned, in words, and harmless whatever a peer has put into it."""

from __future__ import annotations

from fastmtcp.status.document import (
    InstanceStatus,
    PathStatus,
    SessionStatus,
    StreamStatus,
    SubflowStatus,
    TotalsStatus,
    WorkerStatus,
)
from fastmtcp.status.text import format_instances, table


def subflow(**changes: object) -> SubflowStatus:
    values: dict[str, object] = {
        "id": 0,
        "path": "a:1",
        "local": "10.0.0.1:40000",
        "remote": "192.0.2.1:7700",
        "role": ["up", "down"],
        "state": "active",
        "age": 65.0,
        "silent": 0.1,
        "srtt": 0.0421,
        "estimate": 20_000_000,
        "rate_up": 19_500_000,
        "rate_down": 0,
        "bytes_up": 1_234_567_890,
        "bytes_down": 999,
        "unacked": 1_000_000,
        "reinjected": 0,
        "stalls": 2,
    }
    return SubflowStatus(**(values | changes))  # type: ignore[arg-type]


def stream(**changes: object) -> StreamStatus:
    values: dict[str, object] = {
        "id": 4,
        "application": "127.0.0.1:5555",
        "target": "example.com:22",
        "state": "open",
        "age": 3.0,
        "payload_up": 12_300_000,
        "payload_down": 7,
        "unsent": 0,
        "unacked": 65536,
        "undelivered": 12,
        "window": 1 << 20,
        "credit": 0,
        "gaps": 3,
    }
    return StreamStatus(**(values | changes))  # type: ignore[arg-type]


def session(
    subflows: list[SubflowStatus],
    streams: list[StreamStatus],
    totals: TotalsStatus,
    trouble: str = "",
) -> SessionStatus:
    return SessionStatus(
        id="00aabbccddee",
        peer="192.0.2.1:7700",
        state="active",
        age=7500.0,
        totals=totals,
        paths=[PathStatus(name="a:1", subflows=1, wanted=4, reconnects=5, trouble=trouble)],
        subflows=subflows,
        streams=streams,
    )


def instance(*sessions: SessionStatus, state: str = "serving") -> InstanceStatus:
    totals = TotalsStatus(sessions=len(sessions))
    for one in sessions:
        totals.add(one.totals)
    worker = WorkerStatus(
        index=0,
        pid=12 if state == "serving" else None,
        state=state,
        uptime=60.0,
        restarts=1,
        memory=12_300_000 if state == "serving" else None,
        totals=totals,
        sessions=list(sessions),
    )
    return InstanceStatus(
        format=1,
        program="fastmtcp-client",
        version="1.2.3",
        pid=11,
        uptime=3600.0,
        state="ready",
        control="fastmtcp/0/client-7701",
        listening=["127.0.0.1:7701"],
        totals=totals,
        workers=[worker],
    )


def columns(text: str, first: str) -> dict[str, str]:
    """The table whose header begins with `first`, with one row: its cells by column."""
    lines = text.splitlines()
    at = next(index for index, line in enumerate(lines) if line.split()[:1] == [first])
    header, row = (
        [c.strip() for c in line.strip().split("  ") if c] for line in lines[at : at + 2]
    )
    return dict(zip(header, row, strict=False))


def test_numbers_have_units() -> None:
    totals = TotalsStatus(subflows=1, streams=1, rate_up=19_500_000, payload_up=12_300_000)
    text = format_instances([instance(session([subflow()], [stream()], totals))])
    assert columns(text, "subflow") == {
        "subflow": "0",
        "local": "10.0.0.1:40000",
        "remote": "192.0.2.1:7700",
        "state": "active",
        "up": "19.5 MB/s",
        "down": "0 B/s",
        "srtt": "42.1 ms",
        "sent up": "1.23 GB",
        "sent down": "999 B",
        "un-ACKed": "1.00 MB",
        "reinjected": "0 B",
        "stalls": "2",
        "age": "1m05s",
    }
    found = columns(text, "stream")
    assert (found["application"], found["target"]) == ("127.0.0.1:5555", "example.com:22")
    assert (found["up"], found["down"], found["gaps"]) == ("12.3 MB", "7 B", "3")
    found = columns(text, "path")
    assert (found["subflows"], found["reconnects"]) == ("1 of 4", "5")
    found = columns(text, "worker")
    assert (found["pid"], found["memory"], found["restarts"]) == ("12", "12.3 MB", "1")
    assert "fastmtcp-client 1.2.3  pid 11  ready  up 1h00m" in text
    assert "listening on 127.0.0.1:7701; control socket fastmtcp/0/client-7701" in text
    assert "session 00aabbccddee of worker 0  active  age 2h05m  with 192.0.2.1:7700" in text
    assert "1 session, 1 subflow, 1 stream (0 since the start)" in text
    assert "up   19.5 MB/s now" in text


def test_special_roles_are_named() -> None:
    for role, expected in (
        (["up", "down"], "active"),
        (["up"], "active up only"),
        (["down", "backup"], "active down only backup"),
        (["up", "down", "express"], "active express"),
    ):
        text = format_instances([instance(session([subflow(role=role)], [], TotalsStatus()))])
        assert columns(text, "subflow")["state"] == expected


def test_what_is_not_known_is_a_dash() -> None:
    text = format_instances([instance(state="down")])
    found = columns(text, "worker")
    assert (found["pid"], found["memory"], found["state"]) == ("-", "-", "down")
    one = session([subflow(srtt=None)], [stream(application="", target="")], TotalsStatus())
    text = format_instances([instance(one)])
    assert columns(text, "subflow")["srtt"] == "-"
    found = columns(text, "stream")
    assert (found["application"], found["target"]) == ("-", "-")


def test_what_is_not_listed_is_counted() -> None:
    totals = TotalsStatus(subflows=3, streams=102, sessions=1)
    one = instance(session([subflow()], [stream(), stream()], totals))
    one.workers[0].totals.sessions = 8
    text = format_instances([one])
    assert "and 2 more subflows" in text
    assert "and 100 more streams" in text
    assert "worker 0 has 7 more sessions" in text


def test_columns_are_aligned() -> None:
    lines = table(
        ("name", "count", "trouble"),
        [("a", "1", ""), ("longer", "1000000", "it is refused"), ("b", "20", "x")],
        left=1,
        indent="  ",
    )
    assert lines == [
        "  name      count  trouble",
        "  a             1",
        "  longer  1000000  it is refused",
        "  b            20  x",
    ]


def test_what_a_peer_chose_cannot_touch_the_terminal() -> None:
    evil = "\x1b[2J\x07a\r\nb\u2028\u202e\x9b"
    one = session([], [stream(target=evil)], TotalsStatus(), trouble=evil)
    fake = instance(one)
    fake.version = fake.listening[0] = one.peer = one.id = evil
    text = format_instances([fake])
    assert all(c.isprintable() or c == "\n" for c in text)
    assert text.count("\n") == format_instances([instance(one)]).count("\n")
    assert "\\x1b[2J" in text


def test_a_long_cell_is_cut() -> None:
    text = format_instances([instance(session([], [stream(target="x" * 500)], TotalsStatus()))])
    assert max(map(len, text.splitlines())) < 250


def test_instances_are_apart() -> None:
    text = format_instances([instance(), instance()])
    assert len(text.split("\n\n")) == 2
    assert not text.endswith("\n")
