"""Pieces in any order become bytes in order."""

from __future__ import annotations

import mmap
from collections import deque

import pytest
from fastmtcp.engine.streams.reassembly import GapPool, Piece, Reassembly, push
from fastmtcp.engine.wire.errors import RemoteError, SessionCode

TEXT = bytes(range(256)) * 64
BIG = 4096
"""Pieces from this size on are kept as views, smaller ones are copied."""


def insert(reassembly: Reassembly, start: int, end: int) -> bool:
    return reassembly.insert(start, memoryview(TEXT)[start:end])


def ready(reassembly: Reassembly) -> bytes:
    data = b"".join(bytes(piece) for piece in reassembly.ready)
    assert len(data) == reassembly.ready_bytes
    return data


def test_in_order() -> None:
    reassembly = Reassembly(GapPool(10))
    assert insert(reassembly, 0, 10)
    assert insert(reassembly, 10, 30)
    assert (reassembly.next, reassembly.highest, reassembly.gaps) == (30, 30, 0)
    assert ready(reassembly) == TEXT[:30]


def test_out_of_order() -> None:
    reassembly = Reassembly(GapPool(10))
    assert not insert(reassembly, 20, 30)
    assert not insert(reassembly, 5, 10)
    assert (reassembly.next, reassembly.highest, reassembly.gaps) == (0, 30, 2)
    assert insert(reassembly, 0, 5)
    assert ready(reassembly) == TEXT[:10]
    assert insert(reassembly, 10, 20)
    assert (reassembly.next, reassembly.gaps) == (30, 0)
    assert ready(reassembly) == TEXT[:30]


@pytest.mark.parametrize("unit", [1, BIG // 4, BIG])
def test_every_pair_of_overlaps(unit: int) -> None:
    """A hole at the front, two runs that may touch, overlap or contain one another, then the
    missing front. `unit` makes them small pieces (copied) or large ones (views)."""
    ends = [(start, end) for start in range(4) for end in range(start, 4)]
    for first in ends:
        for second in ends:
            for front in range(5):
                reassembly = Reassembly(GapPool(10))
                for start, end in (first, second, (0, front)):
                    insert(reassembly, start * unit, end * unit)
                have = set(range(*first)) | set(range(*second)) | set(range(front))
                reached = min(set(range(5)) - have)
                assert reassembly.next == reached * unit
                assert reassembly.highest == max(have, default=-1) * unit + unit
                assert ready(reassembly) == TEXT[: reached * unit]
                insert(reassembly, 0, 4 * unit)
                assert ready(reassembly) == TEXT[: 4 * unit]
                assert reassembly.gaps == 0


def test_duplicates_are_dropped() -> None:
    reassembly = Reassembly(GapPool(10))
    assert insert(reassembly, 0, 10)
    assert not insert(reassembly, 0, 10)
    assert not insert(reassembly, 3, 7)
    assert not insert(reassembly, 10, 10)
    assert not insert(reassembly, 20, 20)
    assert insert(reassembly, 5, 12)
    assert ready(reassembly) == TEXT[:12]
    assert reassembly.gaps == 0


def test_a_duplicate_of_what_was_taken_is_dropped() -> None:
    reassembly = Reassembly(GapPool(10))
    insert(reassembly, 0, 10)
    reassembly.take(10)
    assert not insert(reassembly, 0, 10)
    assert insert(reassembly, 8, 11)
    assert ready(reassembly) == TEXT[10:11]


@pytest.mark.parametrize("size", [1, 7, BIG, BIG + 1])
def test_take_across_pieces(size: int) -> None:
    reassembly = Reassembly(GapPool(10))
    total = 3 * BIG
    for start in range(0, total, size):
        insert(reassembly, start, min(start + size, total))
    taken = b""
    step = 0
    while reassembly.ready_bytes:
        step = step % 1000 + 13
        count = min(step, reassembly.ready_bytes)
        taken += ready(reassembly)[:count]
        reassembly.take(count)
    assert taken == TEXT[:total]
    assert not reassembly.ready
    insert(reassembly, total, total + 1)
    assert ready(reassembly) == TEXT[total : total + 1]


def test_bytes_that_come_after_a_part_was_taken_are_behind_it() -> None:
    reassembly = Reassembly(GapPool(10))
    insert(reassembly, 0, 10)
    reassembly.take(4)
    insert(reassembly, 10, 20)
    assert ready(reassembly) == TEXT[4:20]


def test_single_bytes_are_joined_not_kept_as_objects() -> None:
    """100 bytes of object for each byte of data would be an attack."""
    for first in (0, 1):  # in order, and behind a gap
        reassembly = Reassembly(GapPool(10))
        for offset in range(first, 10_000):
            insert(reassembly, offset, offset + 1)
        insert(reassembly, 0, 1)
        assert ready(reassembly) == TEXT[:10_000]
        assert len(reassembly.ready) <= 3


def test_small_pieces_do_not_pin_their_buffer_and_large_ones_are_not_copied() -> None:
    queue: deque[Piece] = deque()
    buffer = bytearray(TEXT)
    push(queue, memoryview(buffer)[:10])
    assert type(queue[0]) is bytearray
    push(queue, memoryview(buffer)[:BIG])
    piece = queue[1]
    assert isinstance(piece, memoryview)
    assert piece.obj is buffer


SLAB = 1 << 17
PART = SLAB // 8


def slab(size: int = SLAB) -> memoryview:
    return memoryview(mmap.mmap(-1, size))


def is_copied(piece: Piece) -> bool:
    return type(piece) is bytearray


def test_what_goes_straight_on_is_not_copied_and_what_stays_is_if_it_is_small() -> None:
    reassembly = Reassembly(GapPool(10))
    for size in (BIG, PART - 1, PART, SLAB):
        reassembly.insert(reassembly.next, slab()[:size])
    assert [is_copied(piece) for piece in reassembly.ready] == [False] * 4
    content = ready(reassembly)
    reassembly.settle()
    assert [is_copied(piece) for piece in reassembly.ready] == [True, True, False, False]
    assert ready(reassembly) == content
    # And what comes later.
    reassembly.insert(reassembly.next, slab()[:BIG])
    reassembly.insert(reassembly.next, slab()[:PART])
    reassembly.take(BIG + PART - 1)
    reassembly.settle()
    assert [is_copied(piece) for piece in reassembly.ready] == [False, False, True, False]


def test_what_was_taken_before_it_could_stay_is_not_looked_for() -> None:
    reassembly = Reassembly(GapPool(10))
    for _ in range(5):
        reassembly.insert(reassembly.next, slab()[:BIG])
    reassembly.take(5 * BIG)
    reassembly.insert(reassembly.next, slab()[:BIG])
    reassembly.settle()
    assert [is_copied(piece) for piece in reassembly.ready] == [True]


@pytest.mark.parametrize(("size", "copied"), [(BIG, True), (PART - 1, True), (PART, False)])
def test_what_is_behind_a_gap_is_copied_if_it_is_small(size: int, copied: bool) -> None:
    reassembly = Reassembly(GapPool(10))
    reassembly.insert(1, slab()[:size])
    reassembly.insert(1 + size, slab()[:size])
    reassembly.insert(0, slab()[:1])
    assert [is_copied(piece) for piece in reassembly.ready] == [True, copied, copied]
    assert reassembly.ready_bytes == 1 + 2 * size


def test_of_a_read_that_was_copied_for_itself_a_view_is_kept_only_of_almost_all() -> None:
    """It is in no slab, of which there are only so many: what it holds must be what it counts."""
    reassembly = Reassembly(GapPool(10))
    for size in (BIG, 7 * PART - 1, 7 * PART):
        reassembly.insert(reassembly.next, memoryview(bytes(SLAB))[:size])
    reassembly.settle()
    assert [is_copied(piece) for piece in reassembly.ready] == [True, True, False]


def test_the_rest_of_a_piece_does_not_keep_all_of_it() -> None:
    for piece, most in ((slab(), PART), (slab()[:BIG], BIG), (memoryview(bytes(100)), 50)):
        reassembly = Reassembly(GapPool(10))
        reassembly.insert(0, piece)
        reassembly.take(len(piece) - most)
        reassembly.take(1)
        (rest,) = reassembly.ready
        assert is_copied(rest)
        assert len(rest) == most - 1
    reassembly = Reassembly(GapPool(10))
    reassembly.insert(0, slab())
    reassembly.take(SLAB - PART)
    assert not is_copied(reassembly.ready[0])


def test_a_piece_that_is_just_being_sent_does_not_grow() -> None:
    queue: deque[Piece] = deque()
    push(queue, memoryview(b"abc"))
    with memoryview(queue[0]) as exported:
        push(queue, memoryview(b"def"))
        assert bytes(exported) == b"abc"
    assert [bytes(piece) for piece in queue] == [b"abc", b"def"]


def test_gaps_are_bounded_for_all_streams_together() -> None:
    pool = GapPool(3)
    first, second = Reassembly(pool), Reassembly(pool)
    for reassembly, start in ((first, 2), (second, 2), (second, 4)):
        insert(reassembly, start, start + 1)
    insert(second, 5, 6)
    with pytest.raises(RemoteError) as caught:
        insert(first, 9, 10)
    assert caught.value.code == SessionCode.LIMIT
    insert(second, 0, 4)
    assert pool.free == 1 + 1
    insert(first, 9, 10)
    assert pool.free == 1
    first.clear()
    second.clear()
    assert pool.free == 3


def test_clear() -> None:
    reassembly = Reassembly(GapPool(3))
    insert(reassembly, 0, 3)
    insert(reassembly, 5, 8)
    reassembly.clear()
    assert (reassembly.ready_bytes, reassembly.gaps, len(reassembly.ready)) == (0, 0, 0)
