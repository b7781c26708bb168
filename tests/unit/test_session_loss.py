"""Subflows die: what they carried goes out again, on those that are left."""

from __future__ import annotations

import itertools

import pytest
from fastmtcp.engine.limits import KIB, MAX_OWN_FRAMES, MIB, Limits
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.rate import Sample
from fastmtcp.engine.wire.errors import ResetCode, SessionCode
from fastmtcp.engine.wire.frames import Ack, Closed, Data, Goaway, Open, Ping, Pong, Reset

from tests.unit.test_session import assert_nothing_is_left, finish_both
from tests.unit.wire import Pair, collect, feed, frames_of, opened, pack, parse, ready_bytes


def pull(session: Session, subflow: int, now: float) -> bytes:
    buffers, _ = session.pull(session.subflows[subflow], now)
    return b"".join(buffers)


def test_what_a_dead_subflow_carried_goes_out_again() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"start")
    pair.take(theirs)
    data = bytes(range(256)) * 100
    mine.write(data)
    pull(pair.client, 0, pair.now)
    assert pair.client.pick(pair.now) is None
    pair.detach(0)
    pair.exchange()
    assert ready_bytes(theirs) == data
    assert pair.client.held == 0


def test_bytes_are_kept_until_they_are_acknowledged_through_one_death_after_another() -> None:
    pair = Pair(subflows=6)
    mine, theirs = pair.open(b"start")
    pair.take(theirs)
    data = bytes(range(256)) * 100
    mine.write(data)
    for subflow_id in range(5):
        assert pull(pair.client, subflow_id, pair.now)
        assert pair.client.held == len(data)
        pair.detach(subflow_id)
    pair.exchange()
    assert ready_bytes(theirs) == data


def test_nothing_that_was_acknowledged_is_sent_again() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"start")
    mine.write(bytes(1000))
    pair.exchange()
    pair.detach_at(pair.client, 0)
    assert all(not payload for _, payload in pair.exchange())
    assert theirs.receive.data.next == 1005


def test_what_came_twice_is_passed_on_once() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"start")
    pair.take(theirs)
    mine.write(b"abcdef")
    first = pull(pair.client, 0, pair.now)
    pair.detach_at(pair.client, 0)
    feed(pair.server, first, subflow=0)
    pair.flush(pair.client)
    pair.detach_at(pair.server, 0)
    pair.exchange()
    assert ready_bytes(theirs) == b"abcdef"


def test_a_lost_open_and_a_lost_fin_are_repeated() -> None:
    pair = Pair()
    mine = pair.client.open(pair.now, "target:80", "192.0.2.1:4000")
    mine.write(b"abc")
    mine.finish()
    pull(pair.client, 0, pair.now)
    pair.detach(0)
    pair.exchange()
    (theirs,) = opened(pair.server)
    assert (theirs.target, theirs.source) == ("target:80", "192.0.2.1:4000")
    assert pair.take(theirs) == b"abc"
    assert theirs.at_end
    pair.detach(1)
    pair.attach(2)
    theirs.finish()
    pull(pair.server, 2, pair.now)
    pair.detach(2)
    pair.attach(3)
    pair.exchange()
    assert mine.at_end
    pair.take(mine)
    assert_nothing_is_left(pair)


def test_a_half_sent_frame_counts_as_far_as_it_came() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"start")
    pair.take(theirs)
    data = bytes(range(256)) * 40
    mine.write(data)
    mine.finish()
    wire = pull(pair.client, 0, pair.now)
    feed(pair.server, wire[: len(wire) // 2], subflow=0)
    got = ready_bytes(theirs)
    assert 0 < len(got) < len(data)
    assert got == data[: len(got)]
    pair.detach(0)
    pair.exchange()
    assert ready_bytes(theirs) == data
    assert pair.take(theirs) == data
    assert theirs.at_end


def test_lost_ranges_go_before_new_bytes() -> None:
    pair = Pair()
    mine, _ = pair.open(b"start")
    mine.write(b"old")
    pull(pair.client, 0, pair.now)
    mine.write(b"new")
    pair.detach_at(pair.client, 0)
    payloads = [payload for _, payload in frames_of(collect(pair.client, pair.now)) if payload]
    assert payloads == [b"old", b"new"]


def test_all_subflows_die_and_come_back() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"start")
    pair.take(theirs)
    mine.write(b"abc")
    theirs.write(b"xyz")
    for session in (pair.client, pair.server):
        collect(session, pair.now)
    pair.detach(0)
    pair.detach(1)
    assert pair.client.pick(pair.now) is None
    mine.write(b"def")
    pair.now += 60
    for session in (pair.client, pair.server):
        assert session.on_time(pair.now) == []
        assert session.ended is None
    pair.attach(2)
    pair.exchange()
    assert ready_bytes(theirs) == b"abcdef"
    assert ready_bytes(mine) == b"xyz"


def test_a_lost_ack_is_repeated_by_the_side_that_saw_the_death() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"start")
    mine.write(b"abc")
    pair.flush(pair.client)
    pair.now += 1
    pair.server.on_time(pair.now)
    assert frames_of(collect(pair.server, pair.now))  # the ACK: it dies with its subflow
    pair.detach_at(pair.server, 0)
    pair.flush(pair.server)
    assert pair.client.held == 0
    assert theirs.receive.data.next == 8


@pytest.mark.parametrize("detach", [True, False])
def test_a_lost_ack_is_asked_for_by_the_other_side(detach: bool) -> None:
    """At once if it saw the subflow die, else after a while without progress."""
    pair = Pair()
    mine, _ = pair.open(b"start")
    mine.write(b"abc")
    pair.flush(pair.client)
    pair.now += 1
    pair.server.on_time(pair.now)
    collect(pair.server, pair.now)
    assert pair.client.held == 3
    if detach:
        carriers = [
            number for number, s in pair.client.subflows.items() if s.inflight.has_unacked()
        ]
        assert len(carriers) == 1
        pair.detach_at(pair.client, 1 - carriers[0])
    else:
        for _ in range(3):
            pair.now += 1.01
            pair.client.on_time(pair.now)
    pair.exchange()
    assert pair.client.held == 0


@pytest.mark.parametrize("detach", [True, False])
def test_lost_credit_is_asked_for(detach: bool) -> None:
    """The peer holds everything and gave new credit, but that died on the way."""
    pair = Pair()
    mine, theirs = pair.open()
    mine.write(bytes(mine.room))
    pair.exchange()
    pair.take(theirs)
    (lost,) = frames_of(collect(pair.server, pair.now))
    assert isinstance(lost[0], Ack)
    assert mine.room == 0
    if detach:
        pair.detach_at(pair.client, 0)
    else:
        for _ in range(3):
            pair.now += 1.01
            pair.client.on_time(pair.now)
    pair.exchange()
    assert mine.room >= 64 * KIB


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("finished", [True, False])
def test_that_the_target_is_connected_is_said_again(detach: bool, finished: bool) -> None:
    pair = Pair()
    mine = pair.client.open(pair.now)
    mine.write(b"first bytes")
    if finished:
        mine.finish()
    pair.exchange()
    (theirs,) = opened(pair.server)
    theirs.confirm()
    lost = frames_of(collect(pair.server, pair.now + 0.1))
    assert not lost
    pair.server.on_time(pair.now + 0.1)
    ((lost_ack, _),) = frames_of(collect(pair.server, pair.now + 0.1))
    assert isinstance(lost_ack, Ack)
    assert lost_ack.connected
    if detach:
        pair.detach_at(pair.server, 0)
        pair.exchange()
    else:
        assert pair.exchange() == []
        assert not mine.connected
        # Nobody has seen a death: the client asks.
        for _ in range(3):
            pair.now += 1.01
            pair.client.on_time(pair.now)
        pair.exchange()
    assert mine.connected


def test_asking_gets_rarer() -> None:
    pair = Pair()
    mine, _ = pair.open(b"start")
    mine.write(b"abc")
    collect(pair.client, pair.now)
    asked = []
    for tick in range(70):
        pair.now += 1.0
        for subflow in pair.client.subflows.values():
            subflow.heard_at = pair.now
        pair.client.on_time(pair.now)
        if (Data(mine.stream_id, 5, False), b"") in frames_of(collect(pair.client, pair.now)):
            asked.append(tick)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert asked[0] <= 2
    assert max(gaps) <= 15
    assert len(asked) <= 12


# --- Closed: the peer has finished with a stream that we still hold -------------------------------


def finished_at_server(pair: Pair) -> tuple[Stream, Stream]:
    """A stream that the server has finished while the client misses the server's last ACK."""
    mine, theirs = pair.open(b"abc")
    pair.take(theirs)
    theirs.finish()
    pair.exchange()
    pair.take(mine)
    mine.write(b"last")
    mine.finish()
    pair.flush(pair.client)
    pair.take(theirs)
    assert pair.server.streams == {}
    pair.now += 1
    pair.server.on_time(pair.now)
    collect(pair.server, pair.now)  # lost
    return mine, theirs


def test_closed_stands_for_the_last_ack() -> None:
    pair = Pair()
    mine, _ = finished_at_server(pair)
    assert not mine.finished
    assert pair.client.held == 4
    pair.detach_at(pair.client, 0)
    frames = pair.exchange()
    assert (Closed(mine.stream_id), b"") in frames
    assert mine.finished
    assert mine.reset_code is None
    assert_nothing_is_left(pair)


def test_closed_while_bytes_wait_to_be_sent_again() -> None:
    """The subflow died, its range is queued as lost, and then comes the news that all arrived."""
    pair = Pair()
    mine, _ = finished_at_server(pair)
    for subflow in pair.client.subflows.values():
        subflow.ready = False
    pair.detach_at(pair.client, 0)
    assert mine.send.lost
    closed = pack(Closed(mine.stream_id))
    feed(pair.client, closed, subflow=1)
    pair.server.subflows[1].bytes_sent += len(closed)
    assert mine.finished
    pair.client.subflows[1].ready = True
    assert_nothing_is_left(pair)


def test_closed_before_the_application_took_everything() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"abc")
    pair.take(theirs)
    theirs.write(b"answer")
    theirs.finish()
    mine.finish()
    pair.exchange()
    pair.take(theirs)
    feed(pair.client, pack(Closed(mine.stream_id)))
    assert mine.reset_code is None
    assert not mine.at_end
    assert pair.take(mine) == b"answer"
    assert mine.at_end
    assert_nothing_is_left(pair)


def test_closed_for_an_unfinished_stream_is_a_reset_not_an_end() -> None:
    for finish in (False, True):
        pair = Pair()
        mine, theirs = pair.open(b"abc")
        theirs.write(b"half of the ans")
        pair.exchange()
        if finish:
            mine.finish()
            pair.exchange()
        feed(pair.client, pack(Closed(mine.stream_id)))
        assert mine.reset_code is not None
        assert not mine.at_end
        assert pair.client.streams == {}
        assert pair.client.held == 0


def test_closed_for_a_stream_with_an_urgent_ack_leaves_the_session_quiet() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"abc")
    theirs.write(bytes(500_000))
    for frame, payload in frames_of(collect(pair.server, pair.now)):
        feed(pair.client, pack(frame, payload))
    feed(pair.client, pack(Closed(mine.stream_id)))
    assert collect(pair.client, pair.now) == []
    assert pair.client.pick(pair.now) is None


def test_late_frames_of_a_finished_stream_are_answered_with_closed() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"abc")
    finish_both(pair, mine, theirs)
    assert_nothing_is_left(pair)
    for session in (pair.client, pair.server):
        feed(session, pack(Data(mine.stream_id, 0, False), b"late"))
        assert frames_of(collect(session, pair.now)) == [(Closed(mine.stream_id), b"")]
    feed(pair.server, pack(Open(mine.stream_id, 1 * MIB, False), b"late"))
    assert opened(pair.server) == []
    assert frames_of(collect(pair.server, pair.now)) == [(Closed(mine.stream_id), b"")]


def test_late_frames_of_a_stream_that_we_reset_are_not_answered_with_closed() -> None:
    """Closed says that all arrived; what we reset must never look like that."""
    pair = Pair()
    mine, theirs = pair.open(b"abc")
    theirs.reset(ResetCode.CANCELLED)
    collect(pair.server, pair.now)
    feed(pair.server, pack(Data(mine.stream_id, 3, True), b"late"))
    frames = [frame for frame, _ in frames_of(collect(pair.server, pair.now))]
    assert Closed(mine.stream_id) not in frames


def test_late_acks_of_a_stream_that_is_gone_are_ignored() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"abc")
    finish_both(pair, mine, theirs)
    pair.exchange()
    for session in (pair.client, pair.server):
        feed(session, pack(Ack(mine.stream_id, 2, 100)))
        feed(session, pack(Ack(999, 2, 100)))
        feed(session, pack(Closed(mine.stream_id)))
        assert collect(session, pair.now) == []


# --- the life of a subflow ------------------------------------------------------------------------


def test_a_silent_subflow_is_asked_and_then_dead() -> None:
    pair = Pair(limits=Limits(ping_interval=5, subflow_timeout=15))
    pair.now += 5
    feed(pair.client, pack(Ping(1)), pair.now, subflow=1)
    collect(pair.client, pair.now)
    assert pair.client.on_time(pair.now) == []
    ((subflow, data),) = collect(pair.client, pair.now)
    assert subflow.subflow_id == 0
    assert isinstance(parse(data)[0][0], Ping)
    pair.now += 9
    pair.client.on_time(pair.now)
    pair.now += 1
    feed(pair.client, pack(Ping(1)), pair.now, subflow=1)
    assert pair.client.on_time(pair.now) == [subflow]


def test_any_byte_is_a_sign_of_life() -> None:
    pair = Pair(subflows=1, limits=Limits(ping_interval=5, subflow_timeout=15))
    wire = pack(Pong(5))
    for index in range(len(wire) * 4):
        pair.now += 6
        assert pair.client.on_time(pair.now) == []
        feed(pair.client, wire[index % len(wire)].to_bytes(1, "big"), pair.now)


def kernel_says(acked: int, waiting: int) -> Sample:
    return Sample(
        rtt=0.1,
        delivery_rate=1e5,
        app_limited=False,
        not_sent=waiting,
        unacked=waiting,
        bytes_acked=acked,
    )


def test_a_full_queue_that_drains_is_a_sign_of_life() -> None:
    """Our PING waits behind it."""
    pair = Pair(subflows=1)
    subflow = pair.client.subflows[0]
    subflow.count_sent(5_000_000, pair.now)
    for second in range(100):
        pair.now += 1
        subflow.on_sample(kernel_says(second * 10_000, 500_000), pair.now)
        assert pair.client.on_time(pair.now) == []
        collect(pair.client, pair.now)


def test_what_tls_adds_waits_before_a_ping_too() -> None:
    """The kernel counts it, so that of so much more a PING seemed to be through at once."""
    pair = Pair(subflows=1)
    subflow = pair.client.subflows[0]
    subflow.count_sent(500_000_000, pair.now)
    subflow.overhead = 1_000_000
    for second in range(100):
        pair.now += 1
        subflow.on_sample(kernel_says(500_000_000 + second * 9_000, 500_000), pair.now)
        assert pair.client.on_time(pair.now) == []
        collect(pair.client, pair.now)


def test_a_hung_peer_is_dead_though_its_kernel_acknowledges_our_pings() -> None:
    pair = Pair(subflows=1)
    subflow = pair.client.subflows[0]
    dead = []
    for _ in range(40):
        pair.now += 1
        dead += pair.client.on_time(pair.now)
        collect(pair.client, pair.now)
        subflow.on_sample(kernel_says(subflow.bytes_sent, 0), pair.now + 0.1)
    assert subflow in dead


def test_a_ping_is_answered_on_its_own_subflow() -> None:
    pair = Pair(subflows=3)
    feed(pair.server, pack(Ping(77)), subflow=2)
    pair.server.subflows[2].ready = False
    assert collect(pair.server, pair.now) == []
    pair.server.subflows[2].ready = True
    ((subflow, data),) = collect(pair.server, pair.now)
    assert subflow.subflow_id == 2
    assert parse(data) == [(Pong(77), b"")]


def test_a_flood_of_pings_is_not_answered_without_end() -> None:
    pair = Pair()
    pair.server.subflows[0].ready = False
    feed(pair.server, pack(Ping(1)) * 1000)
    pair.server.subflows[0].ready = True
    ((_, data),) = collect(pair.server, pair.now)
    assert parse(data) == [(Pong(1), b"")] * MAX_OWN_FRAMES


def test_a_session_without_subflows_ends_after_its_timeout() -> None:
    pair = Pair(limits=Limits(session_timeout=30))
    mine, _ = pair.open(b"abc")
    mine.write(b"def")
    pair.detach(0)
    pair.detach(1)
    pair.now += 29
    pair.client.on_time(pair.now)
    assert pair.client.ended is None
    pair.now += 1.5
    pair.client.on_time(pair.now)
    assert pair.client.ended is not None
    assert pair.client.ended[0] == SessionCode.TIMEOUT
    assert mine.reset_code is ResetCode.SESSION_LOST
    assert pair.client.held == 0


def test_a_reset_is_said_again_at_once_when_a_subflow_dies() -> None:
    pair = Pair()
    mine, theirs = pair.open(b"abc")
    mine.reset(ResetCode.CANCELLED)
    collect(pair.client, pair.now)
    pair.detach_at(pair.client, 0)
    assert (Reset(mine.stream_id, 0, 3), b"") in pair.flush(pair.client)
    theirs.take(3, pair.now)
    assert theirs.reset_code is ResetCode.CANCELLED


def test_the_news_of_a_drain_survives_a_subflow() -> None:
    pair = Pair()
    pair.server.drain()
    frames = [frame for frame, _ in frames_of(collect(pair.server, pair.now))]
    assert isinstance(frames[0], Goaway)
    pair.detach_at(pair.server, 0)
    pair.flush(pair.server)
    assert pair.client.peer.draining
