"""What is due when, and what is not."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import REPEAT_SPACING, Limits
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.timers import TICK, Due
from fastmtcp.engine.wire.errors import ResetCode, SessionCode
from fastmtcp.engine.wire.frames import Ack, Data, Frame, Goaway, Open, Ping, Reset

from tests.unit.wire import START, Pair, collect, events, feed, frames_of, pack

NOW = START


def server(limits: Limits | None = None) -> Session:
    session = Session(opener=False, limits=limits or Limits(), now=NOW)
    session.attach(0, NOW).ready = True
    return session


def accepted(session: Session, number: int = 0) -> Stream:
    feed(session, pack(Open(number, 1 << 20, False)), NOW)
    return session.streams[number]


def due(session: Session, at: float) -> Due:
    found = session._timers.on_time(NOW + at)
    assert found is not None
    return found


def sent(session: Session, at: float) -> list[Frame]:
    return [frame for frame, _ in frames_of(collect(session, NOW + at))]


class TestDeadline:
    def test_a_look_at_everything_each_second(self) -> None:
        session = server()
        assert TICK == 1.0
        assert session.deadline() == NOW + 1
        assert session._timers.on_time(NOW + 0.99) is None
        assert session.deadline() == NOW + 1
        assert due(session, 1) == Due()
        assert session.deadline() == NOW + 2
        assert due(session, 7.5) == Due()
        assert session.deadline() == NOW + 8.5

    def test_an_ack_that_waits(self) -> None:
        session = server(Limits(ack_delay=0.25))
        accepted(session)
        assert session.deadline() == NOW + 0.25
        assert sent(session, 0.125) == []
        session.on_time(NOW + 0.25)
        assert [type(frame) for frame in sent(session, 0.25)] == [Ack]
        assert session.deadline() == NOW + 1
        late = server(Limits(ack_delay=9.0))
        accepted(late)
        assert late.deadline() == NOW + 1

    def test_what_is_to_be_repeated(self) -> None:
        session = server()
        timers = session._timers
        timers._repeat_after = NOW + 0.5
        assert session.deadline() == NOW + 1
        assert not timers.may_repeat(NOW + 9)
        timers.repeat_wanted = True
        assert session.deadline() == NOW + 0.5
        assert not timers.may_repeat(NOW + 0.49)
        assert timers.may_repeat(NOW + 0.5)
        timers._repeat_after = NOW + 5
        assert session.deadline() == NOW + 1


class TestRepeat:
    def test_the_loss_of_a_subflow_announces_no_drain(self) -> None:
        pair = Pair()
        pair.open(b"start")
        for session in (pair.client, pair.server):
            session.detach(session.subflows[0], pair.now)
            frames = frames_of(collect(session, pair.now))
            assert frames
            assert not any(isinstance(frame, Goaway) for frame, _ in frames)
            assert not session.draining
        pair.exchange()
        assert not pair.client.peer.draining
        assert not pair.server.peer.draining

    def test_what_may_have_been_lost_and_no_more(self) -> None:
        session = server()
        quiet, waiting, unopened = accepted(session, 0), accepted(session, 1), 2
        feed(session, pack(Data(unopened, 5, False), b"early"), NOW)
        waiting.write(b"answer")
        session.on_time(NOW + 0.5)
        sent(session, 0.5)
        timers = session._timers
        timers.repeat_wanted = True
        timers.repeat(NOW + 0.5)
        assert not timers.repeat_wanted
        assert timers._repeat_after == NOW + 0.5 + 3 * REPEAT_SPACING
        frames = sent(session, 0.5)
        acks = [frame.stream for frame in frames if isinstance(frame, Ack)]
        probes = [frame.stream for frame in frames if isinstance(frame, Data)]
        assert acks == [quiet.stream_id, waiting.stream_id]
        assert probes == [waiting.stream_id]

    def test_what_goes_out_again_anyway_is_not_asked_for(self) -> None:
        session = server()
        stream = accepted(session)
        stream.write(b"answer")
        session.on_time(NOW + 0.5)
        sent(session, 0.5)
        stream.send.on_lost(0, 6)
        session._timers.repeat(NOW + 0.5)
        assert [type(frame) for frame in sent(session, 0.5)] == [Ack]


class TestEverySecond:
    def test_nothing_is_said_of_what_is_well(self) -> None:
        session = server()
        accepted(session)
        session.on_time(NOW + 0.5)
        sent(session, 0.5)
        for second in range(1, 5):
            assert due(session, second) == Due()
            assert sent(session, second) == []

    def test_a_stream_without_progress_asks(self) -> None:
        session = server()
        accepted(session).write(b"answer")
        session.on_time(NOW + 0.5)
        sent(session, 0.5)
        said = []
        for second in range(1, 5):
            session._timers.on_time(NOW + second)
            said.append(sent(session, second))
        probe = [Data(0, 0, False)]
        assert said == [[], probe, probe, []]

    def test_resets_are_repeated(self) -> None:
        session = server()
        accepted(session).reset(ResetCode.REFUSED)
        sent(session, 0)
        session._timers.on_time(NOW + 1)
        assert sent(session, 1) == [Reset(0, int(ResetCode.REFUSED))]

    def test_who_is_silent_is_asked_and_then_dead(self) -> None:
        session = server(Limits(ping_interval=5, subflow_timeout=15))
        subflow = session.subflows[0]
        for second in range(1, 5):
            assert due(session, second).dead == []
            assert sent(session, second) == []
        assert due(session, 5).dead == []
        assert sent(session, 5) == [Ping(int(NOW) + 5)]
        for second in range(6, 15):
            assert due(session, second).dead == []
            assert sent(session, second) == []
        assert due(session, 15).dead == [subflow]
        assert sent(session, 15) == []


class TestIdle:
    def test_streams_are_left_alone_unless_told_otherwise(self) -> None:
        session = server()
        accepted(session)
        assert due(session, 1e6).idle == []

    def test_after_the_time_that_was_set(self) -> None:
        session = server(Limits(stream_idle_timeout=30))
        stream = accepted(session)
        assert due(session, 29).idle == []
        assert due(session, 30).idle == [stream]

    def test_a_busy_download_is_never_idle(self) -> None:
        pair = Pair(limits=Limits(stream_idle_timeout=5))
        mine, theirs = pair.open(b"start")
        pair.take(theirs)
        for _ in range(30):
            theirs.write(bytes(1000))
            pair.exchange()
            assert pair.take(mine) == bytes(1000)
            pair.now += 1
        assert mine.reset_code is None
        assert theirs.reset_code is None


class TestEnd:
    def test_without_a_stream_if_there_is_a_limit(self) -> None:
        session = server(Limits(session_idle_timeout=5))
        assert due(session, 4.9).end is None
        assert due(session, 6).end == (SessionCode.NORMAL, "no stream for 5 s")
        assert due(server(), 1e6).end is None

    def test_not_while_there_is_one(self) -> None:
        session = server(Limits(session_idle_timeout=5))
        stream = accepted(session)
        assert due(session, 60).end is None
        stream.reset(ResetCode.REFUSED)
        assert due(session, 64).end is None
        assert due(session, 65).end is not None

    def test_one_that_is_reset_now_is_none(self) -> None:
        session = server(Limits(session_idle_timeout=5, stream_idle_timeout=1))
        accepted(session)
        due(session, 1)
        assert due(session, 20).idle
        assert due(session, 25).end is not None

    def test_without_a_subflow(self) -> None:
        session = Session(opener=False, limits=Limits(session_timeout=30), now=NOW)
        assert due(session, 29).end is None
        assert due(session, 30).end == (SessionCode.TIMEOUT, "no subflow for too long")
        session.attach(0, NOW + 31)
        assert due(session, 1000).end is None
        session.detach(session.subflows[0], NOW + 1000)
        assert due(session, 1029).end is None
        assert due(session, 1030).end is not None


@pytest.mark.parametrize("seconds", [0, 1000])
def test_nothing_is_due_when_all_is_over(seconds: float) -> None:
    session = server(Limits(session_timeout=1, stream_idle_timeout=1))
    accepted(session)
    session.end(SessionCode.NORMAL, "over")
    events(session)
    assert session.on_time(NOW + seconds) == []
    assert session.take_events() is None
    assert sent(session, seconds) == []
