"""What the status command is told of a session is what happened in it."""

from __future__ import annotations

import pytest
from fastmtcp.engine import snapshot
from fastmtcp.engine.limits import KIB, Limits
from fastmtcp.engine.session import Session
from fastmtcp.engine.snapshot import Totals
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.subflows.subflow import Cause
from fastmtcp.engine.wire.errors import ResetCode, SessionCode

from tests.unit.wire import START, Pair, collect, feed, opened


def test_a_new_session_has_nothing() -> None:
    session = Session(opener=True, limits=Limits(), now=START)
    assert snapshot.totals(session) == Totals()


def test_totals_of_both_sides_agree() -> None:
    pair = Pair(subflows=3)
    mine, theirs = pair.open(b"u" * 5000)
    theirs.write(b"d" * 700)
    pair.exchange()
    near, far = snapshot.totals(pair.client), snapshot.totals(pair.server)
    assert (near.payload_sent, near.payload_received) == (5000, 700)
    assert (far.payload_sent, far.payload_received) == (700, 5000)
    assert (near.bytes_sent, near.bytes_received) == (far.bytes_received, far.bytes_sent)
    assert near.bytes_sent > 5000
    assert near.subflows == far.subflows == 3
    assert near.streams == far.streams == near.streams_opened == far.streams_opened == 1
    assert near.unacked == far.unacked == 0
    assert mine.created_at == START


def test_counters_outlive_streams_and_subflows() -> None:
    pair = Pair(subflows=2)
    mine, theirs = pair.open(b"u" * 5000)
    pair.take(theirs)
    for stream in (mine, theirs):
        stream.finish()
    pair.exchange()
    for stream in (mine, theirs):
        pair.take(stream)
    assert not pair.client.streams
    before = snapshot.totals(pair.client)
    pair.client.subflows[0].stalls = 2
    pair.detach(0)
    after = snapshot.totals(pair.client)
    assert (after.payload_sent, after.streams, after.streams_opened) == (5000, 0, 1)
    assert (after.subflows, after.subflows_ended) == (1, 1)
    assert (after.bytes_sent, after.bytes_received) == (before.bytes_sent, before.bytes_received)
    assert after.stalls == 2


def test_counters_are_final_when_a_session_ends() -> None:
    pair = Pair(subflows=2)
    pair.open(b"u" * 5000)
    before = snapshot.totals(pair.client)
    pair.client.end(SessionCode.NORMAL, "over")
    for subflow in list(pair.client.subflows.values()):
        pair.client.detach(subflow, pair.now)
    after = snapshot.totals(pair.client)
    assert (after.bytes_sent, after.payload_sent) == (before.bytes_sent, before.payload_sent)
    assert (after.subflows, after.streams, after.unacked) == (0, 0, 0)


def test_what_a_dead_subflow_carried_is_counted_as_reinjected() -> None:
    pair = Pair(subflows=2)
    mine, _ = pair.open(b"hello")
    pair.client.subflows[1].ready = False
    mine.write(b"x" * 1000)
    collect(pair.client, pair.now)
    shot = snapshot.subflow(pair.client.subflows[0], pair.now)
    assert shot.unacked == 1000
    assert snapshot.totals(pair.client).reinjected == 0
    pair.client.subflows[1].ready = True
    pair.detach(0)
    assert snapshot.totals(pair.client).reinjected == 1000
    pair.exchange()
    assert snapshot.subflow(pair.client.subflows[1], pair.now).unacked == 0
    assert snapshot.totals(pair.client).payload_sent == 1005


def test_open_and_fin_are_no_unacked_bytes() -> None:
    session = Session(opener=True, limits=Limits(), now=START, peer_floor=64 * KIB)
    subflow = session.attach(0, START)
    subflow.ready = True
    stream = session.open(START)
    stream.write(b"abc")
    stream.finish()
    collect(session, START)
    assert [(start, stop) for _, start, stop in subflow.inflight] == [(-1, 4)]
    assert snapshot.subflow(subflow, START).unacked == 3
    assert snapshot.stream(stream, START).unacked == 3
    stream.reset(ResetCode.INTERNAL)
    assert snapshot.subflow(subflow, START).unacked == 0


def test_counting_unacked_bytes_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(subflows=1)
    mine, _ = pair.open(b"hello")
    for _ in range(5):
        mine.write(b"x" * 10)
        collect(pair.client, pair.now)
    subflow = pair.client.subflows[0]
    assert len(subflow.inflight) == 5
    assert snapshot.subflow(subflow, pair.now).unacked == 50
    monkeypatch.setattr(snapshot, "MAX_RANGES", 3)
    assert snapshot.subflow(subflow, pair.now).unacked == 30


@pytest.mark.parametrize(
    ("role", "words"),
    [
        (Role.BOTH, ["up", "down"]),
        (Role.UP | Role.EXPRESS, ["up", "express"]),
        (Role.DOWN | Role.BACKUP, ["down", "backup"]),
    ],
)
def test_the_role_of_a_subflow_in_words(role: Role, words: list[str]) -> None:
    session = Session(opener=True, limits=Limits(), now=START)
    assert snapshot.subflow(session.attach(0, START, role), START).role == words


def test_the_state_of_a_subflow() -> None:
    session = Session(opener=True, limits=Limits(), now=START)
    subflow = session.attach(7, START)
    shot = snapshot.subflow(subflow, START + 3)
    assert (shot.subflow_id, shot.state, shot.age, shot.silent) == (7, "active", 3.0, 3.0)
    subflow.become_suspect(Cause.KERNEL, START)
    assert snapshot.subflow(subflow, START).state == "suspect"
    subflow.retire()
    assert snapshot.subflow(subflow, START).state == "retiring"


def test_silence_ends_with_what_comes_in() -> None:
    pair = Pair(subflows=1)
    pair.now += 10
    mine = pair.client.open(pair.now)
    mine.write(b"x")
    pair.flush(pair.client)
    heard = snapshot.subflow(pair.server.subflows[0], pair.now + 2)
    assert (heard.silent, heard.age) == (2.0, 12.0)


def test_the_states_of_a_stream() -> None:
    pair = Pair(subflows=1)
    mine = pair.client.open(pair.now, "example.com:80")
    assert snapshot.stream(mine, pair.now).state == "opening"
    mine.announce()
    pair.exchange()
    theirs = opened(pair.server).pop()
    for stream in (mine, theirs):
        assert snapshot.stream(stream, pair.now).state == "opening"
    theirs.confirm()
    pair.exchange()
    for stream in (mine, theirs):
        assert snapshot.stream(stream, pair.now).state == "open"
        assert snapshot.stream(stream, pair.now).target == "example.com:80"
    mine.finish()
    pair.exchange()
    for stream in (mine, theirs):
        assert snapshot.stream(stream, pair.now).state == "half-closed"


def test_what_waits_in_a_stream() -> None:
    limits = Limits(floor_window=4 * KIB, start_window=4 * KIB, max_window=4 * KIB)
    pair = Pair(subflows=1, limits=limits)
    mine, theirs = pair.open(b"hello")
    pair.now += 5
    mine.write(b"x" * 6000)
    sent = collect(pair.client, pair.now)
    shot = snapshot.stream(mine, pair.now)
    assert (shot.sent, shot.unacked, shot.credit) == (6005, 4 * KIB - 5, 0)
    assert shot.unsent == 6005 - 4 * KIB
    assert shot.age == round(pair.now - START, 3)
    for subflow, data in sent:
        feed(pair.server, data, pair.now, subflow.subflow_id)
    far = snapshot.stream(theirs, pair.now)
    assert (far.received, far.undelivered, far.window, far.gaps) == (4096, 4096, 4 * KIB, 0)
    pair.take(theirs)
    pair.exchange()
    assert snapshot.stream(theirs, pair.now).received == 6005
    assert snapshot.stream(mine, pair.now).unsent == 0


def test_gaps_are_counted() -> None:
    pair = Pair(subflows=2)
    mine, theirs = pair.open(b"hello")
    pair.client.subflows[1].ready = False
    mine.write(b"x" * 1000)
    collect(pair.client, pair.now)
    pair.client.subflows[0].ready, pair.client.subflows[1].ready = False, True
    mine.write(b"y" * 1000)
    for subflow, data in collect(pair.client, pair.now):
        feed(pair.server, data, pair.now, subflow.subflow_id)
    far = snapshot.stream(theirs, pair.now)
    assert (far.received, far.gaps) == (5, 1)


def test_the_busiest_streams_come_first() -> None:
    session = Session(
        opener=True, limits=Limits(), now=START, peer_floor=64 * KIB, peer_streams=100
    )
    streams = [session.open(START) for _ in range(10)]
    assert snapshot.busiest(session.streams.values(), 10) == streams
    streams[4].write(b"x" * 10)
    streams[7].write(b"x" * 20)
    assert snapshot.busiest(session.streams.values(), 2) == [streams[7], streams[4]]
    assert len(snapshot.busiest(session.streams.values(), 5)) == 5
    assert snapshot.busiest(session.streams.values(), 0) == []


def test_totals_add_up() -> None:
    sums = Totals(subflows=1, bytes_sent=10)
    sums.add(Totals(subflows=2, bytes_sent=5, stalls=1))
    assert sums == Totals(subflows=3, bytes_sent=15, stalls=1)
