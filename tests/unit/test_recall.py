"""Credit that is not used comes back: RECALL and RETURN between two sessions."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import KIB, Limits
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.wire.errors import RemoteError
from fastmtcp.engine.wire.frames import Ack, Blocked, Frame, Open, Recall, Return

from tests.unit.wire import Pair, collect, feed, frames_of, pack

LIMITS = Limits(
    floor_window=64 * KIB, start_window=256 * KIB, max_window=512 * KIB, window_pool=432 * KIB
)
"""The budget is 384 KiB: the start windows of two streams."""


def said(frames: list[tuple[Frame, bytes]]) -> list[Frame]:
    return [frame for frame, _ in frames if isinstance(frame, Recall | Return)]


def idle_pair(pair: Pair, count: int) -> list[tuple[Stream, Stream]]:
    """Streams that the client has given credit to and that the server has not used."""
    return [pair.open(b"x") for _ in range(count)]


def tick(pair: Pair) -> list[Frame]:
    pair.now += 1.0
    for session in (pair.client, pair.server):
        session.on_time(pair.now)
    return said(pair.exchange())


def test_one_stream_keeps_what_it_has() -> None:
    pair = Pair(limits=LIMITS)
    idle_pair(pair, 1)
    assert tick(pair) == []


def test_while_the_pool_is_tight_unused_credit_is_asked_back_and_comes() -> None:
    pair = Pair(limits=LIMITS)
    streams = idle_pair(pair, 3)
    pool = pair.client.table.windows
    assert pool.free == 432 * KIB - 384 * KIB
    frames = tick(pair)
    # The third found nothing left, and has its floor only.
    wanted = [(0, 192 * KIB), (1, 192 * KIB)]
    assert frames == [Recall(*one) for one in wanted] + [Return(*one) for one in wanted]
    assert [theirs.send.limit for _, theirs in streams] == [64 * KIB] * 3
    assert pool.free == 432 * KIB
    assert tick(pair) == [], "there is nothing left to ask for"


def test_what_has_been_written_is_not_given_back() -> None:
    pair = Pair(limits=LIMITS)
    streams = idle_pair(pair, 2)
    (_, theirs), _ = streams
    theirs.write(bytes(100 * KIB))
    assert Return(0, 156 * KIB) in tick(pair)
    assert theirs.send.limit == 100 * KIB
    assert theirs.room == 0
    mine = streams[0][0]
    assert mine.receive.data.next == 100 * KIB
    pair.take(mine)
    pair.exchange()
    assert theirs.room >= 64 * KIB


def test_a_recall_or_return_that_is_lost_is_said_again() -> None:
    pair = Pair(limits=LIMITS)
    idle_pair(pair, 2)
    pool = pair.client.table.windows
    for lost in ("recall", "return"):
        pair.now += 1.0
        pair.client.on_time(pair.now)
        asked = frames_of(collect(pair.client, pair.now))
        assert [frame for frame, _ in asked] == [Recall(0, 192 * KIB), Recall(1, 192 * KIB)]
        if lost == "return":
            feed(pair.server, b"".join(pack(*one) for one in asked), pair.now)
            assert len(said(frames_of(collect(pair.server, pair.now)))) == 2
        assert pool.free == 48 * KIB
    assert len(tick(pair)) == 4
    assert pool.free == 432 * KIB


def test_a_recall_that_comes_twice_or_late_takes_nothing_more() -> None:
    pair = Pair(limits=LIMITS)
    (mine, theirs), _ = idle_pair(pair, 2)
    tick(pair)
    theirs.write(bytes(60 * KIB))
    pair.exchange()
    pair.take(mine)
    pair.exchange()
    limit = theirs.send.limit
    assert limit > 64 * KIB
    feed(pair.server, pack(Recall(0, 192 * KIB)), pair.now)
    assert theirs.send.limit == limit
    assert said(frames_of(collect(pair.server, pair.now))) == [Return(0, 192 * KIB)]


def test_an_older_limit_raises_nothing_and_a_newer_one_does() -> None:
    pair = Pair(limits=LIMITS)
    (_, theirs), _ = idle_pair(pair, 2)
    tick(pair)
    feed(pair.server, pack(Ack(0, 0, 256 * KIB)), pair.now)
    assert theirs.send.limit == 64 * KIB
    feed(pair.server, pack(Open(0, 256 * KIB, False)), pair.now)
    assert theirs.send.limit == 64 * KIB
    feed(pair.server, pack(Ack(0, 0, 257 * KIB)), pair.now)
    assert theirs.send.limit == 65 * KIB


def test_who_has_given_credit_back_asks_for_more_when_it_is_needed_again() -> None:
    pair = Pair(limits=LIMITS)
    (_, theirs), _ = idle_pair(pair, 2)
    tick(pair)
    theirs.write(bytes(50 * KIB))
    assert theirs.room == 14 * KIB
    asked = [frame for frame, _ in pair.exchange() if isinstance(frame, Blocked)]
    assert asked == [Blocked(0, 256 * KIB)], "the limit of the wire"


def test_what_is_unknown_or_means_nothing_is_ignored() -> None:
    pair = Pair(limits=LIMITS)
    (_, theirs), _ = idle_pair(pair, 2)
    limit = theirs.send.limit
    feed(pair.server, pack(Recall(7, 1 * KIB)) + pack(Return(7, 1 * KIB)), pair.now)
    feed(pair.server, pack(Recall(0, -5)) + pack(Return(0, -5)), pair.now)
    assert theirs.send.limit == limit
    assert said(frames_of(collect(pair.server, pair.now))) == [Return(0, 0)]


def test_credit_that_was_used_cannot_come_back() -> None:
    pair = Pair(limits=LIMITS)
    (mine, theirs), _ = idle_pair(pair, 2)
    theirs.write(bytes(10 * KIB))
    pair.exchange()
    limit = mine.receive.window.limit
    with pytest.raises(RemoteError):
        feed(pair.client, pack(Return(0, limit - 10 * KIB + 1)), pair.now)


def test_nothing_is_asked_back_while_there_is_room() -> None:
    pair = Pair(limits=Limits())
    idle_pair(pair, 10)
    assert tick(pair) == []
