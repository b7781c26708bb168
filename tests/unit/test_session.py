"""A session's streams: opened, used, half-closed, finished, reset."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import KIB, MIB, Limits
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import NO_ID, Stream
from fastmtcp.engine.wire.errors import LocalError, OpenError, ResetCode
from fastmtcp.engine.wire.frames import Ack, Blocked, Closed, Data, Open, Reset, ResetAck

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


def assert_nothing_is_left(pair: Pair) -> None:
    pair.exchange()
    for session in (pair.client, pair.server):
        assert session.streams == {}
        assert session.held == 0
        assert session.table.windows.free == session.limits.window_pool
        assert session.table.gaps.free == session.limits.max_gaps
        assert not any(subflow.inflight.has_unacked() for subflow in session.subflows.values())
        assert all(not subflow.inflight for subflow in session.subflows.values())


def finish_both(pair: Pair, mine: Stream, theirs: Stream) -> None:
    for stream in (mine, theirs):
        stream.finish()
    pair.exchange()
    for stream in (mine, theirs):
        pair.take(stream)
    assert mine.finished
    assert theirs.finished


# --- opening ----------------------------------------------------------------------------------


def test_the_first_bytes_travel_with_the_open() -> None:
    """One round trip to the first answer (rule 8): all that the server needs is in one frame."""
    pair = Pair()
    stream = pair.client.open(pair.now, "target:80")
    stream.write(b"GET /")
    ((frame, payload),) = pair.flush(pair.client)
    assert isinstance(frame, Open)
    assert frame.target == "target:80"
    assert payload == b"GET /"
    (theirs,) = opened(pair.server)
    assert theirs.target == "target:80"
    assert ready_bytes(theirs) == b"GET /"
    theirs.write(b"200 OK")
    assert (Data(stream.stream_id, 0, False), b"200 OK") in pair.flush(pair.server)
    assert ready_bytes(stream) == b"200 OK"


def test_a_stream_without_bytes_is_opened_when_it_is_announced() -> None:
    pair = Pair()
    stream = pair.client.open(pair.now)
    assert pair.client.pick(pair.now) is None
    stream.announce()
    ((frame, payload),) = pair.flush(pair.client)
    assert frame == Open(0, stream.receive.window.limit, False)
    assert payload == b""
    assert opened(pair.server)[0].receive.data.ready_bytes == 0


@pytest.mark.parametrize("data", [b"", b"first bytes"])
def test_a_stream_is_connected_when_the_server_says_so(data: bytes) -> None:
    pair = Pair()
    mine = pair.client.open(pair.now)
    mine.write(data)
    mine.announce()
    pair.exchange()
    (theirs,) = opened(pair.server)
    assert mine.send.acked == len(data)
    assert not mine.connected
    assert not theirs.connected
    events(pair.client)
    theirs.confirm()
    assert theirs.connected
    said = pair.exchange()
    assert said == [(Ack(0, len(data), theirs.receive.window.limit, True), b"")]
    assert mine.connected
    assert mine in updated(pair.client)
    theirs.confirm()
    assert pair.exchange() == []


def test_somebody_who_waits_for_the_target_is_told_at_once() -> None:
    pair = Pair()
    for data, waits in ((b"", False), (b"first bytes", True)):
        mine = pair.client.open(pair.now)
        mine.write(data)
        mine.announce()
        pair.exchange()
        opened(pair.server).pop().confirm()
        pair.flush(pair.server)
        assert mine.connected is not waits
        pair.exchange()
        assert mine.connected


def test_what_comes_from_the_target_says_that_it_is_connected() -> None:
    """It may overtake the ACK."""
    for said in (Data(0, 0, True), Data(0, 5, False)):
        pair = Pair()
        mine = pair.client.open(pair.now)
        mine.announce()
        pair.flush(pair.client)
        feed(pair.client, pack(said, b"" if said.fin else b"later"))
        assert mine.connected is said.fin
        feed(pair.client, pack(Data(0, 0, False), b"" if said.fin else b"hello"))
        assert mine.connected


def test_only_the_server_says_what_is_connected() -> None:
    pair = Pair()
    pair.client.open(pair.now).announce()
    pair.exchange()
    (theirs,) = opened(pair.server)
    feed(pair.server, pack(Data(0, 0, False), b"x"))
    feed(pair.server, pack(Ack(0, 0, 5 * MIB, True)))
    assert not theirs.connected


def test_open_data_and_fin_in_one_frame() -> None:
    pair = Pair()
    stream = pair.client.open(pair.now)
    stream.write(b"all")
    stream.finish()
    ((frame, payload),) = pair.flush(pair.client)
    assert isinstance(frame, Open)
    assert frame.fin
    assert payload == b"all"
    (theirs,) = opened(pair.server)
    assert not theirs.at_end
    assert pair.take(theirs) == b"all"
    assert theirs.at_end


def test_the_server_may_send_as_much_as_the_open_said() -> None:
    pair = Pair()
    mine, theirs = pair.open()
    assert theirs.send.limit == mine.receive.window.limit == 1 * MIB
    assert mine.send.limit == pair.server.limits.floor_window


def test_data_before_the_open_is_kept_but_not_acknowledged() -> None:
    pair = Pair()
    stream = pair.client.open(pair.now)
    stream.announce()
    (_, opening) = collect(pair.client, pair.now)[0]
    stream.write(b"abc")
    stream.finish()
    (_, data) = collect(pair.client, pair.now)[0]

    feed(pair.server, data, subflow=1)
    assert opened(pair.server) == []
    pair.server.on_time(pair.now + 1)
    assert collect(pair.server, pair.now + 1) == []

    feed(pair.server, opening, subflow=0)
    (theirs,) = opened(pair.server)
    pair.server.on_time(pair.now + 2)
    ((frame, _),) = frames_of(collect(pair.server, pair.now + 2))
    assert isinstance(frame, Ack)
    assert frame.received == 4
    assert pair.take(theirs) == b"abc"
    assert theirs.at_end


def test_an_open_that_comes_twice_opens_once_and_takes_no_credit_back() -> None:
    pair = Pair()
    stream = pair.client.open(pair.now)
    stream.write(b"abc")
    (_, opening) = collect(pair.client, pair.now)[0]
    feed(pair.server, opening)
    (theirs,) = opened(pair.server)
    feed(pair.server, pack(Ack(0, 0, 5 * MIB)))
    feed(pair.server, opening, subflow=1)
    assert opened(pair.server) == []
    assert theirs.send.limit == 5 * MIB
    assert ready_bytes(theirs) == b"abc"
    assert pair.server.table.streams_opened == 1


def test_an_ack_that_overtakes_the_open_keeps_its_credit() -> None:
    pair = Pair()
    feed(pair.server, pack(Data(0, 5, False), b"fghij"))
    feed(pair.server, pack(Ack(0, 0, 3 * MIB)))
    feed(pair.server, pack(Open(0, 1 * MIB, False), b"abcde"))
    (theirs,) = opened(pair.server)
    assert theirs.send.limit == 3 * MIB
    assert ready_bytes(theirs) == b"abcdefghij"


def test_streams_opened_before_the_server_told_its_limits_start_when_it_has() -> None:
    client = Session(opener=True, limits=Limits(), now=START)
    stream = client.open(START)
    assert stream.room == 0
    events(client)
    client.set_peer_limits(64 * KIB, 2)
    assert updated(client) == [stream]
    assert stream.room == 64 * KIB
    assert client.open(START).stream_id == 1
    assert client.open(START).stream_id == NO_ID


def test_who_may_open_how_many() -> None:
    pair = Pair(limits=Limits(max_streams=3))
    with pytest.raises(LocalError, match="only the client"):
        pair.server.open(START)
    streams = [pair.client.open(START) for _ in range(3)]
    waiting = [pair.client.open(START) for _ in range(3)]
    assert [one.stream_id for one in (*streams, *waiting)] == [0, 1, 2, NO_ID, NO_ID, NO_ID]
    with pytest.raises(OpenError, match="3 streams wait to be opened"):
        pair.client.open(START)
    streams[1].announce()
    streams[1].reset(ResetCode.CANCELLED)
    # Nobody has heard of it.
    assert [frame for frame, _ in pair.flush(pair.client)] == [Open(1, 1 << 20, False)]
    assert [one.stream_id for one in waiting] == [1, NO_ID, NO_ID]


# --- both ways --------------------------------------------------------------------------------


def test_bytes_both_ways() -> None:
    pair = Pair(subflows=3)
    mine, theirs = pair.open(b"hello")
    up = bytes(range(256)) * 200
    for start in range(0, len(up), 5000):
        mine.write(memoryview(up)[start : start + 5000])
    theirs.write(b"hi")
    pair.exchange()
    assert pair.take(theirs) == b"hello" + up
    assert pair.take(mine) == b"hi"
    assert pair.client.held == pair.server.held == 0
    finish_both(pair, mine, theirs)
    assert_nothing_is_left(pair)


def test_no_more_is_sent_than_the_peer_gave_credit_for() -> None:
    pair = Pair()
    mine, theirs = pair.open()
    floor = pair.server.limits.floor_window
    assert mine.room == floor
    mine.write(bytes(floor))
    pair.exchange()
    assert theirs.receive.data.ready_bytes == floor
    assert mine.room == 0  # acknowledged, but the application has not taken it
    assert pair.client.held == 0
    pair.take(theirs)
    pair.exchange()
    assert mine.room > floor


def test_a_stalled_reader_gets_no_more_than_its_window_however_often_we_acknowledge() -> None:
    pair = Pair()
    mine, theirs = pair.open()
    for _ in range(50):
        mine.write(bytes(mine.room))
        assert mine.room == 0
        pair.exchange()
    # It asks for more while its first bytes are on their way, but gets it at most once or twice.
    assert theirs.receive.data.ready_bytes <= 4 * pair.server.limits.floor_window


def test_room_is_bounded_by_the_backlog() -> None:
    pair = Pair(limits=Limits(floor_window=1 * MIB, backlog=100_000))
    mine, _ = pair.open()
    assert mine.room == 100_000
    mine.write(bytes(90_000))
    assert mine.room == 10_000
    pair.flush(pair.client)
    assert mine.room == 100_000


def test_a_stream_is_updated_when_there_is_room_again() -> None:
    pair = Pair(limits=Limits(floor_window=1 * MIB, backlog=100_000))
    mine, _ = pair.open()
    events(pair.client)
    mine.write(bytes(100_000))
    assert updated(pair.client) == []
    subflow = pair.client.pick(pair.now)
    assert subflow is not None
    pair.client.pull(subflow, pair.now)
    assert updated(pair.client) == [mine]


# --- the end of one direction, and of both ------------------------------------------------------


def test_half_close_leaves_the_other_direction_open() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"request")
    mine.finish()
    pair.exchange()
    assert not theirs.at_end  # bytes first, then the end
    assert pair.take(theirs) == b"request"
    assert theirs.at_end
    for part in (b"long ", b"answer"):
        theirs.write(part)
        pair.exchange()
        assert pair.take(mine) == part
    assert not mine.at_end
    assert len(pair.client.streams) == len(pair.server.streams) == 1
    theirs.finish()
    pair.exchange()
    assert mine.at_end
    pair.take(mine)
    assert_nothing_is_left(pair)


def test_the_end_is_only_there_when_all_bytes_before_it_were_taken() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"abcdef")
    mine.finish()
    pair.exchange()
    theirs.take(3, pair.now)
    assert not theirs.at_end
    theirs.take(3, pair.now)
    assert theirs.at_end


def test_a_fin_that_overtakes_its_data_is_no_end() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"abc")
    pair.take(theirs)
    mine.write(b"def")
    (_, data) = collect(pair.client, pair.now)[0]
    mine.finish()
    (_, fin) = collect(pair.client, pair.now)[0]
    feed(pair.server, fin, subflow=1)
    assert not theirs.at_end
    assert theirs.receive.data.ready_bytes == 0
    feed(pair.server, data, subflow=0)
    assert pair.take(theirs) == b"def"
    assert theirs.at_end


def test_a_stream_is_forgotten_when_both_directions_are_done_in_any_order() -> None:
    for first in (0, 1):
        pair = Pair()
        streams = pair.open(b"abc")
        for stream in (streams[first], streams[1 - first]):
            stream.write(b"x")
            stream.finish()
            pair.exchange()
            assert pair.client.streams
        for stream in (streams[1 - first], streams[first]):
            assert pair.take(stream)
        assert all(stream.finished and stream.reset_code is None for stream in streams)
        assert_nothing_is_left(pair)


def test_writing_after_finish_is_our_fault() -> None:
    pair = Pair()
    mine, _ = pair.open(b"abc")
    mine.finish()
    mine.finish()
    assert mine.room == 0
    with pytest.raises(LocalError):
        mine.write(b"x")


# --- reset ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", list(ResetCode))
@pytest.mark.parametrize("by_client", [True, False])
def test_a_reset_reaches_the_other_side(code: ResetCode, by_client: bool) -> None:
    pair = Pair()
    mine, theirs = pair.open(b"abc")
    if not by_client:
        mine, theirs = theirs, mine
    mine.write(b"unsent")
    mine.reset(code)
    mine.reset(ResetCode.INTERNAL)
    mine.write(b"ignored")
    mine.finish()
    assert mine.room == 0
    pair.exchange()
    assert mine.reset_code is code
    assert not theirs.at_end
    assert theirs in updated(pair.server if by_client else pair.client)
    # What came before is for the application. Only its own reset is worth waiting for.
    came = b"abc" * by_client + b"unsent" * (code is ResetCode.CANCELLED)
    assert ready_bytes(theirs) == came
    assert theirs.reset_code is (None if came else code)
    assert theirs.room == 0
    theirs.take(len(came), pair.now)
    assert theirs.reset_code is code
    assert not theirs.at_end
    pair.exchange()
    assert_nothing_is_left(pair)


def test_a_code_of_a_newer_peer_is_a_reset_all_the_same() -> None:
    pair = Pair()
    mine, _ = pair.open(b"abc")
    feed(pair.client, pack(Reset(mine.stream_id, 1234, 0)))
    assert mine.reset_code is ResetCode.CANCELLED


def test_a_reset_stream_never_looks_finished() -> None:
    """A truncated stream must not end like a whole one (rule 2)."""
    pair = Pair()
    mine, theirs = pair.open(b"abc")
    theirs.write(b"def")
    theirs.finish()
    mine.reset(ResetCode.CANCELLED)
    pair.exchange()
    theirs.take(3, pair.now)
    assert theirs.reset_code is not None
    assert not theirs.at_end
    assert not theirs.finished
    assert not mine.finished


def test_a_reset_behind_an_end_comes_behind_the_end() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"abc")
    mine.finish()
    pair.exchange()
    mine.reset(ResetCode.CANCELLED)
    pair.exchange()
    theirs.take(3, pair.now)
    assert theirs.at_end
    assert theirs.reset_code is None
    theirs.take_end()
    assert theirs.reset_code is ResetCode.CANCELLED
    assert not theirs.finished
    assert_nothing_is_left(pair)


def test_a_reset_is_said_again_until_it_is_confirmed() -> None:
    pair = Pair()
    mine, _ = pair.open(b"abc")
    mine.reset(ResetCode.REFUSED)
    reset = (Reset(mine.stream_id, ResetCode.REFUSED, 3), b"")
    assert frames_of(collect(pair.client, pair.now)) == [reset]
    for _ in range(3):
        pair.now += 1.1
        pair.client.on_time(pair.now)
        assert frames_of(collect(pair.client, pair.now)) == [reset]
    feed(pair.client, pack(ResetAck(mine.stream_id)))
    pair.now += 1.1
    pair.client.on_time(pair.now)
    assert collect(pair.client, pair.now) == []


def test_every_reset_is_confirmed_also_of_a_stream_that_is_gone() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"abc")
    finish_both(pair, mine, theirs)
    assert_nothing_is_left(pair)
    for session in (pair.client, pair.server):
        feed(session, pack(Reset(mine.stream_id, 0, 3)))
        assert frames_of(collect(session, pair.now)) == [(ResetAck(mine.stream_id), b"")]


def test_a_stream_whose_reset_overtakes_its_open_is_never_opened() -> None:
    pair = Pair()
    stream = pair.client.open(pair.now)
    stream.announce()
    (_, late) = collect(pair.client, pair.now)[0]
    stream.reset(ResetCode.CANCELLED)
    pair.exchange()
    feed(pair.server, late)
    assert opened(pair.server) == []
    assert pair.server.streams == {}
    assert (Closed(0), b"") in frames_of(collect(pair.server, pair.now))


def test_streams_over_the_limit_are_refused() -> None:
    pair = Pair(server_limits=Limits(max_streams=2))
    pair.client.set_peer_limits(64 * KIB, 1000)
    streams = [pair.client.open(pair.now) for _ in range(4)]
    for stream in streams:
        stream.write(b"x")
    pair.exchange()
    assert [stream.stream_id for stream in streams] == [0, 1, NO_ID, NO_ID]
    assert len(opened(pair.server)) == len(pair.server.streams) == 2
    assert pair.server.holding.client.take_refused() == {"max_streams": 2}


def test_both_sides_reset_at_once() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"abc")
    mine.reset(ResetCode.CANCELLED)
    theirs.reset(ResetCode.REFUSED)
    assert_nothing_is_left(pair)
    assert mine.reset_code is ResetCode.CANCELLED
    assert theirs.reset_code is ResetCode.REFUSED


# --- windows that grow ------------------------------------------------------------------------


def test_a_sender_that_runs_out_of_credit_asks_and_gets_more() -> None:
    limits = Limits(start_window=128 * KIB, max_window=512 * KIB)
    pair = Pair(limits=limits)
    mine, theirs = pair.open()
    for _ in range(10):
        while mine.room:
            mine.write(bytes(min(mine.room, 20_000)))
            pair.flush(pair.client)
            pair.take(theirs)
        pair.exchange()
    assert theirs.receive.window.size == 512 * KIB


def test_a_sender_asks_once_for_each_limit() -> None:
    pair = Pair()
    mine, theirs = pair.open()
    floor = pair.server.limits.floor_window
    frames = []
    for _ in range(4):
        mine.write(bytes(floor // 4))
        assert mine.room <= floor
        frames += pair.flush(pair.client)
    assert [frame for frame, _ in frames if isinstance(frame, Blocked)] == [Blocked(0, floor)]
    assert theirs.receive.window.size <= 2 * floor


def test_asking_before_the_open_is_here_acknowledges_nothing() -> None:
    """An ACK would make the client believe that its OPEN arrived."""
    pair = Pair()
    feed(pair.server, pack(Data(0, 0, False), b"abc"))
    feed(pair.server, pack(Blocked(0, 64 * KIB)))
    feed(pair.server, pack(Blocked(1, 64 * KIB)))
    assert collect(pair.server, pair.now) == []
