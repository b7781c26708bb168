"""Which subflow may carry what: every role, every state, every fall-back."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from fastmtcp.engine.limits import MIB, Limits
from fastmtcp.engine.scheduling.lanes import BULK, CONTROL, SWIFT, Lanes
from fastmtcp.engine.session import Session
from fastmtcp.engine.streams.stream import Stream
from fastmtcp.engine.subflows.role import Role
from fastmtcp.engine.subflows.subflow import Cause, State, Subflow

from tests.unit.wire import START

NOW = START
LANES = {"c": CONTROL, "s": SWIFT, "b": BULK}


def make(words: str, number: int = 0) -> Subflow:
    """A subflow from what is said of it: its role, its state, or `aside`."""
    role = Role.BOTH
    role |= Role.EXPRESS if "express" in words else role
    role |= Role.BACKUP if "backup" in words else role
    made = Subflow(number, NOW, role, sends="receives" not in words)
    made.guard.aside = "aside" in words
    if "retiring" in words or "stuck" in words:
        made.retire()
    if "suspect" in words or "stuck" in words:
        made.become_suspect(Cause.KERNEL, NOW)
    made.ready = True
    return made


def lanes(*subflows: Subflow) -> Lanes:
    made = Lanes()
    made.refresh(subflows)
    return made


TABLE = {
    # Roles.
    "plain": "b",
    "plain, plain": "b b",
    "plain, express": "b s",
    "plain, backup": "b c",
    "plain, receives": "b c",
    "plain, express, backup": "b s c",
    "express, receives": "b c",
    "receives": "c",
    "receives, receives": "c c",
    "": "",
    # Bulk goes on the express subflow only if there is no other at all.
    "express": "b",
    "express, express": "b b",
    "express, backup": "s b",
    "express, express backup": "b c",
    "express, backup, express backup": "s b c",
    # A backup carries data where no other can.
    "backup": "b",
    "backup, backup": "b b",
    "backup, receives": "b c",
    "express backup, backup": "s b",
    "express backup": "b",
    # Suspect: nothing while there is a better one.
    "plain, suspect": "b c",
    "suspect": "b",
    "suspect, suspect": "b b",
    "suspect, backup": "c b",
    "suspect, express": "c b",
    "plain, express suspect": "b c",
    "suspect, receives": "b c",
    "suspect, receives suspect": "b c",
    "suspect, suspect backup, receives": "b c c",
    # Leaving: nothing new, whatever else there is.
    "plain, retiring": "b c",
    "retiring": "c",
    "retiring, retiring": "c c",
    "retiring, suspect": "c b",
    "retiring, backup": "c b",
    "retiring, express": "c b",
    "retiring, receives": "c c",
    "retiring, stuck": "c c",
    "stuck": "c",
    "plain, stuck": "b c",
    "suspect, stuck": "b c",
    # Set aside: no bulk, but small streams.
    "plain, aside": "b s",
    "aside": "b",
    "aside, aside": "b b",
    "aside, express": "b s",
    "aside, backup": "b c",
    "aside, suspect": "b c",
    "aside, plain, express": "s b s",
}


@pytest.mark.parametrize("written", TABLE)
def test_every_role_and_state_has_its_lane(written: str) -> None:
    everyone = [make(words, n) for n, words in enumerate(filter(None, written.split(", ")))]
    made = lanes(*everyone)
    expected = [LANES[letter] for letter in TABLE[written].split()]
    assert [one.lane for one in everyone] == expected
    assert made.bulk == [one for one in everyone if one.lane == BULK]
    for one in everyone:
        usual, one.speed.rtt = one.speed.rtt, -1.0
        if one.lane != BULK:
            assert (made.pick_swift(NOW) is one) is (one.lane == SWIFT)
        one.speed.rtt = usual


def test_small_streams_keep_off_the_backup_that_has_bulk() -> None:
    express, backup = make("express"), make("backup", 1)
    backup.speed.rtt = 0.001
    assert lanes(express, backup).pick_swift(NOW) is express


def test_a_lane_is_given_anew() -> None:
    one, other = make(""), make("", 1)
    made = lanes(one, other)
    other.become_suspect(Cause.KERNEL, NOW)
    made.refresh([one, other])
    assert (one.lane, other.lane) == (BULK, CONTROL)
    other.clear()
    made.refresh([one, other])
    assert (one.lane, other.lane) == (BULK, BULK)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("plain, plain", {0, 1}),
        ("plain, receives, backup, express", {0, 1, 2, 3}),
        ("plain, suspect", {0}),
        ("suspect, suspect", {0, 1}),
        ("plain, retiring", {0}),
        ("retiring, stuck", set()),
        ("stuck, stuck", set()),
        ("suspect, retiring", {0}),
    ],
)
def test_control_frames_may_go_on_any_that_works(written: str, expected: set[int]) -> None:
    everyone = [make(words, number) for number, words in enumerate(written.split(", "))]
    made = lanes(*everyone)
    found = set()
    while picked := made.pick_control(NOW):
        found.add(picked.subflow_id)
        picked.ready = False
    assert found == expected


def test_a_subflow_that_is_gone_counts_for_nothing() -> None:
    gone, left = make(""), make("", 1)
    gone.end()
    assert gone.state is State.GONE
    assert lanes(gone, left).bulk == [left]


def unequal(*rtts: float) -> list[Subflow]:
    made = [make("", number) for number in range(len(rtts))]
    for one, rtt in zip(made, rtts, strict=True):
        one.speed.rtt = rtt
    return made


class TestEarliest:
    def test_the_first_of_equals(self) -> None:
        everyone = unequal(0.25, 0.25, 0.25)
        assert lanes(*everyone).pick_control(NOW) is everyone[0]

    def test_only_one_that_is_ready(self) -> None:
        near, far = unequal(0.25, 0.5)
        made = lanes(near, far)
        assert made.pick_control(NOW) is near
        near.ready = False
        assert made.pick_control(NOW) is far
        far.ready = False
        assert made.pick_control(NOW) is None

    def test_another_than_the_holder(self) -> None:
        near, far = unequal(0.25, 0.5)
        made = lanes(near, far)
        assert made.pick_other(near, NOW) is far
        assert made.pick_other(far, NOW) is near
        assert lanes(near).pick_other(near, NOW) is None


class TestSwift:
    def pick(self, everyone: Iterable[Subflow], at: float = 0.0) -> Subflow | None:
        return lanes(*everyone).pick_swift(NOW + at)

    @pytest.mark.parametrize(("rtt", "waits"), [(0.75, True), (0.71, True), (0.69, False)])
    def test_waits_for_one_that_is_much_faster(self, rtt: float, waits: bool) -> None:
        near, far = unequal(0.5, rtt)
        near.ready = False
        assert (self.pick([near, far]) is None) is waits

    def test_not_for_one_that_stands_still(self) -> None:
        near, far = unequal(0.25, 0.75)
        near.ready = False
        assert self.pick([near, far], 0.09) is None
        assert self.pick([near, far], 0.11) is far

    def test_not_where_there_is_one(self) -> None:
        (far,) = unequal(0.75)
        assert self.pick([far]) is far
        far.ready = False
        assert self.pick([far]) is None


def stream(size: int = 1 * MIB) -> Stream:
    session = Session(opener=True, limits=Limits(), now=NOW, peer_floor=8 * MIB)
    made = session.open(NOW)
    made.send.pull(1)
    made.send.write(bytes(size))
    return made


class TestBulk:
    def test_the_only_one_needs_no_comparison(self) -> None:
        (one,) = unequal(9.0)
        made = lanes(one)
        assert made.pick_bulk(stream(), 1, NOW) is one
        one.ready = False
        assert made.pick_bulk(stream(), 1, NOW) is None

    def test_the_earliest_that_is_ready(self) -> None:
        far, near = unequal(0.5, 0.25)
        made = lanes(far, near)
        assert made.pick_bulk(stream(), 1, NOW) is near
        near.ready = False
        assert made.pick_bulk(stream(), 1, NOW) is far
        far.ready = False
        assert made.pick_bulk(stream(), 1, NOW) is None
        assert made.held_back is None

    def slow(self) -> tuple[Lanes, Subflow, Subflow]:
        """One that is too slow for what little is left of a stream, and ready."""
        fast, slow = unequal(0.01, 2.0)
        fast.speed.rate, slow.speed.rate = 1e7, 1e6
        fast.ready = False
        return lanes(fast, slow), fast, slow

    def last(self) -> Stream:
        made = stream(1000)
        made.finish()
        return made

    def test_one_that_is_too_slow_gets_a_copy_first_and_is_held_back_then(self) -> None:
        made, _, slow = self.slow()
        assert made.pick_bulk(self.last(), 1, NOW) is slow
        assert made.probing is slow
        assert made.held_back is None
        # Nothing filled it: for a while it is not asked again.
        assert made.pick_bulk(self.last(), 1, NOW + 13) is None
        assert made.probing is None
        assert made.held_back is slow

    def test_who_was_held_back_is_forgotten_at_the_next_choice(self) -> None:
        made, fast, slow = self.slow()
        made.pick_bulk(self.last(), 1, NOW)
        made.pick_bulk(self.last(), 1, NOW + 13)
        assert made.held_back is slow
        fast.ready = True
        assert made.pick_bulk(self.last(), 1, NOW + 13) is fast
        assert made.held_back is None

    def test_of_several_the_earliest_is_held_back(self) -> None:
        fast, slower, slow = unequal(0.01, 3.0, 2.0)
        for one, rate in ((fast, 1e7), (slower, 1e6), (slow, 1e6)):
            one.speed.rate = rate
        fast.ready = False
        made = lanes(fast, slower, slow)
        assert made.pick_bulk(self.last(), 1, NOW) is slow
        # Slow and slower are asked once; then neither is, and the earlier one is remembered.
        assert made.pick_bulk(self.last(), 1, NOW + 13) is slower
        assert made.pick_bulk(self.last(), 1, NOW + 32) is slow
        assert made.pick_bulk(self.last(), 1, NOW + 32) is slow

    def test_the_faster_one_is_no_probe(self) -> None:
        made, fast, _ = self.slow()
        made.pick_bulk(self.last(), 1, NOW)
        fast.ready = True
        assert made.pick_bulk(self.last(), 1, NOW) is fast
        assert made.probing is None
