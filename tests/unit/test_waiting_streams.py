"""Streams that wait for their turns: for the limits of both sides, or for another session."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import KIB, Limits
from fastmtcp.engine.quota import ClientQuota
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import NO_ID, Stream
from fastmtcp.engine.wire.errors import OpenError, ResetCode, SessionCode
from fastmtcp.engine.wire.frames import Ack, Data, Goaway, Open, Reset, ResetAck

from tests.unit.wire import (
    START,
    Pair,
    collect,
    events,
    feed,
    frames_of,
    opened,
    pack,
    ready_bytes,
    updated,
)


class Told:
    """Somebody who wants to know what happens to a stream."""

    def __init__(self) -> None:
        self.times = 0

    def update(self) -> None:
        self.times += 1


def write_all(streams: list[Stream]) -> None:
    for number, stream in enumerate(streams):
        stream.write(b"%d" % number)


def ids(streams: list[Stream]) -> list[int]:
    return [stream.stream_id for stream in streams]


# --- limits that the server has told ----------------------------------------------------------


def test_a_stream_too_many_waits_with_its_bytes_until_one_ends() -> None:
    pair = Pair(server_limits=Limits(max_streams=2))
    first, second, third = (pair.client.open(pair.now) for _ in range(3))
    write_all([first, second, third])
    pair.exchange()
    assert ids([first, second, third]) == [0, 1, NO_ID]
    taken, _ = opened(pair.server)
    assert pair.client.held == 1
    assert not pair.client.is_quiet
    first.reset(ResetCode.CANCELLED)
    pair.exchange()
    # Its target has not taken yet what came before the reset.
    assert third.stream_id == NO_ID
    taken.take(1, pair.now)
    pair.exchange()
    (theirs,) = opened(pair.server)
    assert (third.stream_id, ready_bytes(theirs)) == (2, b"2")
    assert pair.server.holding.client.take_refused() == {}


def test_a_client_that_paces_its_opens_is_never_refused() -> None:
    pair = Pair(server_limits=Limits(opens_per_second=40))
    pair.client.set_peer_limits(64 * KIB, 1000, 40)
    streams = [pair.client.open(pair.now) for _ in range(100)]
    write_all(streams)
    pair.flush(pair.client)
    assert len(opened(pair.server)) == 20
    assert pair.client.deadline() == pytest.approx(pair.now + 1 / 35)
    there = 20
    for _ in range(100):
        pair.now += 0.025
        pair.flush(pair.client)
        there += len(opened(pair.server))
    assert there == 100
    assert pair.server.holding.client.take_refused() == {}
    assert ids(streams) == list(range(100))


def test_what_was_held_up_on_the_way_is_not_too_much_when_it_comes_at_once() -> None:
    server = Session(opener=False, limits=Limits(opens_per_second=400), now=START)
    server.attach(0, START).ready = True
    client = Session(opener=True, limits=Limits(), now=START, peer_floor=1)
    client.attach(0, START).ready = True
    client.set_peer_limits(64 * KIB, 4000, 400)
    write_all([client.open(START) for _ in range(3000)])
    now = START
    held: list[bytes] = []
    for turn in range(400):
        now += 0.01
        held += [data for _, data in collect(client, now)]
        if turn % 50 == 49:  # half a second of silence on the line, again and again
            for data in held:
                feed(server, data, now)
            held.clear()
    assert server.holding.client.take_refused() == {}
    assert len(server.streams) > 1400


def test_limits_that_come_later_are_those_of_streams_that_wait_too() -> None:
    client = Session(opener=True, limits=Limits(max_streams=1), now=START)
    client.attach(0, START).ready = True
    first, second = client.open(START), client.open(START)
    second.write(b"abc")
    client.set_peer_limits(64 * KIB, 10)
    assert updated(client) == [first, second]
    assert (first.room, second.room) == (64 * KIB, 64 * KIB - 3)
    assert ids([first, second]) == [0, NO_ID]
    # Nothing of the second goes out before its turn has come.
    assert frames_of(collect(client, START)) == [(Open(0, 1 << 20, False), b"")]
    first.reset(ResetCode.CANCELLED)
    feed(client, pack(ResetAck(0)))
    assert frames_of(collect(client, START)) == [
        (Reset(0, ResetCode.CANCELLED), b""),
        (Open(1, 1 << 20, False), b"abc"),
    ]


def test_a_stream_that_waits_can_be_given_up() -> None:
    pair = Pair(server_limits=Limits(max_streams=1))
    pair.client.open(pair.now).write(b"x")
    waiting = pair.client.open(pair.now)
    waiting.write(b"yy")
    waiting.reset(ResetCode.CANCELLED)
    assert waiting.reset_code is ResetCode.CANCELLED
    assert pair.client.held == 1
    assert not [frame for frame, _ in pair.exchange() if isinstance(frame, Reset)]


def test_streams_that_wait_are_lost_with_the_session() -> None:
    pair = Pair(server_limits=Limits(max_streams=1))
    streams = [pair.client.open(pair.now) for _ in range(3)]
    pair.client.end(SessionCode.TIMEOUT, "")
    assert [stream.reset_code for stream in streams] == [ResetCode.SESSION_LOST] * 3
    assert events(pair.client).returned == []


def test_a_stream_that_the_server_does_not_take_has_no_last_bytes() -> None:
    pair = Pair()
    stream = pair.client.open(pair.now)
    stream.write(b"abc")
    collect(pair.client, pair.now)
    stream.reset(ResetCode.CANCELLED)
    assert list(pair.client.table.parting.values()) == [stream]
    collect(pair.client, pair.now)
    feed(pair.client, pack(Reset(0, ResetCode.LIMIT)))
    assert frames_of(collect(pair.client, pair.now)) == [(ResetAck(0), b"")]
    assert pair.client.held == 0
    assert pair.client.is_quiet
    assert pair.client.is_over


# --- limits that the client cannot know -------------------------------------------------------


def test_a_refused_stream_is_opened_again_with_all_its_bytes() -> None:
    quota = ClientQuota(max_streams=2)
    pair = Pair()
    pair.server = Session(opener=False, limits=Limits(), now=START, client=quota)
    for subflow_id in range(2):
        pair.server.attach(subflow_id, START).ready = True
    streams = [pair.client.open(pair.now) for _ in range(4)]
    write_all(streams)
    streams[3].finish()
    for session in (pair.client, pair.server, pair.client):
        pair.flush(session)
    assert ids(streams) == [0, 1, NO_ID, NO_ID]
    assert [stream.reset_code for stream in streams] == [None] * 4
    assert len(opened(pair.server)) == 2
    quota.max_streams = 16384
    pair.exchange()  # until 0.25 s have passed
    for _ in range(20):
        pair.now += 0.05
        pair.exchange()
    theirs = opened(pair.server)
    assert sorted(ready_bytes(stream) for stream in theirs) == [b"2", b"3"]
    assert sorted(stream.receive.is_all_here for stream in theirs) == [False, True]
    assert [stream.stream_id > 3 for stream in streams[2:]] == [True, True]
    assert pair.client.held == 0


def test_after_a_refusal_no_more_are_tried_than_were_taken_for_a_while() -> None:
    client = Session(opener=True, limits=Limits(), now=START, peer_floor=100, peer_streams=100)
    client.attach(0, START).ready = True
    write_all([client.open(START) for _ in range(10)])
    collect(client, START)
    feed(client, b"".join(pack(Reset(number, ResetCode.LIMIT)) for number in range(4, 10)))

    def opens(now: float) -> int:
        return sum(isinstance(frame, Open) for frame, _ in frames_of(collect(client, now)))

    assert opens(START + 0.2) == 0
    assert client.deadline() <= START + 0.25
    assert opens(START + 0.26) == 2
    assert opens(START + 0.40) == 0
    assert opens(START + 0.52) == 3
    assert opens(START + 0.78) == 1


def test_a_subflow_that_dies_with_an_open_that_was_refused_repeats_nothing_of_it() -> None:
    client = Session(opener=True, limits=Limits(), now=START, peer_floor=100, peer_streams=100)
    for subflow_id in range(2):
        client.attach(subflow_id, START).ready = True
    stream = client.open(START)
    stream.write(b"abc")
    ((carrier, _),) = collect(client, START)
    other = 1 - carrier.subflow_id
    feed(client, pack(Reset(0, ResetCode.LIMIT)), START, other)
    client.detach(carrier, START)
    sent = frames_of(collect(client, START + 1.0))
    assert [(f.stream, data) for f, data in sent if isinstance(f, Open)] == [(1, b"abc")]
    feed(client, pack(Ack(1, 3, 100)), START + 1.0, other)
    assert client.held == 0


def test_a_stream_that_the_server_has_taken_is_reset_whatever_it_says_later() -> None:
    for word in (pack(Ack(0, 0, 100)), pack(Ack(0, -1, 100, True)), pack(Data(0, 0, False), b"x")):
        for code in (ResetCode.LIMIT, ResetCode.DRAINING):
            pair = Pair()
            stream = pair.client.open(START)
            stream.write(b"abc")
            collect(pair.client, START)
            feed(pair.client, word)
            feed(pair.client, pack(Reset(0, code)))
            stream.take(stream.receive.data.ready_bytes, START)
            assert stream.reset_code is code
            assert pair.client.streams == {}


# --- a server that drains ---------------------------------------------------------------------


def test_a_draining_server_gives_back_what_it_has_not_taken() -> None:
    pair = Pair(server_limits=Limits(max_streams=4))
    taken, _ = pair.open(b"old")
    on_its_way = pair.client.open(pair.now)
    on_its_way.write(b"sent")
    collect(pair.client, pair.now)
    unsent, waiting = pair.client.open(pair.now), [pair.client.open(pair.now) for _ in range(3)]
    feed(pair.client, pack(Goaway(int(SessionCode.DRAINING), "")))
    news = events(pair.client)
    assert news.draining
    assert news.returned == [unsent, *waiting]
    feed(pair.client, pack(Reset(on_its_way.stream_id, ResetCode.DRAINING)))
    news = events(pair.client)
    assert not news.draining
    assert news.returned == [on_its_way]
    assert list(pair.client.streams.values()) == [taken]
    assert pair.client.held == 0
    # A second time, and late words about it, change nothing.
    feed(pair.client, pack(Reset(1, ResetCode.DRAINING)) + pack(Goaway(5, "")))
    assert pair.client.take_events() is None


def test_what_a_draining_server_has_not_taken_is_not_sent_to_it() -> None:
    """It has an id and its turn already, and waits for a subflow."""
    pair = Pair()
    stream = pair.client.open(pair.now)
    stream.write(b"abc")
    for subflow in pair.client.subflows.values():
        subflow.ready = False
    assert collect(pair.client, pair.now) == []
    assert stream.stream_id == 0
    feed(pair.client, pack(Goaway(int(SessionCode.DRAINING), "")))
    for subflow in pair.client.subflows.values():
        subflow.ready = True
    assert events(pair.client).returned == [stream]
    assert collect(pair.client, pair.now) == []
    assert pair.client.held == 0


def test_a_server_that_refuses_what_it_cannot_know_gets_one_answer() -> None:
    """The id of a stream that was not sent yet can be guessed."""
    pair = Pair()
    stream = pair.client.open(pair.now)
    stream.write(b"abc")
    assert stream.stream_id == 0
    feed(pair.client, pack(Reset(0, ResetCode.DRAINING)))
    assert events(pair.client).returned == [stream]
    assert frames_of(collect(pair.client, pair.now)) == [(ResetAck(0), b"")]
    assert pair.client.holding.client.streams == 0


def test_a_stream_that_no_session_takes_is_dropped_with_its_bytes() -> None:
    pair = Pair()
    stream = pair.client.open(pair.now)
    stream.write(b"abc")
    feed(pair.client, pack(Goaway(int(SessionCode.DRAINING), "")))
    assert events(pair.client).returned == [stream]
    told = Told()
    stream.watcher = told
    stream.drop(ResetCode.DRAINING)
    assert told.times == 1
    assert stream.reset_code is ResetCode.DRAINING
    assert stream.send.held == 0
    stream.write(b"more")
    stream.announce()
    stream.finish()
    assert stream.send.held == 0
    assert (stream.room, stream.send.finished) == (0, False)
    assert collect(pair.client, pair.now) == []
    # Nobody need watch it.
    stream.watcher = None
    stream.drop(ResetCode.DRAINING)


def test_a_client_that_drains_takes_nothing_from_its_server() -> None:
    pair = Pair()
    _, theirs = pair.open(b"abc")
    events(pair.server)
    feed(pair.server, pack(Goaway(int(SessionCode.DRAINING), "")))
    news = events(pair.server)
    assert (news.draining, news.returned) == (True, [])
    assert pair.server.streams == {0: theirs}


def test_a_stream_goes_on_in_another_session_from_its_first_byte() -> None:
    old, new = Pair(), Pair()
    stream = old.client.open(START, "target:80", "app:1")
    stream.write(b"GET ")
    collect(old.client, START)
    feed(old.client, pack(Reset(0, ResetCode.DRAINING)))
    news = events(old.client)
    assert (news.draining, news.returned) == (True, [stream])
    new.client.adopt(stream, new.now)
    stream.write(b"/")
    stream.finish()
    new.exchange()
    (theirs,) = opened(new.server)
    assert (theirs.target, theirs.source) == ("target:80", "app:1")
    assert ready_bytes(theirs) == b"GET /"
    assert theirs.receive.is_all_here
    assert stream.owner is new.client
    theirs.write(b"answer")
    new.exchange()
    assert ready_bytes(stream) == b"answer"
    assert old.client.held == new.client.held == 0
    assert old.client.table.windows.free == old.client.limits.window_pool


def test_what_a_server_has_not_seen_when_it_ends_in_order_is_given_back() -> None:
    for code, is_back in ((SessionCode.NORMAL, True), (SessionCode.SHUTDOWN, False)):
        pair = Pair(server_limits=Limits(max_streams=2))
        taken, _ = pair.open(b"old")
        unseen = pair.client.open(pair.now)
        unseen.write(b"new")
        collect(pair.client, pair.now)
        waiting = pair.client.open(pair.now)
        assert waiting.stream_id == NO_ID
        feed(pair.client, pack(Goaway(int(code), "")))
        assert events(pair.client).returned == [unseen, waiting] * is_back
        assert taken.reset_code is ResetCode.SESSION_LOST
        for stream in (unseen, waiting):
            assert stream.reset_code is (None if is_back else ResetCode.SESSION_LOST)
        assert pair.client.held == 0


def test_a_session_that_has_ended_adopts_nothing() -> None:
    old, new = Pair(), Pair()
    stream = old.client.open(START)
    feed(old.client, pack(Goaway(int(SessionCode.DRAINING), "")))
    new.client.end(SessionCode.NORMAL, "")
    with pytest.raises(OpenError):
        new.client.adopt(stream, START)


def test_nothing_is_opened_at_a_server_that_drains() -> None:
    pair = Pair()
    feed(pair.client, pack(Goaway(int(SessionCode.DRAINING), "")))
    pair.client.open(START).write(b"x")
    assert collect(pair.client, START) == []
