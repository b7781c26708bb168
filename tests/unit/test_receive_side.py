"""The receiving half of a stream: credit, FIN, and what is acknowledged."""

from __future__ import annotations

import pytest
from fastmtcp.engine.limits import KIB, MIB, Limits
from fastmtcp.engine.streams.flow_control import WindowPool
from fastmtcp.engine.streams.reassembly import GapPool
from fastmtcp.engine.streams.receive_side import ReceiveSide
from fastmtcp.engine.wire.errors import RemoteError, SessionCode

from tests.unit.wire import START

FLOOR = 64 * KIB


def receiver(pool: int = 0) -> ReceiveSide:
    return ReceiveSide(Limits(floor_window=FLOOR), WindowPool(pool), GapPool(100), START)


def accept(side: ReceiveSide, offset: int, data: bytes, fin: bool = False) -> bool:
    return side.accept(offset, memoryview(data), fin)


def test_bytes_are_acknowledged_when_they_are_here_in_order() -> None:
    side = receiver()
    assert accept(side, 0, b"abc")
    assert side.received == 3
    assert not accept(side, 5, b"f")
    assert side.received == 3
    assert accept(side, 3, b"de")
    assert side.received == 6


def test_the_fin_counts_as_one_byte_once_all_is_here() -> None:
    side = receiver()
    assert not accept(side, 3, b"def", fin=True)
    assert side.received == 0
    assert not side.complete
    assert accept(side, 0, b"abc")
    assert side.received == 7
    assert not side.complete


def test_complete_when_the_application_took_all() -> None:
    side = receiver()
    accept(side, 0, b"abc", fin=True)
    side.data.take(3)
    side.window.take(3, START)
    assert side.complete


def test_an_empty_stream_with_a_fin_is_news() -> None:
    side = receiver()
    assert not side.complete
    assert accept(side, 0, b"", fin=True)
    assert side.received == 1
    assert side.complete


def test_a_fin_behind_a_gap_is_no_end() -> None:
    side = receiver()
    assert not accept(side, 10, b"", fin=True)
    assert not side.complete
    assert side.received == 0


def test_everything_within_the_credit_is_accepted_and_not_a_byte_more() -> None:
    side = receiver()
    accept(side, FLOOR - 1, b"x")
    accept(side, FLOOR, b"", fin=True)
    for offset, data in ((FLOOR, b"x"), (FLOOR - 1, b"xy"), (2**62, b""), (FLOOR + 1, b"")):
        with pytest.raises(RemoteError) as caught:
            accept(receiver(), offset, data)
        assert caught.value.code == SessionCode.FLOW_CONTROL


def test_credit_that_was_not_told_does_not_count() -> None:
    side = receiver()
    accept(side, 0, b"x" * FLOOR)
    side.data.take(FLOOR)
    side.window.take(FLOOR, START)
    with pytest.raises(RemoteError):
        accept(side, FLOOR, b"x")
    side.window.tell()
    assert accept(side, FLOOR, b"x")


def test_negative_offsets() -> None:
    for offset, data in ((-1, b"ab"), (-1, b""), (-(2**62), b"x")):
        with pytest.raises(RemoteError) as caught:
            accept(receiver(), offset, data)
        assert caught.value.code == SessionCode.PROTOCOL


@pytest.mark.parametrize(
    ("offset", "data", "fin"),
    [
        (0, b"abcd", True),  # another, lower FIN
        (0, b"abcdef", True),  # another, higher FIN
        (0, b"abcdef", False),  # data behind the FIN
        (6, b"", False),
        (5, b"x", False),
    ],
)
def test_contradictions_of_a_fin_at_5(offset: int, data: bytes, fin: bool) -> None:
    for first in (b"abcde", b"e"):  # whole, or behind a gap
        side = receiver()
        accept(side, 5 - len(first), first, fin=True)
        with pytest.raises(RemoteError) as caught:
            accept(side, offset, data, fin=fin)
        assert caught.value.code == SessionCode.PROTOCOL


def test_a_fin_below_what_came_before() -> None:
    for offset in (0, 3):
        side = receiver()
        accept(side, offset, b"abc")
        with pytest.raises(RemoteError) as caught:
            accept(side, 0, b"ab", fin=True)
        assert caught.value.code == SessionCode.PROTOCOL


def test_repetitions_agree_with_the_fin() -> None:
    side = receiver()
    accept(side, 0, b"abc", fin=True)
    accept(side, 0, b"abc", fin=True)
    accept(side, 1, b"b")
    accept(side, 3, b"", fin=True)
    accept(side, 3, b"")
    assert side.received == 4
    assert side.data.ready_bytes == 3


def test_an_ack_is_urgent_when_a_quarter_of_the_window_has_come() -> None:
    side = receiver()
    accept(side, 0, b"x" * (FLOOR // 4 - 1))
    assert not side.ack_is_urgent
    accept(side, FLOOR // 4 - 1, b"x")
    assert side.ack_is_urgent
    side.told = side.received
    assert not side.ack_is_urgent
    assert not side.window.worth_telling
    side.window.take(FLOOR // 4, START)
    assert side.window.worth_telling


def test_all_is_here_with_the_fin_and_every_byte_before_it() -> None:
    side = receiver()
    assert not side.is_all_here
    accept(side, 0, b"ab")
    assert not side.is_all_here
    accept(side, 3, b"d", fin=True)
    assert not side.is_all_here
    assert side.received == 2
    accept(side, 2, b"c")
    assert side.is_all_here
    assert not side.complete


def test_much_that_is_not_acknowledged_is_urgent_however_large_the_window() -> None:
    limits = Limits(floor_window=16 * MIB)
    side = ReceiveSide(limits, WindowPool(0), GapPool(100), START)
    side.data.next = 1 * MIB - 1
    assert not side.ack_is_urgent
    side.data.next += 1
    assert side.ack_is_urgent
