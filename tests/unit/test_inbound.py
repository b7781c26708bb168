"""What the peer's frames do, and what they must not do."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import MAX_REASON, MIB, OPEN_WORK, Limits
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import NO_ID
from fastmtcp.engine.subflows.subflow import Cause, Subflow
from fastmtcp.engine.wire.errors import OpenError, RemoteError, ResetCode, SessionCode
from fastmtcp.engine.wire.frames import (
    Ack,
    Busy,
    Closed,
    Data,
    Goaway,
    Gone,
    Got,
    Open,
    Ping,
    Pong,
    Reset,
    ResetAck,
    Retire,
    Stalled,
)

from tests.unit.wire import (
    START,
    Pair,
    collect,
    events,
    feed,
    frames_of,
    pack,
    parse,
    ready_bytes,
    updated,
)

NOW = START


def test_closed_for_an_unfinished_stream_wakes_its_relay() -> None:
    pair = Pair()
    mine, _ = pair.open(b"abc")
    events(pair.client)
    feed(pair.client, pack(Closed(mine.stream_id)), pair.now)
    assert mine.reset_code is ResetCode.CANCELLED
    assert mine in updated(pair.client)


@pytest.mark.parametrize("lacks", ["our FIN", "our FIN on its way", "the peer's FIN"])
def test_closed_stands_for_an_end_only_if_both_ends_were_said(lacks: str) -> None:
    pair = Pair()
    mine, theirs = pair.open(b"abc")
    if lacks != "the peer's FIN":
        theirs.finish()
        pair.exchange()
    if lacks != "our FIN":
        mine.finish()
    if lacks == "the peer's FIN":
        collect(pair.client, pair.now)
    feed(pair.client, pack(Closed(mine.stream_id)), pair.now)
    assert mine.reset_code is ResetCode.CANCELLED


def test_a_reset_wakes_its_relay_and_is_answered() -> None:
    pair = Pair()
    mine, _ = pair.open(b"abc")
    events(pair.client)
    feed(pair.client, pack(Reset(mine.stream_id, int(ResetCode.REFUSED))), pair.now)
    assert mine.reset_code is ResetCode.REFUSED
    assert mine in updated(pair.client)
    assert frames_of(collect(pair.client, pair.now)) == [(ResetAck(mine.stream_id), b"")]


def test_acknowledged_bytes_are_counted() -> None:
    pair = Pair()
    mine, _ = pair.open(b"abc")
    assert pair.client.table.acked == 3
    mine.write(b"defgh")
    pair.exchange()
    assert pair.client.table.acked == 8
    assert pair.client.held == 0


def test_an_acknowledgement_is_news_for_the_relay_and_an_old_one_is_not() -> None:
    pair = Pair()
    mine, _ = pair.open(b"abc")
    mine.write(b"def")
    collect(pair.client, pair.now)
    events(pair.client)
    mine.idle_probes = 7
    feed(pair.client, pack(Ack(0, 3, 0, True)), pair.now)
    assert updated(pair.client) == []
    assert mine.idle_probes == 7
    feed(pair.client, pack(Ack(0, 5, 0, True)), pair.now)
    assert updated(pair.client) == [mine]
    assert mine.idle_probes == 0


def test_the_word_that_the_target_is_connected_counts_once() -> None:
    pair = Pair()
    mine = pair.client.open(pair.now)
    mine.announce()
    pair.exchange()
    events(pair.client)
    mine.idle_probes = 3
    feed(pair.client, pack(Ack(0, 0, 0, True)), pair.now)
    assert updated(pair.client) == [mine]
    assert mine.idle_probes == 0
    mine.idle_probes = 3
    feed(pair.client, pack(Ack(0, 0, 0, True)), pair.now)
    assert updated(pair.client) == []
    assert mine.idle_probes == 3


def test_no_ack_goes_early() -> None:
    pair = Pair(limits=Limits(ack_delay=0.25))
    mine, _ = pair.open(b"abc")
    pair.now += 0.5
    pair.exchange()
    mine.write(b"def")
    pair.flush(pair.client)
    assert collect(pair.server, pair.now) == []
    pair.server.on_time(pair.now + 0.24)
    assert collect(pair.server, pair.now + 0.24) == []
    pair.server.on_time(pair.now + 0.26)
    ((ack, _),) = frames_of(collect(pair.server, pair.now + 0.26))
    assert isinstance(ack, Ack)


def test_an_open_is_work() -> None:
    session = Session(opener=False, limits=Limits(), now=NOW)
    subflow = session.attach(0, NOW)
    session.receive(subflow, memoryview(pack(Ping(1))), NOW, 100)
    usual = 100 - session.work_left
    session.receive(subflow, memoryview(pack(Open(0, 1 * MIB, False))), NOW, 100)
    assert 100 - session.work_left == usual + OPEN_WORK


class TestStalled:
    def pair(self) -> tuple[Pair, Session]:
        pair = Pair(subflows=3)
        mine, _ = pair.open(b"abc")
        mine.write(b"def")
        return pair, pair.client

    def tell(self, session: Session, number: int, now: float) -> None:
        feed(session, pack(Stalled(number)), now, subflow=2)

    def test_what_it_carries_goes_out_elsewhere(self) -> None:
        pair, client = self.pair()
        client.pull(client.subflows[0], pair.now)
        self.tell(client, 0, pair.now)
        one = client.subflows[0]
        assert (one.suspect, one.cause, one.stalls) == (True, Cause.PEER, 1)
        sent = collect(client, pair.now)
        assert sent
        assert all(subflow is not one for subflow, _ in sent)
        assert (Data(0, 3, False), b"def") in frames_of(sent)

    def test_one_that_is_suspect_keeps_its_cause(self) -> None:
        pair, client = self.pair()
        one = client.subflows[0]
        one.become_suspect(Cause.KERNEL, pair.now)
        self.tell(client, 0, pair.now + 5)
        assert (one.cause, one.suspect_since, one.stalls) == (Cause.KERNEL, pair.now, 1)
        assert not client._timers.repeat_wanted

    def test_none_that_has_just_spoken(self) -> None:
        pair, client = self.pair()
        self.tell(client, 2, pair.now)
        assert not client.subflows[2].suspect
        self.tell(client, 99, pair.now)

    def test_once_a_second(self) -> None:
        pair, client = self.pair()
        one = client.subflows[0]
        self.tell(client, 0, pair.now)
        one.clear()
        self.tell(client, 0, pair.now + 0.99)
        assert not one.suspect
        self.tell(client, 0, pair.now + 1)
        assert one.suspect


def test_gone_is_told_once_and_makes_nobody_else_suspect() -> None:
    pair = Pair(subflows=3)
    pair.open(b"abc")
    events(pair.client)
    feed(pair.client, pack(Gone(0)), pair.now, subflow=1)
    assert events(pair.client).gone == [pair.client.subflows[0]]
    feed(pair.client, pack(Gone(0)) + pack(Gone(77)), pair.now, subflow=1)
    assert pair.client.take_events() is None
    assert all(pair.client.subflows[number].works for number in (1, 2))


class TestRetire:
    """RETIRE: the last frame of each side on a subflow, and what is known by it."""

    def pair(self) -> tuple[Pair, Subflow, Subflow]:
        pair = Pair(subflows=2)
        pair.open(b"abc")
        events(pair.client)
        return pair, pair.client.subflows[0], pair.server.subflows[0]

    def part(self, pair: Pair, subflow: Subflow) -> bytes:
        """The two sides agree; returns the client's last frame."""
        pair.client.retire(subflow)
        pair.exchange()
        assert events(pair.client).parted == [subflow]
        last = pair.client.last_report(subflow)
        assert parse(last) == [(Got(0, subflow.bytes_received), b"")]
        return last

    def test_it_is_the_last_frame_of_each_side_and_both_have_had_all(self) -> None:
        pair, mine, theirs = self.pair()
        mine_read, theirs_read = mine.bytes_received, theirs.bytes_received
        pair.client._outbox.send_on(mine, Ping(1))
        pair.client.retire(mine)
        pair.client.retire(mine)
        pair.client._outbox.send_on(mine, Ping(2))
        pair.client._outbox.send(Busy())
        first, *others = collect(pair.client, pair.now)
        assert (first[0], parse(first[1])) == (
            mine,
            [(Ping(1), b""), (Retire(mine_read), b"")],
        )
        assert all(subflow is not mine for subflow, _ in others)
        feed(pair.server, first[1], pair.now)
        answer, *others = collect(pair.server, pair.now)
        assert (answer[0], parse(answer[1])) == (
            theirs,
            [(Pong(1), b""), (Retire(theirs_read + len(first[1])), b"")],
        )
        assert all(subflow is not theirs for subflow, _ in others)
        feed(pair.client, answer[1], pair.now)
        assert events(pair.client).parted == [mine]
        assert mine.is_whole
        assert not theirs.is_whole
        assert pair.server.take_events() is None
        feed(pair.server, pair.client.last_report(mine), pair.now)
        assert theirs.is_whole

    def test_nothing_is_sent_again_and_nothing_is_said(self) -> None:
        pair, mine, theirs = self.pair()
        stream = next(iter(pair.client.streams.values()))
        other = next(iter(pair.server.streams.values()))
        for session, subflow, one in ((pair.client, mine, stream), (pair.server, theirs, other)):
            one.write(b"carried by it")
            session.pull(subflow, pair.now)
            assert subflow.inflight.has_unacked()
        # All of it has been read, and the ACKs are on their way.
        feed(pair.server, self.part(pair, mine), pair.now)
        for session, subflow, one in ((pair.client, mine, stream), (pair.server, theirs, other)):
            subflow.inflight.add(one, 0, 10_000)
            subflow.delivery.got = subflow.bytes_sent
            session.detach(subflow, pair.now, by_fin=session is pair.server)
            assert subflow.reinjected == 0
            assert not one.send.lost
            assert not session._timers.repeat_wanted
            assert frames_of(collect(session, pair.now)) == []

    def test_one_that_ends_before_all_was_read_has_died(self) -> None:
        pair, mine, theirs = self.pair()
        self.part(pair, mine)
        # The client's last report was lost: a proxy has closed the connection, perhaps.
        stream = next(iter(pair.server.streams.values()))
        stream.write(b"not known to have arrived")
        theirs.inflight.add(stream, stream.send.acked, stream.send.buffer.end)
        stream.send.next = stream.send.buffer.end
        pair.server.detach(theirs, pair.now, by_fin=True)
        assert theirs.reinjected == len(b"not known to have arrived")
        assert pair.server._timers.repeat_wanted

    def test_a_server_does_not_begin_it(self) -> None:
        pair, _, _ = self.pair()
        with pytest.raises(RemoteError, match="not asked") as caught:
            feed(pair.client, pack(Retire(0)), pair.now)
        assert caught.value.code is SessionCode.PROTOCOL

    def test_more_than_was_sent_is_an_error(self) -> None:
        pair, _, theirs = self.pair()
        with pytest.raises(RemoteError, match="beyond what was sent"):
            feed(pair.server, pack(Retire(theirs.bytes_sent + 1)), pair.now)

    def test_a_second_one_is_nothing(self) -> None:
        pair, _, theirs = self.pair()
        feed(pair.server, pack(Retire(0)) * 2, pair.now)
        sent = [frame for frame, _ in frames_of(collect(pair.server, pair.now))]
        assert [type(frame) for frame in sent].count(Retire) == 1
        feed(pair.server, pack(Retire(0)), pair.now)
        assert collect(pair.server, pair.now) == []
        assert theirs.retiring


def test_what_comes_in_is_a_sign_of_life_at_that_time() -> None:
    pair = Pair()
    one = pair.client.subflows[0]
    one.pinged_at = pair.now
    wire = pack(Busy())
    feed(pair.client, wire, pair.now + 7)
    assert (one.heard_at, one.bytes_received) == (pair.now + 7, len(wire))
    assert one.pinged_at is None
    assert pair.client.peer.demand_at == pair.now + 7


class TestGoaway:
    def test_a_drain_ends_nothing(self) -> None:
        pair = Pair()
        mine, _ = pair.open(b"abc")
        feed(pair.client, pack(Goaway(int(SessionCode.DRAINING), "")), pair.now)
        assert pair.client.peer.draining
        assert not pair.client.draining
        assert pair.client.ended is None
        assert mine.reset_code is None

    def test_the_end_is_the_peers(self) -> None:
        pair = Pair()
        feed(pair.client, pack(Goaway(int(SessionCode.TIMEOUT), "x" * 500)), pair.now)
        assert pair.client.peer.ended
        assert not pair.client.peer.draining
        assert pair.client.ended == (SessionCode.TIMEOUT, "x" * MAX_REASON)


class TestEndOfASession:
    def test_data_missing_behind_a_fin_is_no_clean_end(self) -> None:
        pair = Pair()
        mine, theirs = pair.open(b"abc")
        pair.take(theirs)
        mine.finish()
        pair.exchange()
        assert pair.take(theirs) == b""
        feed(pair.client, pack(Data(0, 10, True), b"last"), pair.now)
        pair.client.end(SessionCode.TIMEOUT, "over")
        assert mine.reset_code is ResetCode.SESSION_LOST
        assert not mine.at_end

    def test_what_is_complete_is_delivered(self) -> None:
        pair = Pair()
        mine, theirs = pair.open(b"abc")
        pair.take(theirs)
        mine.finish()
        theirs.write(b"answer")
        theirs.finish()
        pair.exchange()
        events(pair.client)
        pair.client.end(SessionCode.TIMEOUT, "over")
        assert mine.reset_code is None
        assert mine in updated(pair.client)
        assert ready_bytes(mine) == b"answer"

    def test_a_stream_without_any_end_is_reset(self) -> None:
        pair = Pair()
        mine, theirs = pair.open(b"abc")
        for session, stream in ((pair.client, mine), (pair.server, theirs)):
            session.end(SessionCode.TIMEOUT, "over")
            session.end(SessionCode.NORMAL, "twice")
            assert session.ended == (SessionCode.TIMEOUT, "over")
            assert stream.reset_code is ResetCode.SESSION_LOST
            assert session.is_quiet


class TestLimitsOfStreams:
    @pytest.mark.parametrize(("own", "peers"), [(8, 0), (8, 100), (100, 8)])
    def test_the_lesser_of_both_sides_counts(self, own: int, peers: int) -> None:
        session = Session(opener=True, limits=Limits(max_streams=own), now=NOW, peer_streams=peers)
        opened = [session.open(NOW) for _ in range(9)]
        session.pick(NOW + 60)  # time enough for the rate of opens
        assert [stream.stream_id for stream in opened].count(NO_ID) == 1

    def test_none_after_the_end(self) -> None:
        session = Session(opener=True, limits=Limits(), now=NOW)
        session.end(SessionCode.NORMAL, "over")
        with pytest.raises(OpenError):
            session.open(NOW)


class TestDetach:
    def test_a_session_knows_since_when_it_has_no_subflow(self) -> None:
        pair = Pair(subflows=2)
        one, other = pair.client.subflows.values()
        assert pair.client._timers.empty_since is None
        pair.client.detach(one, NOW + 5)
        assert pair.client._timers.empty_since is None
        collect(pair.client, NOW + 5)
        pair.client.detach(other, NOW + 6)
        assert pair.client._timers.empty_since == NOW + 6

    @pytest.mark.parametrize("by_fin", [False, True])
    @pytest.mark.parametrize("opener", [False, True])
    def test_the_next_subflow_tells_of_the_last(self, opener: bool, by_fin: bool) -> None:
        """A middlebox may have ended it at one side only, and the peer goes on using it."""
        session = Session(opener=opener, limits=Limits(), now=NOW)
        session.detach(session.attach(0, NOW), NOW, by_fin=by_fin)
        assert collect(session, NOW + 5) == []
        session.attach(1, NOW + 6).ready = True
        ((carrier, _),) = sent = collect(session, NOW + 6)
        assert (carrier.subflow_id, frames_of(sent)) == (1, [(Gone(0), b"")])

    def test_the_peer_is_told_and_once(self) -> None:
        pair = Pair(subflows=2)
        one = pair.client.subflows[0]
        pair.client.detach(one, NOW)
        pair.client.detach(one, NOW)
        assert (Gone(0), b"") in frames_of(collect(pair.client, NOW))
        assert pair.client.past.count == 1
        assert not one.ready

    def test_after_the_end_nothing_goes_out_again(self) -> None:
        pair = Pair(subflows=2)
        pair.client.end(SessionCode.NORMAL, "over")
        pair.client.detach(pair.client.subflows[0], NOW)
        assert not pair.client._outbox
        assert not pair.client._timers.repeat_wanted
        assert pair.client.past.count == 1
