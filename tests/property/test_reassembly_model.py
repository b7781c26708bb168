"""Reassembly against a dict of offset -> byte."""

from __future__ import annotations

from fastmtcp.engine.streams.reassembly import GapPool, Reassembly
from fastmtcp.engine.wire.errors import RemoteError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

SPAN = 40_000
TEXT = bytes((offset * 7 + offset // 251) % 256 for offset in range(SPAN))
OFFSETS = st.one_of(st.integers(0, 60), st.integers(0, SPAN))
SIZES = st.one_of(st.integers(0, 20), st.integers(4090, 4100), st.integers(0, 20_000))
"""Around 4 KiB pieces change from copies to views."""


class ReassemblyMachine(RuleBasedStateMachine):
    """Any pieces of TEXT in any order, and an application that takes what is ready."""

    def __init__(self) -> None:
        super().__init__()
        self.gaps = GapPool(10_000)
        self.reassembly = Reassembly(self.gaps)
        self.model: dict[int, int] = {}
        self.next = 0
        self.taken = bytearray()

    @rule(offset=OFFSETS, size=SIZES)
    def insert(self, offset: int, size: int) -> None:
        end = min(offset + size, SPAN)
        piece = bytearray(TEXT[offset:end])
        fresh = self.reassembly.insert(offset, memoryview(piece))
        for position in range(offset, end):
            self.model.setdefault(position, TEXT[position])
        before = self.next
        while self.next in self.model:
            self.next += 1
        assert fresh == (self.next > before)

    @rule(back=st.integers(0, 5000), size=SIZES)
    def insert_at_the_front(self, back: int, size: int) -> None:
        self.insert(max(0, self.next - back), size)

    @rule(share=st.floats(0, 1))
    def take(self, share: float) -> None:
        count = int(self.reassembly.ready_bytes * share)
        data = b"".join(bytes(piece) for piece in self.reassembly.ready)
        self.reassembly.take(count)
        self.taken += data[:count]

    @invariant()
    def agrees(self) -> None:
        reassembly = self.reassembly
        assert reassembly.next == self.next
        ready = b"".join(bytes(piece) for piece in reassembly.ready)
        assert all(len(piece) for piece in reassembly.ready)
        assert len(ready) == reassembly.ready_bytes
        assert bytes(self.taken) + ready == TEXT[: self.next]
        assert reassembly.highest == max(self.model, default=-1) + 1
        behind = [offset for offset in self.model if offset > self.next]
        holes = sum(offset - 1 not in self.model for offset in behind)
        # Runs that touch are not joined: there may be more runs than holes, never fewer.
        assert reassembly.gaps >= holes
        assert (reassembly.gaps == 0) == (not behind)
        assert self.gaps.free == 10_000 - reassembly.gaps


ReassemblyMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestReassembly = ReassemblyMachine.TestCase


@given(
    st.lists(st.tuples(st.integers(0, 80), st.integers(1, 15)), max_size=60),
    st.integers(0, 6),
)
def test_gaps_never_exceed_their_limit(pieces: list[tuple[int, int]], limit: int) -> None:
    reassembly = Reassembly(GapPool(limit))
    have: set[int] = set()
    for offset, size in pieces:
        try:
            reassembly.insert(offset, memoryview(TEXT)[offset : offset + size])
        except RemoteError:
            # Only if there really are many runs, or pieces that came in falling order.
            assert len(have) >= limit
            return
        have.update(range(offset, offset + size))
        assert reassembly.gaps <= limit


@given(st.permutations(range(12)), st.integers(1, 5000))
def test_any_permutation_of_overlapping_chunks(order: list[int], size: int) -> None:
    reassembly = Reassembly(GapPool(100))
    for index in order:
        start = index * size
        end = min(start + size + size // 2, 12 * size, SPAN)
        reassembly.insert(start, memoryview(TEXT)[start:end])
    total = min(12 * size, SPAN)
    assert b"".join(bytes(piece) for piece in reassembly.ready) == TEXT[:total]
    assert reassembly.gaps == 0
