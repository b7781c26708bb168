"""RangeSet against a set of integers."""

from __future__ import annotations

from itertools import pairwise

from fastmtcp.engine.streams.ranges import RangeSet
from hypothesis import given, settings
from hypothesis import strategies as st

POINTS = st.integers(-3, 40)
ACTIONS = st.one_of(
    st.tuples(st.just("add"), POINTS, POINTS),
    st.tuples(st.just("drop"), POINTS, POINTS),
    st.tuples(st.just("take"), st.integers(1, 10), POINTS),
)


@settings(max_examples=300)
@given(st.lists(ACTIONS, max_size=40))
def test_like_a_set_of_integers(actions: list[tuple[str, int, int]]) -> None:
    ranges = RangeSet()
    model: set[int] = set()
    for action, first, second in actions:
        if action == "add":
            ranges.add(first, second)
            model |= set(range(first, second))
        elif action == "drop":
            ranges.drop_below(first)
            model = {value for value in model if value >= first}
        elif model:
            start, end = ranges.take(first)
            assert start == min(model)
            assert 0 < end - start <= first
            taken = set(range(start, end))
            assert taken <= model
            model -= taken
            assert end - start == first or end not in model
        assert bool(ranges) == bool(model)
        assert {value for start, end in ranges for value in range(start, end)} == model
        assert all(start < end for start, end in ranges)
        assert all(end < start for (_, end), (start, _) in pairwise(ranges))
