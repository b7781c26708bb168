"""Who is asked for a sign of life, and when, and who is left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastmtcp.engine.limits import MIB, Limits
from fastmtcp.engine.scheduling import liveness
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.engine.wire.frames import Data

from tests.unit.wire import START

NOW = START
LIMITS = Limits(ping_interval=5, subflow_timeout=15)


def stream(*, opener: bool = True) -> Stream:
    session = Session(opener=opener, limits=Limits(), now=NOW, peer_floor=1 * MIB)
    if opener:
        return session.open(NOW)
    made = session.table.accept(0, NOW)
    assert made is not None
    made.send.limit = 1 * MIB
    return made


def connected() -> Stream:
    """One that waits for nothing."""
    made = stream()
    made.send.pull(1)
    made.send.on_ack(0, 1 * MIB)
    made.confirmed = True
    return made


def pending() -> Stream:
    """One whose bytes are on their way."""
    made = connected()
    made.write(bytes(100))
    made.send.pull(100)
    return made


class TestProbe:
    def test_is_empty_and_where_the_acknowledgement_is_missing(self) -> None:
        made = pending()
        assert liveness.probe(made) == Data(0, 0, False)
        made.send.on_ack(60, 1 * MIB)
        assert liveness.probe(made) == Data(0, 60, False)

    def test_neither_the_open_nor_the_fin_is_a_place_in_the_data(self) -> None:
        assert liveness.probe(stream()) == Data(0, 0, False)
        made = pending()
        made.finish()
        made.send.pull(1)
        made.send.on_ack(101, 1 * MIB)
        assert liveness.probe(made) == Data(0, 100, False)


class TestNeedsNews:
    def test_who_waits_for_nothing_does_not(self) -> None:
        assert not liveness.needs_news(connected())

    def test_who_waits_for_an_ack(self) -> None:
        assert liveness.needs_news(pending())

    def test_who_waits_for_credit(self) -> None:
        made = connected()
        made.send.limit = 0
        assert liveness.needs_news(made)

    def test_who_waits_for_the_target(self) -> None:
        made = connected()
        made.confirmed = False
        assert liveness.needs_news(made)
        theirs = stream(opener=False)
        theirs.open_received = True
        assert not liveness.needs_news(theirs)

    def test_not_before_the_peer_can_know_the_stream(self) -> None:
        assert not liveness.needs_news(stream())
        theirs = stream(opener=False)
        theirs.send.limit = 0
        assert not liveness.needs_news(theirs)
        theirs.open_received = True
        assert liveness.needs_news(theirs)


class TestStuck:
    def asked(self, made: Stream, ticks: int) -> list[int]:
        return [tick for tick in range(ticks) if liveness.is_stuck(made, Limits())]

    def test_after_1_2_4_and_8_seconds_and_then_every_15(self) -> None:
        assert self.asked(pending(), 65) == [1, 2, 4, 8, 15, 16, 30, 32, 45, 60, 64]

    def test_progress_begins_anew(self) -> None:
        made = pending()
        assert self.asked(made, 4) == [1, 2]
        made.send.on_ack(50, 1 * MIB)
        assert self.asked(made, 6) == [1, 2, 4]
        made.send.on_ack(50, 2 * MIB)
        assert self.asked(made, 6) == [1, 2, 4]

    def test_who_waits_for_nothing_is_never_asked(self) -> None:
        assert self.asked(connected(), 40) == []


def acknowledged(made: Stream, step: int) -> None:
    made.send.on_ack(step, 1 * MIB)


def written(made: Stream, step: int) -> None:
    made.write(b"x")


def received(made: Stream, step: int) -> None:
    made.receive.accept(step - 1, memoryview(b"x"), False)


def taken(made: Stream, step: int) -> None:
    made.receive.window.take(1, NOW)


def upload(made: Stream, step: int) -> None:
    written(made, step)
    made.send.pull(1)
    acknowledged(made, step + 100)


def download(made: Stream, step: int) -> None:
    received(made, step)
    taken(made, step)


class TestIdle:
    @pytest.mark.parametrize("move", [acknowledged, written, received, taken, upload, download])
    def test_nothing_that_moves_is_idle(self, move: Callable[[Stream, int], None]) -> None:
        made = pending()
        for step in range(1, 60):
            move(made, step)
            assert not liveness.is_idle(made, Limits(stream_idle_timeout=5), NOW + step)
        assert not liveness.is_idle(made, Limits(stream_idle_timeout=5), NOW + 59 + 4)
        assert liveness.is_idle(made, Limits(stream_idle_timeout=5), NOW + 59 + 5)

    def test_one_that_was_never_used(self) -> None:
        made = connected()
        assert not liveness.is_idle(made, Limits(stream_idle_timeout=5), NOW + 4)
        assert liveness.is_idle(made, Limits(stream_idle_timeout=5), NOW + 5)


class TestPing:
    def test_a_silent_subflow_is_asked_once(self) -> None:
        one = Subflow(0, NOW)
        assert not liveness.wants_ping(one, LIMITS, NOW + 4.9)
        assert one.pinged_at is None
        assert liveness.wants_ping(one, LIMITS, NOW + 5)
        assert one.pinged_at == NOW + 5
        assert not liveness.wants_ping(one, LIMITS, NOW + 60)
        assert one.pinged_at == NOW + 5

    def test_an_acknowledgement_is_as_good_as_a_word(self) -> None:
        one, made = Subflow(0, NOW), pending()
        one.inflight.add(made, 0, 100)
        assert liveness.wants_ping(one, LIMITS, NOW + 5)
        made.send.on_ack(100, 1 * MIB)
        assert not liveness.wants_ping(one, LIMITS, NOW + 8)
        assert (one.heard_at, one.pinged_at) == (NOW + 8, None)
        assert not one.inflight.delivered
        assert not liveness.wants_ping(one, LIMITS, NOW + 12)
        assert one.heard_at == NOW + 8
        assert liveness.wants_ping(one, LIMITS, NOW + 13)

    @pytest.mark.parametrize(
        ("heard", "asked", "dead"),
        [
            (15, 10, True),
            (60, 10, True),
            (14.9, 10, False),
            (60, 9.9, False),
            (60, None, False),
        ],
    )
    def test_dead_is_who_is_silent_and_was_asked_long_ago(
        self, heard: float, asked: float | None, dead: bool
    ) -> None:
        """After a pause of our own the PING has only just been sent."""
        one = Subflow(0, NOW)
        one.heard_at = NOW - heard
        one.pinged_at = None if asked is None else NOW - asked
        assert liveness.is_unanswered(one, LIMITS, NOW) is dead
