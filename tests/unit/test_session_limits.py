"""What a session and its worker allow, and what happens at each limit."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import (
    GAP_COST,
    KIB,
    MIB,
    MIN_SEND_ROOM,
    OPEN_WORK,
    REPEAT_SPACING,
    SESSION_COST,
    STREAM_COST,
    SUBFLOW_COST,
    Limits,
)
from fastmtcp.engine.quota import Bucket, ClientQuota, Holding, Memory
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.send_buffer import BUFFER_COST
from fastmtcp.engine.wire.codec import FrameReader
from fastmtcp.engine.wire.errors import RemoteError, ResetCode, SessionCode
from fastmtcp.engine.wire.frames import Ack, Blocked, Data, Gone, Open, Ping, Reset, ResetAck

from tests.unit.wire import START, Pair, collect, events, feed, frames_of, opened, pack, updated


def server(
    limits: Limits | None = None, memory: Memory | None = None, client: ClientQuota | None = None
) -> Session:
    session = Session(
        opener=False, limits=limits or Limits(), now=START, memory=memory, client=client
    )
    session.attach(0, START).ready = True
    return session


def opens(first: int, count: int) -> bytes:
    return b"".join(pack(Open(n, 1 << 20, False)) for n in range(first, first + count))


# --- opening ----------------------------------------------------------------------------------


def test_a_bucket_lets_so_many_through_in_a_second() -> None:
    bucket = Bucket(10, START)
    assert [bucket.take(START) for _ in range(12)] == [True] * 10 + [False] * 2
    assert bucket.take(START + 0.125)
    assert not bucket.take(START + 0.125)
    assert [bucket.take(START + 100) for _ in range(12)] == [True] * 10 + [False] * 2
    assert all(Bucket(0, START).take(START) for _ in range(1000))


def test_more_opens_than_allowed_in_a_second_are_reset_and_counted() -> None:
    session = server(Limits(opens_per_second=10))
    feed(session, opens(0, 15))
    assert len(opened(session)) == 10
    assert session.holding.client.take_refused() == {"opens_per_second": 5}
    resets = [f for f, _ in frames_of(collect(session, START)) if isinstance(f, Reset)]
    assert resets == [Reset(number, ResetCode.LIMIT) for number in range(10, 15)]
    # Those that are there go on, and later new ones may come.
    feed(session, pack(Data(0, 0, False), b"abc"))
    assert session.streams[0].receive.data.ready_bytes == 3
    feed(session, opens(15, 5), START + 0.5)
    assert len(opened(session)) == 5


def test_the_opens_of_one_client_are_counted_over_all_its_sessions() -> None:
    limits = Limits(opens_per_second=10)
    client, other = (ClientQuota(opens=Bucket(10, START)) for _ in range(2))
    first, second = server(limits, client=client), server(limits, client=client)
    stranger = server(limits, client=other)
    for session in (first, second, stranger):
        feed(session, opens(0, 6))
    assert [len(one.streams) for one in (first, second, stranger)] == [6, 4, 6]
    # And what was refused, as it is told once for all of them.
    assert client.take_refused() == {"opens_per_second": 2}
    assert client.take_refused() == other.take_refused() == {}
    feed(second, opens(6, 6), START + 0.5)
    assert len(second.streams) == 9


def test_the_streams_of_one_client_are_counted_over_all_its_sessions() -> None:
    client, other = ClientQuota(max_streams=10), ClientQuota(max_streams=10)
    first, second, stranger = server(client=client), server(client=client), server(client=other)
    feed(first, opens(0, 6))
    feed(second, opens(0, 6))
    feed(stranger, opens(0, 6))
    assert [len(one.streams) for one in (first, second, stranger)] == [6, 4, 6]
    assert second.holding.client.take_refused() == {"max_client_streams": 2}
    assert first.holding.client.take_refused() == stranger.holding.client.take_refused() == {}
    feed(first, pack(Reset(0, 0)))
    feed(second, opens(6, 2))
    assert len(second.streams) == 5
    first.end(SessionCode.NORMAL, "")
    assert client.streams == 5
    second.end(SessionCode.NORMAL, "")
    assert client.streams == 0


def test_more_streams_at_once_than_allowed_are_reset_and_counted() -> None:
    session = server(Limits(max_streams=3))
    feed(session, opens(0, 5))
    assert session.holding.client.take_refused() == {"max_streams": 2}
    assert len(session.streams) == 3


# --- memory -----------------------------------------------------------------------------------


def fill(session: Session, streams: int) -> None:
    """As many bytes as a stream may send without waiting, on each of many."""
    for number in range(streams):
        feed(session, pack(Open(number, 1 << 20, False), bytes(64 * KIB)))


def test_the_memory_is_what_all_sessions_hold() -> None:
    memory = Memory(10 * MIB)
    first, second = server(memory=memory), server(memory=memory)
    fill(first, 3)
    feed(second, pack(Open(0, 1 << 20, False)))
    feed(second, pack(Data(0, 100, False), b"behind a gap"))
    stream = second.streams[0]
    stream.write(b"to the peer")
    both = 2 * (SESSION_COST + SUBFLOW_COST)
    sent = 11 + BUFFER_COST
    received = 3 * 64 * KIB + 12 + GAP_COST
    assert memory.free == 10 * MIB - both - 4 * STREAM_COST - received - sent
    first.streams[0].take(64 * KIB, START)
    feed(second, pack(Reset(0, 0)))
    assert memory.free == 10 * MIB - both - 3 * STREAM_COST - 2 * 64 * KIB
    first.end(SessionCode.NORMAL, "")
    second.end(SessionCode.NORMAL, "")
    assert memory.free == 10 * MIB


def test_a_session_that_has_ended_holds_what_an_application_still_takes() -> None:
    memory = Memory(10 * MIB)
    session = server(memory=memory)
    feed(session, pack(Open(0, 1 << 20, True), b"all of it"))
    (stream,) = opened(session)
    stream.finish()
    collect(session, START)
    feed(session, pack(Ack(0, 1, 1 << 20)))
    session.end(SessionCode.NORMAL, "")
    assert stream.reset_code is None
    assert memory.free == 10 * MIB - 9
    stream.take(9, START)
    assert memory.free == 10 * MIB
    assert not memory.holdings


def test_who_holds_most_has_to_go_when_the_memory_is_used_up() -> None:
    memory = Memory(4 * MIB)
    honest, greedy = server(memory=memory), server(memory=memory)
    fill(greedy, 60)
    fill(honest, 10)
    assert greedy.ended is not None
    code, reason = greedy.ended
    assert code is SessionCode.LIMIT
    assert "memory" in reason
    assert not greedy.peer.ended
    assert greedy.streams == {}
    assert honest.ended is None
    assert len(honest.streams) == 10


def test_of_many_clients_the_one_with_most_has_to_go_not_the_largest_session() -> None:
    memory = Memory(9 * MIB // 2)
    greedy = ClientQuota()
    crowd = [server(memory=memory, client=greedy) for _ in range(5)]
    honest = server(memory=memory, client=ClientQuota())
    fill(honest, 20)
    for session in crowd:
        fill(session, 10)
    assert honest.ended is None
    assert sum(session.ended is not None for session in crowd) == 1


def test_the_memory_of_one_client_is_counted_over_all_its_sessions() -> None:
    """Three quarters of what is there for all, in one session or in many."""
    memory = Memory(64 * MIB)
    client, other = ClientQuota(), ClientQuota()
    holdings = [Holding(memory, client) for _ in range(100)]
    for _ in range(10):
        for holding in holdings:
            holding.add(holding.spare)
    assert 41.9 * MIB < client.bytes <= 42 * MIB
    assert sum(holding.bytes for holding in holdings) == client.bytes
    assert sum(holding.spare for holding in holdings) < MIB
    honest = Holding(memory, other)
    assert 14 * MIB * 3 / 4 * 8 / 9 - 1 < honest.spare < 14.1 * MIB * 3 / 4 * 8 / 9
    taken = honest.spare
    honest.add(taken)
    assert honest.spare == 0
    assert all(holding.spare == 0 for holding in holdings)
    # The others have to give back first, and then there is as much for it as for all of them.
    before = client.bytes
    holdings[0].add(-before)
    assert honest.spare > taken / 2


def test_windows_grow_no_more_when_little_memory_is_left() -> None:
    memory = Memory(4 * MIB)
    session = server(memory=memory)
    fill(server(memory=memory), 54)
    feed(session, pack(Open(0, 1 << 20, False), bytes(20 * KIB)))
    session.streams[0].take(20 * KIB, START)
    assert session.streams[0].receive.window.size == 64 * KIB


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_sessions_come_to_have_the_same_memory_whoever_was_first(count: int) -> None:
    memory = Memory(16 * MIB)
    sessions = [Holding(memory) for _ in range(count)]
    for begun in range(count):
        for _ in range(100):
            for holding in sessions[: begun + 1]:
                holding.add(-holding.bytes // 4)  # as much of it was acknowledged
                holding.add(holding.spare)
    fair = 28 * MIB / (1 + 2 * count)  # b = 8 x ((3 x (14 MiB - count x b) - b) / 4)
    assert [holding.bytes for holding in sessions] == pytest.approx([fair] * count, rel=0.02)
    assert memory.free >= memory.reserve == 2 * MIB


def test_sessions_of_one_client_come_to_have_the_same() -> None:
    memory = Memory(16 * MIB)
    client = ClientQuota()
    sessions = [Holding(memory, client) for _ in range(4)]
    for begun in range(4):
        for _ in range(100):
            for holding in sessions[: begun + 1]:
                holding.add(-holding.bytes // 4)
                holding.add(holding.spare)
    most = max(holding.bytes for holding in sessions)
    assert min(holding.bytes for holding in sessions) > 0.95 * most
    assert 9.5 * MIB < client.bytes < 10.5 * MIB


def test_a_session_that_has_more_than_its_share_takes_nothing() -> None:
    memory = Memory(16 * MIB)
    old, new = Holding(memory), Holding(memory)
    for _ in range(50):
        old.add(old.spare)
    assert old.bytes == pytest.approx(28 * MIB / 3, abs=64)
    assert old.spare == 0
    new.add(new.spare)
    assert new.bytes == pytest.approx((14 * MIB - old.bytes) * 3 / 4 * 8 / 9, abs=64)
    old.add(-1 * MIB)
    assert old.spare == 0


def test_a_session_may_always_send_something() -> None:
    """Others that take all they can and acknowledge nothing must not stop it."""
    memory = Memory(64 * MIB)
    limits = Limits(backlog=64 * MIB)
    for _ in range(20):
        hog = server(limits, memory)
        feed(hog, pack(Open(0, 1 << 40, False)))
        stream = hog.streams[0]
        while stream.room:
            stream.write(bytes(stream.room))
    session = server(limits, memory)
    assert session.holding.spare == 0
    assert memory.free > 0
    feed(session, pack(Open(0, 1 << 40, False)))
    stream = session.streams[0]
    assert stream.room >= MIN_SEND_ROOM
    stream.write(bytes(stream.room))
    assert stream.room == 0
    assert session.held == MIN_SEND_ROOM
    events(session)
    # It waits for the others, who do not tell it: so it looks by itself.
    session.on_time(START + 1)
    assert stream in updated(session)


# --- idle -------------------------------------------------------------------------------------


def test_a_stream_on_which_nothing_moves_is_reset() -> None:
    pair = Pair(server_limits=Limits(stream_idle_timeout=10))
    busy, theirs = pair.open(b"abc")
    quiet, _ = pair.open(b"abc")
    for _ in range(14):
        pair.now += 1
        busy.write(b"x")
        pair.exchange()
    assert quiet.reset_code is ResetCode.IDLE
    assert busy.reset_code is theirs.reset_code is None
    assert len(pair.server.streams) == 1


def test_a_half_closed_stream_on_which_nothing_moves_is_reset() -> None:
    for side in ("client", "server"):
        pair = Pair(server_limits=Limits(half_closed_timeout=10))
        open_, _ = pair.open(b"abc")
        both, both_theirs = pair.open(b"abc")
        quiet, quiet_theirs = pair.open(b"abc")
        busy, busy_theirs = pair.open(b"abc")
        for stream in (both, both_theirs, quiet if side == "client" else quiet_theirs, busy):
            stream.finish()
        # 3 s more, as nobody takes what came before.
        for _ in range(18):
            pair.now += 1
            busy_theirs.write(b"x")
            pair.exchange()
        assert quiet.reset_code is quiet_theirs.reset_code is ResetCode.IDLE
        assert not any(one.reset_code for one in (open_, both, both_theirs, busy, busy_theirs))


def test_streams_may_be_idle_for_ever_unless_told_otherwise() -> None:
    pair = Pair()
    quiet, _ = pair.open(b"abc")
    for _ in range(100):
        pair.now += 100
        pair.exchange()
    assert quiet.reset_code is None


def test_a_session_without_a_stream_ends_if_there_is_a_limit() -> None:
    session = server(Limits(session_idle_timeout=5))
    feed(session, opens(0, 1))
    for second in range(1, 20):
        session.on_time(START + second)
        session.receive(session.subflows[0], memoryview(pack(Ping(1))), START + second)
    assert session.ended is None
    feed(session, pack(Reset(0, 0)), START + 19)
    for second in range(20, 25):
        assert session.ended is None
        session.on_time(START + second)
    assert session.ended == (SessionCode.NORMAL, "no stream for 5 s")


# --- frames -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "wire"),
    [
        (Limits(max_header=320), pack(Open(0, 0, False, "x" * 321))),
        (Limits(max_payload=256 * KIB), pack(Data(0, 0, False), bytes(256 * KIB + 1))),
    ],
)
def test_a_receiver_may_be_set_to_take_smaller_frames(limits: Limits, wire: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        feed(server(limits), wire)
    assert caught.value.code is SessionCode.PROTOCOL
    feed(server(), opens(0, 1) + wire[:1000])


def test_a_reader_stops_when_it_has_done_its_work_and_goes_on_where_it_was() -> None:
    wire = memoryview(b"".join(pack(Ping(number)) for number in range(100)))
    seen: list[object] = []
    reader = FrameReader(seen.append, lambda *_: None)
    position = 0
    rounds = 0
    while position < len(wire):
        # Cut anywhere, also within a frame.
        taken = reader.feed(wire[position : position + 77], 3)
        assert 0 < taken <= 77
        position += taken
        rounds += 1
    assert seen == [Ping(number) for number in range(100)]
    assert rounds > 30


def test_an_open_is_more_work_than_other_frames() -> None:
    session = server()
    wire = memoryview(opens(0, 10))
    taken = session.receive(session.subflows[0], wire, START, 5 * OPEN_WORK)
    at_first = len(opened(session))
    assert 4 <= at_first <= 5
    assert session.subflows[0].bytes_received == taken
    session.receive(session.subflows[0], wire[taken:], START)
    assert len(opened(session)) == 10 - at_first


def test_one_range_again_and_again_is_not_walked_through_piece_by_piece() -> None:
    """Every second byte, then what is between: after that it is one piece, not thousands."""
    session = server()
    feed(session, opens(0, 1))
    feed(session, b"".join(pack(Data(0, at, False), b"x") for at in range(1, 16_000, 2)))
    data = session.streams[0].receive.data
    assert data.gaps == 8000
    feed(session, pack(Data(0, 1, False), b"x" * 16_000))
    assert data.gaps < 200
    held, free = data.held, session.table.gaps.free
    feed(session, pack(Data(0, 1, False), b"x" * 16_000))
    assert (data.held, session.table.gaps.free) == (held, free)
    feed(session, pack(Data(0, 0, False), b"x"))
    assert data.next == data.ready_bytes == data.held == 16_001
    assert session.table.gaps.free == session.limits.max_gaps


# --- control frames -----------------------------------------------------------------------------


def test_a_subflow_is_given_up_once_however_often_the_peer_says_so() -> None:
    session = server()
    session.attach(1, START)
    feed(session, pack(Gone(1)) * 1000 + pack(Gone(7)) * 1000)
    assert events(session).gone == [session.subflows[1]]


def test_the_death_of_many_subflows_has_all_said_again_once() -> None:
    pair = Pair(subflows=20)
    for _ in range(50):
        pair.open(b"abc")
    for number in range(10):
        pair.server.detach(pair.server.subflows[number], pair.now)
    frames = frames_of(collect(pair.server, pair.now))
    assert sum(isinstance(frame, Ack) for frame, _ in frames) == 50
    # Not again at once, but it will be.
    pair.server.detach(pair.server.subflows[10], pair.now)
    assert not any(isinstance(f, Ack) for f, _ in frames_of(collect(pair.server, pair.now)))
    assert pair.server.deadline() == pytest.approx(pair.now + 50 * REPEAT_SPACING)
    later = pair.now + 50 * REPEAT_SPACING
    frames = frames_of(collect(pair.server, later))
    assert sum(isinstance(frame, Ack) for frame, _ in frames) == 50


def test_begging_grows_no_window_beyond_the_pool() -> None:
    session = server(Limits(window_pool=1 * MIB))
    feed(session, opens(0, 20))
    for limit in range(1000):
        feed(session, b"".join(pack(Blocked(n, 2**62 + limit)) for n in range(20)))
    grown = sum(s.receive.window.size - 64 * KIB for s in session.streams.values())
    assert grown <= 1 * MIB


def test_confirmations_of_nothing_do_nothing() -> None:
    session = server()
    feed(session, b"".join(pack(ResetAck(number)) for number in range(10_000)))
    assert collect(session, START) == []
