"""Sets of half-open ranges."""

from __future__ import annotations

import pytest
from fastmtcp.engine.streams.ranges import RangeSet


def ranges(*pairs: tuple[int, int]) -> RangeSet:
    result = RangeSet()
    for start, end in pairs:
        result.add(start, end)
    return result


def test_empty() -> None:
    empty = RangeSet()
    assert not empty
    assert list(empty) == []
    with pytest.raises(IndexError):
        empty.take(1)


@pytest.mark.parametrize(
    ("pairs", "result"),
    [
        ([(5, 5)], []),
        ([(6, 5)], []),
        ([(0, 2), (4, 6)], [(0, 2), (4, 6)]),
        ([(4, 6), (0, 2)], [(0, 2), (4, 6)]),
        ([(0, 2), (2, 4)], [(0, 4)]),
        ([(2, 4), (0, 2)], [(0, 4)]),
        ([(0, 4), (1, 3)], [(0, 4)]),
        ([(1, 3), (0, 4)], [(0, 4)]),
        ([(0, 2), (4, 6), (2, 4)], [(0, 6)]),
        ([(0, 2), (4, 6), (8, 10), (1, 9)], [(0, 10)]),
        ([(0, 2), (4, 6), (8, 10), (5, 7)], [(0, 2), (4, 7), (8, 10)]),
        ([(-1, 0), (0, 5)], [(-1, 5)]),
        ([(3, 5), (3, 5)], [(3, 5)]),
    ],
)
def test_add(pairs: list[tuple[int, int]], result: list[tuple[int, int]]) -> None:
    assert list(ranges(*pairs)) == result


@pytest.mark.parametrize(
    ("offset", "result"),
    [
        (-1, [(0, 2), (4, 6)]),
        (0, [(0, 2), (4, 6)]),
        (1, [(1, 2), (4, 6)]),
        (2, [(4, 6)]),
        (3, [(4, 6)]),
        (5, [(5, 6)]),
        (6, []),
        (9, []),
    ],
)
def test_drop_below(offset: int, result: list[tuple[int, int]]) -> None:
    held = ranges((0, 2), (4, 6))
    held.drop_below(offset)
    assert list(held) == result
    assert bool(held) == bool(result)


def test_take_lowest_first() -> None:
    held = ranges((4, 6), (0, 3))
    assert list(held) == [(0, 3), (4, 6)]
    assert held.take(2) == (0, 2)
    assert held.take(2) == (2, 3)
    assert held.take(2) == (4, 6)
    assert not held
