"""A peer that breaks the rules, and what it can make us hold."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import KIB, MAX_REASON, MIB, OWN_SEND_ROOM, Limits
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.send_buffer import BUFFER_COST
from fastmtcp.engine.streams.stream import NO_ID
from fastmtcp.engine.wire.errors import OpenError, RemoteError, ResetCode, SessionCode
from fastmtcp.engine.wire.frames import (
    Ack,
    Closed,
    Data,
    Frame,
    Goaway,
    Open,
    Ping,
    Reset,
)

from tests.unit.wire import START, Pair, collect, events, feed, frames_of, opened, pack, updated

AT_SERVER: dict[str, tuple[list[tuple[Frame, bytes]], SessionCode]] = {
    "ACK of an OPEN that was never sent": ([(Ack(0, 1, 0), b"")], SessionCode.PROTOCOL),
    "ACK beyond what was sent": ([(Ack(0, 2**40, 0), b"")], SessionCode.PROTOCOL),
    "data beyond the window": (
        [(Data(0, 64 * KIB, False), b"x")],
        SessionCode.FLOW_CONTROL,
    ),
    "data far beyond the window": ([(Data(0, 2**62, False), b"x")], SessionCode.FLOW_CONTROL),
    "data before the OPEN, beyond the window": (
        [(Data(1, 64 * KIB, False), b"x")],
        SessionCode.FLOW_CONTROL,
    ),
    "negative offset": ([(Data(0, -1, False), b"x")], SessionCode.PROTOCOL),
    "two FINs": (
        [(Data(0, 5, True), b""), (Data(0, 6, True), b"")],
        SessionCode.PROTOCOL,
    ),
    "data behind the FIN": (
        [(Data(0, 5, True), b""), (Data(0, 5, False), b"x")],
        SessionCode.PROTOCOL,
    ),
    "FIN below data": (
        [(Data(0, 5, False), b"x"), (Data(0, 4, True), b"")],
        SessionCode.PROTOCOL,
    ),
    "FIN of an OPEN against data": (
        [(Data(1, 5, False), b"x"), (Open(1, 0, True), b"abc")],
        SessionCode.PROTOCOL,
    ),
    "OPEN with negative credit": ([(Open(1, -1, False), b"")], SessionCode.PROTOCOL),
    "negative stream in DATA": ([(Data(-1, 0, False), b"x")], SessionCode.PROTOCOL),
    "negative stream in OPEN": ([(Open(-1, 0, False), b"x")], SessionCode.PROTOCOL),
    "negative stream in RESET": ([(Reset(-1, 0), b"")], SessionCode.PROTOCOL),
    "stream ids skip too far": ([(Open(2**31, 0, False), b"x")], SessionCode.LIMIT),
    "RESET with a negative end": ([(Reset(0, 0, -1), b"")], SessionCode.PROTOCOL),
    "RESET skips too far": ([(Reset(2**63, 0), b"")], SessionCode.LIMIT),
}

AT_CLIENT: dict[str, list[tuple[Frame, bytes]]] = {
    "OPEN from the server": [(Open(1, 0, False), b"")],
    "OPEN of a stream that exists": [(Open(0, 0, False), b"")],
    "data of a stream that was never opened": [(Data(1, 0, False), b"x")],
    "data of a negative stream": [(Data(-1, 0, False), b"x")],
    "ACK of bytes that were not sent": [(Ack(0, 4, 0), b"")],
    "RESET with a negative end": [(Reset(0, 0, -1), b"")],
    "ACK of a FIN that was not sent": [(Ack(0, 4, 0), b"")],
}


@pytest.mark.parametrize(("frames", "code"), AT_SERVER.values(), ids=AT_SERVER.keys())
def test_faults_of_a_client(frames: list[tuple[Frame, bytes]], code: SessionCode) -> None:
    pair = Pair()
    feed(pair.server, pack(Open(0, 0, False)))
    *first, last = (pack(frame, payload) for frame, payload in frames)
    for wire in first:
        feed(pair.server, wire)
    with pytest.raises(RemoteError) as caught:
        feed(pair.server, last)
    assert caught.value.code == code


@pytest.mark.parametrize("frames", AT_CLIENT.values(), ids=AT_CLIENT.keys())
def test_faults_of_a_server(frames: list[tuple[Frame, bytes]]) -> None:
    pair = Pair()
    pair.open(b"abc")
    with pytest.raises(RemoteError) as caught:
        feed(pair.client, b"".join(pack(*frame) for frame in frames))
    assert caught.value.code == SessionCode.PROTOCOL


def test_ack_before_the_open_was_sent() -> None:
    pair = Pair()
    pair.client.open(pair.now)
    with pytest.raises(RemoteError):
        feed(pair.client, pack(Ack(0, 0, 100)))


def test_too_many_subflows_and_one_twice() -> None:
    session = Session(opener=False, limits=Limits(max_subflows=3), now=START)
    for number in range(3):
        session.attach(number, START)
    with pytest.raises(RemoteError) as caught:
        session.attach(2, START)
    assert caught.value.code == SessionCode.LIMIT
    with pytest.raises(RemoteError) as caught:
        session.attach(3, START)
    assert caught.value.code == SessionCode.LIMIT
    subflow = session.subflows[0]
    session.detach(subflow, START)
    session.detach(subflow, START)
    session.attach(3, START)
    assert sorted(session.subflows) == [1, 2, 3]


# --- the end of the session -----------------------------------------------------------------------


def test_a_goaway_resets_everything() -> None:
    pair = Pair()
    streams = [pair.open(b"abc")[0] for _ in range(3)]
    streams[0].write(b"more")
    feed(pair.client, pack(Goaway(SessionCode.SHUTDOWN, "bye " * 100)))
    assert pair.client.ended == (SessionCode.SHUTDOWN, ("bye " * 100)[:MAX_REASON])
    assert [stream.reset_code for stream in streams] == [ResetCode.SESSION_LOST] * 3
    assert updated(pair.client) == streams
    assert pair.client.streams == {}
    assert pair.client.held == 0
    assert pair.client.table.windows.free == pair.client.limits.window_pool
    assert collect(pair.client, pair.now) == []
    with pytest.raises(OpenError):
        pair.client.open(pair.now)


def test_a_goaway_with_an_unknown_code() -> None:
    pair = Pair()
    feed(pair.client, pack(Goaway(1234, "?")))
    assert pair.client.ended == (SessionCode.PROTOCOL, "?")


def test_frames_behind_a_goaway_are_ignored() -> None:
    pair = Pair()
    pair.open(b"abc")
    collect(pair.server, pair.now)
    feed(
        pair.server,
        pack(Goaway(SessionCode.NORMAL))
        + pack(Open(1, 0, False), b"abc")
        + pack(Data(2, 0, False), b"abc")
        + pack(Data(0, 0, False), b"abc")
        + pack(Reset(3, 0))
        + pack(Ping(0)),
    )
    feed(pair.server, pack(Open(4, 0, False), b"abc"))
    assert pair.server.ended is not None
    assert pair.server.streams == {}
    assert opened(pair.server) == []
    assert collect(pair.server, pair.now) == []


def test_a_draining_peer_finishes_what_is_open() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"abc")
    pair.server.drain()
    pair.exchange()
    assert pair.client.peer.draining
    assert pair.client.ended is None
    mine.write(b"def")
    pair.exchange()
    assert pair.take(theirs) == b"abcdef"


def test_end_is_said_once_and_detach_afterwards_is_harmless() -> None:
    pair = Pair()
    mine, _ = pair.open(b"abc")
    mine.write(b"in flight")
    collect(pair.client, pair.now)
    pair.client.end(SessionCode.NORMAL, "first")
    pair.client.end(SessionCode.LIMIT, "second")
    assert pair.client.ended == (SessionCode.NORMAL, "first")
    pair.client.detach(pair.client.subflows[0], pair.now)
    pair.client.on_time(pair.now + 100)
    mine.reset(ResetCode.CANCELLED)
    assert collect(pair.client, pair.now) == []
    assert pair.client.goaway(SessionCode.NORMAL, "x" * 500) == pack(
        Goaway(SessionCode.NORMAL, "x" * MAX_REASON)
    )


# --- memory -----------------------------------------------------------------------------------


def test_a_full_send_buffer_stops_reading_and_an_ack_starts_it_again() -> None:
    limits = Limits(floor_window=1 * MIB, send_buffer=100_000, backlog=1 * MIB)
    pair = Pair(limits=limits)
    first, _ = pair.open()
    second, _ = pair.open()
    first.write(bytes(first.room))
    assert pair.client.held == 100_000
    assert first.room == 0
    assert second.room == OWN_SEND_ROOM  # that, every stream has in any case
    second.write(bytes(second.room))
    assert second.room == 0
    events(pair.client)
    pair.exchange()
    assert second in updated(pair.client)
    assert second.room == 100_000


def test_streams_that_wait_for_the_send_buffer_are_woken_in_turn() -> None:
    limits = Limits(floor_window=1 * MIB, send_buffer=1 * MIB, backlog=1 * MIB)
    pair = Pair(limits=limits)
    first, *others = (pair.open()[0] for _ in range(6))
    first.write(bytes(first.room))
    for stream in others:
        stream.write(bytes(stream.room))
        assert stream.room == 0
    events(pair.client)
    memory = pair.client.table.memory
    memory.let_go(6 * OWN_SEND_ROOM)  # five are what the others have beyond the limit
    assert updated(pair.client) == others[:1]
    others[0].write(bytes(others[0].room))
    memory.let_go(2 * OWN_SEND_ROOM)
    assert updated(pair.client) == others[1:3]
    assert others[0].room < 512 * KIB  # it waits again, behind the others
    memory.let_go(3 * OWN_SEND_ROOM)
    assert updated(pair.client) == [*others[3:], others[0]]


@pytest.mark.parametrize("closed", [False, True])
def test_a_full_send_buffer_is_free_again_when_its_stream_is_reset(closed: bool) -> None:
    """Nobody else is going to acknowledge anything: the others must be told to read again."""
    limits = Limits(floor_window=1 * MIB, send_buffer=100_000, backlog=1 * MIB)
    pair = Pair(limits=limits)
    first, _ = pair.open()
    second, _ = pair.open()
    first.write(bytes(first.room))
    second.write(bytes(second.room))
    assert second.room == 0
    events(pair.client)
    if closed:
        feed(pair.client, pack(Closed(first.stream_id)))
    else:
        first.reset(ResetCode.IDLE)
    assert second in updated(pair.client)
    assert second.room == 100_000 - OWN_SEND_ROOM - BUFFER_COST


def test_a_peer_that_does_not_read_cannot_make_us_queue_answers_without_end() -> None:
    """Every frame for a stream that is gone asks for an answer; none of them is taken."""
    pair = Pair()
    for subflow in pair.server.subflows.values():
        subflow.ready = False
    feed(pair.server, b"".join(pack(Reset(number, 0)) for number in range(100)))
    for _ in range(1000):
        feed(pair.server, b"".join(pack(Reset(number, 0)) for number in range(100)))
        feed(pair.server, b"".join(pack(Data(number, 0, False)) for number in range(100)))
    pair.server.subflows[0].ready = True
    assert sum(len(data) for _, data in collect(pair.server, pair.now)) < 10_000

    pair.server.subflows[0].ready = False
    flood = b"".join(pack(Reset(number, 0)) for number in range(100, 100_000))
    with pytest.raises(RemoteError) as caught:
        feed(pair.server, flood)
    assert caught.value.code == SessionCode.LIMIT
    pair.server.subflows[0].ready = True
    assert sum(len(data) for _, data in collect(pair.server, pair.now)) < 4 * MIB


def test_control_frames_do_not_pile_up_while_no_subflow_takes_them() -> None:
    pair = Pair(limits=Limits(session_timeout=10_000))
    streams = [pair.open(b"abc") for _ in range(20)]
    for mine, _ in streams[:10]:
        mine.reset(ResetCode.CANCELLED)
    for mine, _ in streams[10:]:
        mine.write(b"def")
    collect(pair.client, pair.now)
    for number in range(2, 300):
        pair.detach(number - 2)
        pair.now += 1.1
        pair.client.on_time(pair.now)
        pair.attach(number)
        pair.client.subflows[number].ready = False
    for subflow in pair.client.subflows.values():
        subflow.ready = True
    frames = frames_of(collect(pair.client, pair.now))
    assert len(frames) <= 60


def test_opening_and_resetting_in_one_breath_costs_no_more_than_open_streams() -> None:
    pair = Pair(limits=Limits(max_streams=100))
    wire = b"".join(pack(Open(n, 0, False), b"x") + pack(Reset(n, 0)) for n in range(10_000))
    feed(pair.server, wire)
    seen = events(pair.server)
    assert len(seen.opened) <= 300
    assert len(seen.updated) <= 300
    collect(pair.server, pair.now)
    # Nobody takes their bytes, for ever.
    for _ in range(5):
        pair.now += 1
        pair.server.on_time(pair.now)
    assert not pair.server.streams
    collect(pair.server, pair.now)
    events(pair.server)
    feed(pair.server, pack(Open(10_000, 0, False), b"x"))
    assert len(opened(pair.server)) == 1


def test_a_peer_that_confirms_no_reset_loses_its_session() -> None:
    pair = Pair(limits=Limits(max_streams=10))
    flood = b"".join(pack(Open(number, 0, False), b"x") for number in range(1000))
    with pytest.raises(RemoteError) as caught:
        feed(pair.server, flood)
    assert caught.value.code == SessionCode.LIMIT


@pytest.mark.parametrize("data", [b"", b"abc"])
@pytest.mark.parametrize(("most", "expected"), [(10, 10), (100, 20)])
def test_applications_that_come_and_go_in_an_outage_do_not_end_the_session(
    data: bytes, most: int, expected: int
) -> None:
    """What the server has not heard of yet is nobody's fault: there are no more for a while."""
    pair = Pair(limits=Limits(max_streams=10), server_limits=Limits(max_streams=most))
    started = 0
    sent = []
    for _ in range(100):
        stream = pair.client.open(pair.now)
        stream.write(data)
        stream.announce()
        sent += collect(pair.client, pair.now)
        started += stream.stream_id != NO_ID
        stream.reset(ResetCode.CANCELLED)
    assert started == expected
    assert pair.client.ended is None
    assert len(pair.client.table.parting) <= 10
    for subflow in pair.client.subflows.values():
        subflow.ready = False
    for carrier, wire in sent:
        feed(pair.server, wire, subflow=carrier.subflow_id)
    for _ in range(12):
        pair.now += 1
        pair.server.on_time(pair.now)
        pair.client.on_time(pair.now)
    assert not pair.client.table.parting
    for subflow in pair.client.subflows.values():
        subflow.ready = True
    pair.exchange()
    assert pair.client.open(pair.now).stream_id == expected


def test_applications_that_come_and_go_while_nothing_is_sent_use_up_no_ids() -> None:
    pair = Pair(limits=Limits(max_streams=10))
    for subflow in pair.client.subflows.values():
        subflow.ready = False
    for _ in range(1000):
        stream = pair.client.open(pair.now)
        stream.announce()
        stream.reset(ResetCode.CANCELLED)
    assert stream.stream_id == 0
    assert pair.client.is_quiet


def test_a_server_whose_resets_nobody_confirms_ends_the_session_without_an_exception() -> None:
    """The target resets; it must not be the one that gets the error."""
    pair = Pair(limits=Limits(max_streams=10))
    for number in range(100):
        feed(pair.server, pack(Open(number, 0, False)))
        for stream in opened(pair.server):
            stream.reset(ResetCode.CANCELLED)
        if pair.server.ended is not None:
            break
    assert number == 30
    assert pair.server.ended is not None
    assert pair.server.ended[0] == SessionCode.LIMIT


def test_any_order_of_opens_and_resets_that_a_client_may_produce_is_accepted() -> None:
    pair = Pair(limits=Limits(max_streams=10))
    # This one keeps to what the server says, and waits for its answers. Another may not.
    pair.client.peer.streams = 0
    sent = []
    for data in (b"", b"x"):
        streams = [pair.client.open(pair.now) for _ in range(10)]
        for stream in streams:
            stream.write(data)
            stream.announce()
        sent += collect(pair.client, pair.now)
        if not data:
            for stream in streams:
                stream.reset(ResetCode.CANCELLED)
    sent += collect(pair.client, pair.now)
    wires = [pack(*frame) for frame in frames_of(sent)]
    assert len(wires) == 30
    for wire in reversed(wires):
        feed(pair.server, wire)
    assert len(opened(pair.server)) == 10


def test_what_a_subflow_carries_is_forgotten_though_one_range_of_it_is_stuck() -> None:
    pair = Pair()
    stuck, _ = pair.open(b"abc")
    busy, theirs = pair.open(b"abc")
    stuck.write(b"lost on the way")
    collect(pair.client, pair.now)
    for _ in range(5000):
        busy.write(b"x")
        pair.flush(pair.client)
        if busy.send.unacked:
            pair.now += 0.03
            pair.server.on_time(pair.now)
            pair.flush(pair.server)
        pair.take(theirs)
    assert busy.send.acked >= 4999
    assert sum(len(subflow.inflight) for subflow in pair.client.subflows.values()) < 600


def test_a_stream_that_nobody_has_heard_of_keeps_nothing_when_its_session_ends() -> None:
    """It is complete, but no caller was told of it: its byte would be charged to the worker for
    ever, and a peer could do that again and again."""
    session = Session(opener=False, limits=Limits(), now=START)
    session.attach(0, START)
    with pytest.raises(RemoteError) as caught:
        feed(session, pack(Open(0, 0, True), b"x") + pack(Data(0, 6, True)))
    session.end(caught.value.code, "two FINs")
    assert session.holding.bytes == 0
    told = session.take_events()
    assert told is not None
    assert told.opened == []
    assert [stream.reset_code for stream in told.updated] == [ResetCode.SESSION_LOST]
