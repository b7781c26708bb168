"""Resets: who gets the last bytes, for how long, and what the two sides say to one another."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import (
    LAST_BYTES_LONGEST,
    LAST_BYTES_PATIENCE,
    MAX_RESETS,
    Limits,
)
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.wire.errors import ResetCode, SessionCode
from fastmtcp.engine.wire.frames import Ack, Closed, Data, Open, Reset, ResetAck

from tests.unit.wire import (
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

REFUSED = int(ResetCode.REFUSED)


def ending(pair: Pair, missing: int = 0) -> Stream:
    """A stream of the client that the server has reset behind the 6 bytes that are there and
    `missing` ones that are not. Nobody has taken any."""
    mine, theirs = pair.open(b"abc")
    theirs.write(b"answer")
    pair.exchange()
    events(pair.client)
    feed(pair.client, pack(Reset(mine.stream_id, REFUSED, 6 + missing)), pair.now)
    assert mine.ending is ResetCode.REFUSED
    assert mine.reset_code is None
    return mine


class TestThePeerResets:
    def test_its_last_bytes_are_taken_before_the_application_is_reset(self) -> None:
        pair = Pair()
        mine = ending(pair, missing=4)
        assert mine in updated(pair.client)
        pair.take(mine)
        assert mine.reset_code is None
        feed(pair.client, pack(Data(0, 6, False), b"last"), pair.now)
        assert pair.take(mine) == b"last"
        assert mine.reset_code is ResetCode.REFUSED
        assert pair.client.streams == {}
        assert frames_of(collect(pair.client, pair.now)) == [(ResetAck(0), b"")]

    def test_an_application_that_is_gone_needs_none_and_the_peer_is_told(self) -> None:
        pair = Pair()
        mine = ending(pair, missing=4)
        events(pair.client)
        mine.reset(ResetCode.CANCELLED)
        assert mine.reset_code is ResetCode.CANCELLED
        assert ready_bytes(mine) == b""
        assert pair.client.streams == {}
        assert updated(pair.client) == [mine]
        # No RESET of our own: the peer knows.
        assert frames_of(collect(pair.client, pair.now)) == [(ResetAck(0), b"")]
        assert pair.client.is_over

    def test_what_answers_to_bytes_sent_before_is_too_late(self) -> None:
        """CLOSED says that the peer has forgotten the stream, not that its last bytes are void."""
        pair = Pair()
        mine = ending(pair, missing=4)
        feed(pair.client, pack(Closed(0)), pair.now)
        assert mine.reset_code is None
        feed(pair.client, pack(Data(0, 6, False), b"last"), pair.now)
        assert pair.take(mine) == b"answerlast"

    def test_it_may_say_later_that_it_has_less(self) -> None:
        pair = Pair()
        mine = ending(pair, missing=4)
        pair.take(mine)
        feed(pair.client, pack(Reset(0, REFUSED, 100)), pair.now)
        assert mine.reset_code is None
        feed(pair.client, pack(Reset(0, REFUSED, 6)), pair.now)
        assert mine.reset_code is ResetCode.REFUSED

    def test_one_whose_bytes_do_not_come_is_given_up(self) -> None:
        pair = Pair()
        mine = ending(pair, missing=4)
        pair.take(mine)
        for _ in range(LAST_BYTES_PATIENCE):
            pair.now += 1
            pair.client.on_time(pair.now)
            assert mine.reset_code is None
        pair.now += 1
        pair.client.on_time(pair.now)
        assert mine.reset_code is ResetCode.REFUSED

    def test_before_its_open_the_open_is_waited_for(self) -> None:
        pair = Pair()
        feed(pair.server, pack(Reset(0, 0, 3)), pair.now)
        feed(pair.server, pack(Data(0, 2, False), b"c"), pair.now)
        assert opened(pair.server) == []
        feed(pair.server, pack(Open(0, 1 << 20, False), b"ab"), pair.now)
        (theirs,) = opened(pair.server)
        assert pair.take(theirs) == b"abc"
        assert theirs.reset_code is ResetCode.CANCELLED


class TestThisSideResets:
    def test_what_was_written_arrives_first(self) -> None:
        pair = Pair()
        mine, theirs = pair.open(b"abc")
        pair.take(theirs)
        mine.write(b"last words")
        mine.reset(ResetCode.CANCELLED)
        assert mine.reset_code is ResetCode.CANCELLED
        pair.exchange()
        assert theirs.reset_code is None
        assert pair.take(theirs) == b"last words"
        assert theirs.reset_code is ResetCode.CANCELLED
        pair.exchange()
        assert pair.client.held == 0
        assert pair.client.is_over
        assert pair.server.is_over

    def test_what_nobody_takes_is_given_up_and_said_to_be_less(self) -> None:
        """It goes on for so long as it moves, but not for ever."""
        pair = Pair()
        mine, _ = pair.open(b"abc")
        mine.write(bytes(100))
        mine.reset(ResetCode.CANCELLED)
        collect(pair.client, pair.now)
        for second in range(LAST_BYTES_LONGEST):
            pair.now += 1
            # One more byte, every time.
            feed(pair.client, pack(Ack(0, 4 + second, 0, True)), pair.now)
            pair.client.on_time(pair.now)
            assert (Reset(0, 0, 103), b"") in frames_of(collect(pair.client, pair.now))
        pair.now += 1
        pair.client.on_time(pair.now)
        acked = 3 + LAST_BYTES_LONGEST
        assert (Reset(0, 0, acked), b"") in frames_of(collect(pair.client, pair.now))
        assert pair.client.table.parting == {}
        assert pair.client.held == 0

    def test_giving_up_adds_no_reset_to_those_that_nobody_confirms(self) -> None:
        """As many as there may be are no reason to end the session: it is the same one."""
        limits = Limits(max_streams=2)
        pair = Pair(limits=limits)
        for number in range(MAX_RESETS * limits.max_streams):
            feed(pair.server, pack(Open(number, 1 << 20, False)), pair.now)
            (theirs,) = opened(pair.server)
            if not number:
                theirs.write(b"never confirmed")
            theirs.reset(ResetCode.CANCELLED)
        collect(pair.server, pair.now)
        assert len(pair.server.table.parting) == 1
        for _ in range(LAST_BYTES_PATIENCE + 1):
            pair.now += 1
            pair.server.on_time(pair.now)
        assert pair.server.table.parting == {}
        assert pair.server.ended is None
        assert (Reset(0, 0, 0), b"") in frames_of(collect(pair.server, pair.now))


class TestTheSessionEnds:
    def test_last_bytes_on_their_way_are_lost_with_it(self) -> None:
        pair = Pair()
        mine, _ = pair.open(b"abc")
        mine.write(b"last words")
        mine.reset(ResetCode.CANCELLED)
        assert pair.client.held == 10
        pair.client.end(SessionCode.TIMEOUT, "over")
        assert pair.client.table.parting == {}
        assert pair.client.held == 0
        assert pair.client.holding.bytes == 0
        assert pair.client.holding.client.streams == 0

    def test_the_end_that_came_is_passed_on_though_ours_can_not_be_said(self) -> None:
        """All of the peer's is here, not all of ours there: the application has the peer's bytes
        and its end, and then a reset, since what it wrote may be lost."""
        pair = Pair()
        mine, theirs = pair.open(b"abc")
        theirs.write(b"answer")
        theirs.finish()
        pair.exchange()
        events(pair.client)
        pair.client.end(SessionCode.TIMEOUT, "over")
        assert mine in updated(pair.client)
        assert mine.room == 0
        assert mine.reset_code is None
        mine.take(6, pair.now)
        assert mine.at_end
        assert mine.reset_code is None
        mine.take_end()
        assert mine.reset_code is ResetCode.SESSION_LOST
        assert pair.client.holding.bytes == 0

    def test_a_reset_whose_last_bytes_are_here_keeps_its_reason(self) -> None:
        pair = Pair()
        mine = ending(pair)
        pair.client.end(SessionCode.TIMEOUT, "over")
        assert mine.reset_code is None
        assert pair.take(mine) == b"answer"
        assert mine.reset_code is ResetCode.REFUSED

    def test_a_reset_whose_last_bytes_are_not_here_is_the_sessions(self) -> None:
        pair = Pair()
        mine = ending(pair, missing=4)
        pair.client.end(SessionCode.TIMEOUT, "over")
        assert mine.reset_code is ResetCode.SESSION_LOST
        assert ready_bytes(mine) == b""

    @pytest.mark.parametrize("our_end", [True, False])
    def test_an_application_that_goes_leaves_nothing_of_what_it_did_not_take(
        self, our_end: bool
    ) -> None:
        pair = Pair()
        mine, theirs = pair.open(b"abc")
        pair.take(theirs)
        theirs.write(b"answer")
        theirs.finish()
        if our_end:
            mine.finish()
        pair.exchange()
        pair.client.end(SessionCode.TIMEOUT, "over")
        assert mine.reset_code is None
        mine.reset(ResetCode.CANCELLED)
        assert mine.reset_code is ResetCode.CANCELLED
        assert ready_bytes(mine) == b""
        assert not mine.receive.data.ready_bytes
