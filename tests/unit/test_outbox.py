"""Control frames: what waits, for how long, and what is not sent."""

from __future__ import annotations

import pytest
from fastmtcp.engine import outbox as module
from fastmtcp.engine.limits import MAX_ANSWERS, MAX_HINTS, MAX_OWN_FRAMES, MAX_RESETS, Limits
from fastmtcp.engine.outbox import Outbox
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.errors import RemoteError, ResetCode, SessionCode
from fastmtcp.engine.wire.frames import (
    Ack,
    Busy,
    Closed,
    Frame,
    Goaway,
    Got,
    Ping,
    Pong,
    Reset,
)

from tests.unit.wire import START, parse

NOW = START
DELAY = 0.25
LIMITS = Limits(ack_delay=DELAY, max_streams=8)


def outbox() -> Outbox:
    return Outbox(LIMITS)


def streams(count: int) -> list[Stream]:
    session = Session(opener=True, limits=Limits(), now=NOW)
    return [session.open(NOW) for _ in range(count)]


def taken(one: Outbox) -> list[Frame]:
    return [frame for frame, _ in parse(one.take())]


class TestAcks:
    def test_one_waits_for_company(self) -> None:
        one, (stream,) = outbox(), streams(1)
        one.ack(stream, NOW, urgent=False)
        assert one
        assert not one.urgent
        assert one.acks_at == NOW + DELAY

    def test_the_first_says_how_long(self) -> None:
        one, (first, second) = outbox(), streams(2)
        one.ack(first, NOW, urgent=False)
        one.ack(second, NOW + 0.125, urgent=False)
        assert one.acks_at == NOW + DELAY

    def test_none_goes_early(self) -> None:
        one, (stream,) = outbox(), streams(1)
        one.ack(stream, NOW, urgent=False)
        one.on_time(NOW + DELAY - 0.01)
        assert not one.urgent
        assert one.acks_at == NOW + DELAY
        one.on_time(NOW + DELAY)
        assert one.urgent
        assert one.acks_at is None

    def test_an_urgent_one_goes_now(self) -> None:
        one, (stream,) = outbox(), streams(1)
        one.ack(stream, NOW, urgent=True)
        assert one.urgent
        assert one.acks_at is None

    def test_time_that_nobody_waits_for_sends_nothing(self) -> None:
        one = outbox()
        one.on_time(NOW)
        assert not one.urgent
        one.urgent = True
        one.on_time(NOW)
        assert one.urgent

    def test_of_a_stream_that_is_gone_there_is_none(self) -> None:
        one, (stream, other) = outbox(), streams(2)
        one.ack(stream, NOW, urgent=True)
        one.ack(other, NOW, urgent=True)
        one.forget(stream)
        assert one.urgent
        one.forget(other)
        assert not one.urgent
        assert taken(one) == []
        one.ack(other, NOW, urgent=False)
        one.forget(other)
        one.on_time(NOW + 1)
        assert not one.urgent

    def test_it_says_what_is_true_when_it_is_sent(self) -> None:
        one, (stream, _) = outbox(), streams(2)
        one.ack(stream, NOW, urgent=True)
        stream.receive.accept(0, memoryview(b"abc"), False)
        stream.confirmed = True
        assert taken(one) == [Ack(stream.stream_id, 3, stream.receive.window.limit, True)]
        assert stream.receive.told == 3


class TestTake:
    def test_everything_once(self) -> None:
        one, (stream,) = outbox(), streams(1)
        subflow = Subflow(5, NOW)
        subflow.bytes_received = 77
        one.ack(stream, NOW, urgent=False)
        one.send(Busy())
        one.send(Busy())
        one.report(subflow)
        assert one.urgent
        assert [type(frame) for frame in taken(one)] == [Busy, Ack, Got]
        assert not one
        assert not one.urgent
        assert one.acks_at is None
        assert taken(one) == []

    def test_a_report_only_rides_along(self) -> None:
        one, subflow = outbox(), Subflow(5, NOW)
        subflow.bytes_received = 77
        one.report(subflow)
        assert not one
        assert not one.urgent
        assert taken(one) == [Got(5, 77)]

    def test_of_a_subflow_that_is_gone_nothing_is_said(self) -> None:
        one, subflow = outbox(), Subflow(5, NOW)
        one.report(subflow)
        one.send_on(subflow, Ping(1))
        one.forget_subflow(subflow)
        assert taken(one) == []
        assert one.take_own(subflow) == b""

    def test_nothing_is_left_at_the_end(self) -> None:
        one, (stream,) = outbox(), streams(1)
        one.ack(stream, NOW, urgent=False)
        one.reset(7, ResetCode.CANCELLED)
        one.send_on(Subflow(5, NOW), Ping(1))
        one.clear()
        assert not one
        assert not one.urgent
        assert one.acks_at is None
        assert one.own == {}
        assert not one.is_resetting(7)
        assert taken(one) == []


class TestOwn:
    def test_goes_on_its_subflow_and_no_other(self) -> None:
        one, first, second = outbox(), Subflow(1, NOW), Subflow(2, NOW)
        one.send_on(second, Ping(1))
        one.send_on(second, Pong(2))
        assert not one
        assert one.ready_subflow() is None
        first.ready = True
        assert one.ready_subflow() is None
        second.ready = True
        assert one.ready_subflow() is second
        assert one.take_own(first) == b""
        assert [frame for frame, _ in parse(one.take_own(second))] == [Ping(1), Pong(2)]
        assert one.take_own(second) == b""

    def test_no_more_than_so_many(self) -> None:
        one, subflow = outbox(), Subflow(1, NOW)
        for number in range(MAX_OWN_FRAMES + 5):
            one.send_on(subflow, Pong(number))
        assert len(parse(one.take_own(subflow))) == MAX_OWN_FRAMES == 16


class TestLimits:
    def test_hints_are_left_out_in_a_crowd(self) -> None:
        one = outbox()
        for number in range(MAX_HINTS + 5):
            one.hint(Closed(number))
        assert len(taken(one)) == MAX_HINTS == 32

    def test_answers_that_nobody_takes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert MAX_ANSWERS == 65536
        monkeypatch.setattr(module, "MAX_ANSWERS", 3)
        one = outbox()
        for number in range(3):
            one.answer(Closed(number))
        with pytest.raises(RemoteError) as caught:
            one.answer(Closed(3))
        assert caught.value.code is SessionCode.LIMIT
        assert len(taken(one)) == 3
        one.answer(Closed(4))

    def test_resets_that_nobody_confirms(self) -> None:
        one = outbox()
        most = 3 * LIMITS.max_streams
        for number in range(most):
            one.reset(number, ResetCode.CANCELLED)
        with pytest.raises(RemoteError) as caught:
            one.reset(most, ResetCode.CANCELLED)
        assert caught.value.code is SessionCode.LIMIT
        one.reset_confirmed(3)
        one.reset(most, ResetCode.CANCELLED)


class TestResets:
    def test_there_may_be_so_many_and_one_said_anew_is_none_more(self) -> None:
        one = outbox()
        for number in range(MAX_RESETS * LIMITS.max_streams):
            one.reset(number, ResetCode.CANCELLED, 10)
        one.reset(3, ResetCode.CANCELLED, 4)
        assert one.unconfirmed == MAX_RESETS * LIMITS.max_streams
        with pytest.raises(RemoteError) as caught:
            one.reset(1000, ResetCode.CANCELLED)
        assert caught.value.code is SessionCode.LIMIT
        one.reset_confirmed(5)
        one.reset(1000, ResetCode.CANCELLED)
        one.take()
        one.repeat_resets()
        said = {frame.stream: frame.end for frame in taken(one) if isinstance(frame, Reset)}
        assert (said[3], said[4], said[1000]) == (4, 10, 0)
        assert 5 not in said


class TestRepeating:
    def test_a_reset_until_it_is_confirmed(self) -> None:
        one = outbox()
        one.reset(7, ResetCode.REFUSED)
        assert one.is_resetting(7)
        assert not one.is_resetting(8)
        again = [Reset(7, int(ResetCode.REFUSED))]
        assert taken(one) == again
        one.repeat_resets()
        assert taken(one) == again
        one.reset_confirmed(7)
        one.reset_confirmed(8)
        assert not one.is_resetting(7)
        one.repeat_resets()
        assert taken(one) == []

    def test_a_drain_that_was_announced_and_no_other(self) -> None:
        one = outbox()
        one.repeat([])
        assert not one
        assert not one.urgent
        assert not one.draining
        one.drain()
        assert one.draining
        told = [Goaway(int(SessionCode.DRAINING), "shutting down")]
        assert taken(one) == told
        one.repeat([])
        assert taken(one) == told

    def test_resets_and_reports_of_those_that_are_left(self) -> None:
        one = outbox()
        one.reset(7, ResetCode.REFUSED)
        one.take()
        one.repeat([Subflow(1, NOW), Subflow(2, NOW)])
        assert taken(one) == [Reset(7, int(ResetCode.REFUSED)), Got(1, 0), Got(2, 0)]
