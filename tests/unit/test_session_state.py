"""What a session says of itself, and what it does when subflows come and go."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import KIB, MIB, Limits
from fastmtcp.engine.scheduling.watch import SAMPLE_EVERY
from fastmtcp.engine.session import Session
from fastmtcp.engine.subflows.guard import PERIOD
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.wire.errors import RemoteError, ResetCode, SessionCode
from fastmtcp.engine.wire.frames import Ack, Blocked, Closed, Data, Goaway, Ping, Reset

from tests.unit.wire import START, Pair, collect, events, feed, frames_of, pack, sample, updated

NOW = START


def session(*, subflows: int = 2, limits: Limits | None = None) -> Session:
    made = Session(opener=True, limits=limits or Limits(), now=NOW, peer_floor=1 * MIB)
    for number in range(subflows):
        made.attach(number, NOW).ready = True
    return made


class TestState:
    def test_a_new_one(self) -> None:
        one = session(subflows=0)
        assert one.created_at == NOW
        assert (one.idle, one.is_quiet, one.draining, one.ended) == (True, True, False, None)
        assert one.take_events() is None
        assert one.held == 0

    def test_idle_is_who_waits_for_no_acknowledgement(self) -> None:
        one = session()
        first, second = one.subflows.values()
        second.awaits_ack = True
        assert not one.idle
        second.awaits_ack = False
        assert one.idle
        stream = one.open(NOW)
        stream.write(b"abc")
        one.pull(first, NOW)
        first.awaits_ack = False
        assert not one.idle
        stream.send.on_ack(3, 1 * MIB)
        assert one.idle

    def test_quiet_is_who_has_no_stream_and_nothing_to_say(self) -> None:
        one = session()
        stream = one.open(NOW)
        assert not one.is_quiet
        one.finish_if_done(stream)
        assert not one.is_quiet
        stream.announce()
        collect(one, NOW)
        stream.reset(ResetCode.INTERNAL)
        assert one.streams == {}
        assert not one.is_quiet
        collect(one, NOW)
        assert one.is_quiet

    def test_a_stream_that_nobody_was_told_of_leaves_nothing_to_say(self) -> None:
        one = session()
        one.open(NOW).reset(ResetCode.CANCELLED)
        assert one.is_quiet

    def test_draining_is_said_and_ends_nothing(self) -> None:
        one = session()
        stream = one.open(NOW)
        one.drain()
        assert one.draining
        assert stream.reset_code is None
        sent = [frame for frame, _ in frames_of(collect(one, NOW))]
        assert [frame.code for frame in sent if isinstance(frame, Goaway)] == [
            int(SessionCode.DRAINING)
        ]

    def test_the_end_is_an_event_once(self) -> None:
        one = session()
        one.end(SessionCode.TIMEOUT, "over")
        assert events(one).end == (SessionCode.TIMEOUT, "over")
        assert one.take_events() is None

    def test_what_a_goaway_says_is_cut_where_a_character_ends(self) -> None:
        found = session().goaway(SessionCode.LIMIT, "\u00e9" * 300)
        assert found == pack(Goaway(int(SessionCode.LIMIT), "\u00e9" * 100))


class TestSubflows:
    def test_an_id_once_and_so_many(self) -> None:
        one = session(subflows=9, limits=Limits(max_subflows=10))
        assert not one.may_attach(3)
        assert one.may_attach(9)
        one.attach(9, NOW)
        assert not one.may_attach(10)
        for number in (3, 10):
            with pytest.raises(RemoteError) as caught:
                one.attach(number, NOW)
            assert caught.value.code is SessionCode.LIMIT

    @pytest.mark.parametrize(("role", "sends"), [(Role.UP, True), (Role.DOWN, False)])
    def test_its_role_says_who_sends(self, role: Role, sends: bool) -> None:
        for opener in (True, False):
            one = Session(opener=opener, limits=Limits(), now=NOW)
            subflow = one.attach(0, NOW, role)
            assert subflow.role is role
            assert subflow.sends is (sends is opener)

    def test_one_that_is_gone_leaves_nothing(self) -> None:
        one = session()
        first, second = one.subflows.values()
        one.open(NOW).write(b"abc")
        one.pull(first, NOW)
        one._outbox.send_on(first, Ping(1))
        first.count_sent(10, NOW)
        one.detach(first, NOW + 1)
        assert one.subflows == {1: second}
        assert one._lanes.bulk == [second]
        assert one._outbox.own == {}
        assert 0 not in one._inbound._readers
        assert not first.inflight
        assert not first.ready
        assert not first.works
        assert one._timers.repeat_wanted
        assert (one.past.count, one.past.bytes_sent) == (1, first.bytes_sent)

    def test_one_that_retires_gets_nothing_new(self) -> None:
        one = session()
        first, second = one.subflows.values()
        one.retire(first)
        assert first.retiring
        assert one._lanes.bulk == [second]

    def test_what_a_suspect_carries_goes_out_again_and_everything_is_said_again(self) -> None:
        one = session()
        first, second = one.subflows.values()
        stream = one.open(NOW)
        stream.write(b"abc")
        one.pull(first, NOW)
        first.count_sent(1, NOW)
        assert not one.on_sample(first, sample(unacked=9), NOW + 1)
        assert first.suspect
        assert one._lanes.bulk == [second]
        assert one._timers.repeat_wanted
        assert first.reinjected == 4
        assert first.inflight.has_unacked()
        assert not one.on_sample(first, sample(unacked=5, acked=4), NOW + 1.5)
        assert not first.suspect
        assert one._lanes.bulk == [first, second]


class TestSamples:
    def test_a_suspect_is_reported_once(self) -> None:
        one = session()
        first, _ = one.subflows.values()
        first.count_sent(1, NOW)
        for at in (1, 1.5, 2):
            one.on_sample(first, sample(unacked=9), NOW + at)
            sent = [type(frame).__name__ for frame, _ in frames_of(collect(one, NOW + at))]
            assert sent.count("Stalled") == (at == 1)
        first.awaits_ack = True
        one.on_sample(first, sample(unacked=5, acked=4), NOW + 2.5)
        assert not first.suspect
        assert frames_of(collect(one, NOW + 2.5)) == []


class TestStreams:
    def test_limits_that_come_later_let_streams_begin(self) -> None:
        one = Session(opener=True, limits=Limits(), now=NOW)
        one.attach(0, NOW).ready = True
        stream, rich = one.open(NOW), one.open(NOW)
        stream.write(b"abc")
        collect(one, NOW)
        rich.send.limit = 5 * MIB
        events(one)
        one.set_peer_limits(1 * MIB, 2)
        assert (stream.send.limit, rich.send.limit) == (1 * MIB, 5 * MIB)
        assert updated(one) == [stream, rich]
        assert [payload for _, payload in frames_of(collect(one, NOW))] == [b"abc", b""]
        stream.reset(ResetCode.CANCELLED)
        assert one.open(NOW).send.limit == 1 * MIB

    @pytest.mark.parametrize(("written", "asks"), [(768 * KIB, False), (768 * KIB + 1, True)])
    def test_credit_is_asked_for_when_a_quarter_is_left(self, written: int, asks: bool) -> None:
        one = session(limits=Limits(backlog=4 * MIB))
        stream = one.open(NOW)
        stream.announce()
        collect(one, NOW)
        stream.send.on_ack(0, 1 * MIB)
        stream.write(bytes(written))
        assert stream.room == 1 * MIB - written
        found = [frame for frame, _ in frames_of(collect(one, NOW)) if isinstance(frame, Blocked)]
        assert found == ([Blocked(0, 1 * MIB)] if asks else [])

    def test_credit_of_what_was_taken_is_told_unless_the_end_is_known(self) -> None:
        for finished in (False, True):
            one = session()
            stream = one.open(NOW)
            stream.announce()
            collect(one, NOW)
            size = stream.receive.window.size // 2
            feed(one, pack(Data(0, 0, finished), bytes(size)), NOW)
            collect(one, NOW)
            stream.take(1, NOW)
            assert frames_of(collect(one, NOW)) == []
            stream.take(size - 1, NOW)
            acks = [frame for frame, _ in frames_of(collect(one, NOW))]
            assert bool(acks) is not finished

    def test_a_reset_takes_its_ack_along_and_comes_once(self) -> None:
        one = session()
        stream = one.open(NOW)
        stream.announce()
        collect(one, NOW)
        feed(one, pack(Data(0, 0, False), b"abc"), NOW)
        one.reset_stream(stream, ResetCode.CANCELLED)
        one.reset_stream(stream, ResetCode.REFUSED)
        assert frames_of(collect(one, NOW)) == [(Reset(0, int(ResetCode.CANCELLED)), b"")]

    def test_an_idle_stream_is_an_event(self) -> None:
        one = session(limits=Limits(stream_idle_timeout=5))
        stream = one.open(NOW)
        events(one)
        for at in (1, 5, 6):
            assert stream.reset_code is None
            assert one.on_time(NOW + at) == []
        assert stream.reset_code is ResetCode.IDLE
        assert updated(one) == [stream]


class TestEnd:
    def test_nothing_is_left_to_say(self) -> None:
        one = session()
        one.open(NOW).announce()
        one.drain()
        one._timers.repeat_wanted = True
        one.end(SessionCode.NORMAL, "over")
        assert one.is_quiet
        assert collect(one, NOW + 1) == []
        assert one.on_time(NOW + 5) == []
        assert one.holding not in one.holding.memory.holdings

    def test_a_stream_whose_both_directions_are_done_ends_well(self) -> None:
        pair = Pair()
        mine, theirs = pair.open(b"abc")
        pair.take(theirs)
        theirs.write(b"answer")
        theirs.finish()
        mine.finish()
        pair.exchange()
        pair.client.end(SessionCode.NORMAL, "over")
        assert pair.client.streams == {}
        assert mine.reset_code is None


class TestDemand:
    @pytest.mark.parametrize(
        ("bulk", "ready", "waits"),
        [(True, False, True), (True, True, False), (False, False, False)],
    )
    def test_bulk_waits_where_no_subflow_is_ready(
        self, bulk: bool, ready: bool, waits: bool
    ) -> None:
        one = session()
        if bulk:
            stream = one.open(NOW)
            stream.count_sent(1 * MIB, NOW)
            stream.write(b"abc")
        for subflow in one.subflows.values():
            subflow.ready = ready
        for step in range(1, 40):
            one.watch_demand(NOW + step * SAMPLE_EVERY)
        assert (one.demand.at > NOW) is waits

    def test_without_a_subflow_nothing_waits_for_one(self) -> None:
        one = session(subflows=0)
        stream = one.open(NOW)
        stream.count_sent(1 * MIB, NOW)
        stream.write(b"abc")
        for step in range(1, 40):
            one.watch_demand(NOW + step * SAMPLE_EVERY)
        assert one.demand.at < NOW


class TestRescue:
    def test_time_in_which_nobody_looked_is_nobodys_fault(self) -> None:
        one = session()
        holder, other = one.subflows.values()
        one.peer.floor = 64 * KIB
        stream = one.open(NOW)
        stream.write(bytes(56 * KIB))
        one.pull(holder, NOW)
        stream.send.on_ack(0, 64 * KIB)
        assert other.ready
        one.rescue(NOW + 0.03125)
        assert holder.guard._blocked == 0.03125
        one.rescue(NOW + 1.5)
        assert holder.guard._blocked == pytest.approx(0.03125 + 2 * SAMPLE_EVERY)

    def test_the_gate_follows_the_samples(self) -> None:
        one = session()
        first, second = one.subflows.values()
        first.speed.rate = second.speed.rate = 1e6
        one.rescue(NOW + PERIOD / 2)
        assert one._lanes.gate._all == 2e6

    def test_a_range_that_holds_up_its_stream_goes_out_again(self) -> None:
        one = session()
        holder, other = one.subflows.values()
        stream = one.open(NOW)
        stream.write(b"abc")
        stream.finish()
        one.pull(holder, NOW)
        stream.send.on_ack(0, 1 * MIB)
        other.speed.rate = 1e8
        one.rescue(NOW + 5)
        assert stream.send.lost
        assert holder.reinjected == 4


class TestInbound:
    def test_new_bytes_wake_the_relay_and_old_ones_do_not(self) -> None:
        pair = Pair()
        mine, _ = pair.open(b"abc")
        events(pair.client)
        feed(pair.client, pack(Data(0, 0, False), b"new"), pair.now)
        assert updated(pair.client) == [mine]
        feed(pair.client, pack(Data(0, 0, False), b"new"), pair.now)
        assert updated(pair.client) == []

    def test_new_credit_is_told_at_once_and_only_then(self) -> None:
        pair = Pair()
        _, theirs = pair.open(b"abc")
        pair.take(theirs)
        pair.now += 1
        pair.exchange()
        limit = theirs.receive.window.limit
        feed(pair.server, pack(Blocked(0, limit)), pair.now)
        ((ack, _),) = frames_of(collect(pair.server, pair.now))
        assert isinstance(ack, Ack)
        assert ack.limit > limit
        feed(pair.server, pack(Blocked(0, limit)), pair.now)
        assert frames_of(collect(pair.server, pair.now)) == []

    def test_a_stream_is_kept_until_its_application_has_taken_all(self) -> None:
        pair = Pair()
        mine, theirs = pair.open(b"abc")
        pair.take(theirs)
        theirs.write(b"answer")
        theirs.finish()
        mine.finish()
        pair.exchange()
        feed(pair.client, pack(Closed(0)), pair.now)
        assert pair.client.streams == {0: mine}
        assert pair.take(mine) == b"answer"
        assert pair.client.streams == {}
