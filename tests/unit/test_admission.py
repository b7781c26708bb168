"""How many unauthenticated connections a worker has."""

from __future__ import annotations

import pytest
from fastmtcp.server import admission
from fastmtcp.server.admission import (
    ACCEPT_RATE,
    FORGIVE_EVERY,
    FREE_FAILURES,
    MAX_ADDRESSES,
    MAX_FAILURES,
    MAX_PER_ADDRESS,
    SLOW_EVERY,
    Admission,
)

MOST = 1024
START = 1_000_000.0


def host(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def fail(one: Admission, where: str, count: int, now: float) -> None:
    for _ in range(count):
        one.failed(where, now)


def test_one_address_cannot_take_all_places() -> None:
    one = Admission(START, MOST)
    for _ in range(MAX_PER_ADDRESS):
        assert one.accept(host(1), START)
    assert not one.accept(host(1), START)
    assert not one.take_over(host(1))
    assert one.accept(host(2), START)
    one.leave(host(1), accepted=True)
    assert one.take_over(host(1))
    assert not one.accept(host(1), START + 1.0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:0:1::7", "2001:db8:0:1:ffff::8", True),
        ("2001:db8:0:1::7", "2001:db8:0:2::7", False),
        ("::ffff:192.0.2.7", "192.0.2.7", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("192.0.2.7", "192.0.2.8", False),
    ],
)
def test_what_counts_as_one_address(
    one: str, other: str, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MAX_PER_ADDRESS", 1)
    connections = Admission(START, MOST)
    assert connections.accept(one, START)
    assert connections.accept(other, START) is not same


def test_when_all_places_are_taken_some_are_left_for_other_workers() -> None:
    one, now = Admission(START, MOST), START
    for number in range(MOST * 3 // 4):
        while one.delay(now):
            now += 0.1
        assert one.delay(now) == 0
        assert one.accept(host(number), now)
    assert one.delay(now + 100) is None
    for number in range(MOST // 4):
        assert one.take_over(host(number))
    assert not one.take_over(host(5000))
    one.leave(host(0), accepted=False)
    assert one.delay(now + 100) is None
    one.leave(host(0), accepted=True)
    assert one.delay(now + 100) == 0


def test_no_more_than_so_many_a_second() -> None:
    one = Admission(START, MOST)
    accepted, now = 0, START
    while now < START + 10:
        delay = one.delay(now)
        assert delay is not None
        if delay:
            now += delay + 1e-9
            continue
        assert one.accept(host(accepted), now)
        one.leave(host(accepted), accepted=True)
        accepted += 1
    assert accepted == pytest.approx(ACCEPT_RATE * 11, rel=0.01)  # a second's worth at once


def test_one_that_is_closed_at_once_hardly_counts() -> None:
    one = Admission(START, MOST)
    for _ in range(MAX_PER_ADDRESS):
        one.accept(host(1), START)
    before = MAX_PER_ADDRESS + 1
    for _ in range(400):
        assert not one.accept(host(1), START)
    assert before + 40 < ACCEPT_RATE
    assert one.delay(START) == 0


def test_an_address_that_fails_often_is_slowed_down_and_forgiven() -> None:
    one, bad, good = Admission(START, MOST), host(1), host(2)
    fail(one, bad, FREE_FAILURES - 1, START)
    for _ in range(3):
        assert one.accept(bad, START)
    fail(one, bad, 2, START)
    assert one.accept(bad, START + 0.1)
    assert not one.accept(bad, START + 0.2)
    assert not one.accept(bad, START + 0.1 + SLOW_EVERY - 0.01)
    assert one.accept(bad, START + 0.1 + SLOW_EVERY)
    assert one.accept(good, START + 0.2)
    later = START + 1.5 * FORGIVE_EVERY
    for _ in range(3):
        assert one.accept(bad, later)


def test_however_often_it_fails_it_is_forgiven_in_time() -> None:
    one = Admission(START, MOST)
    fail(one, host(1), 10_000, START)
    over = START + FORGIVE_EVERY * (MAX_FAILURES - FREE_FAILURES)
    assert one.accept(host(1), over - 10)
    assert not one.accept(host(1), over - 9.9)
    for _ in range(3):
        assert one.accept(host(1), over + 1)


def test_the_memory_of_failures_is_bounded() -> None:
    one = Admission(START, MOST)
    fail(one, host(0), FREE_FAILURES, START)
    fail(one, host(1), FREE_FAILURES, START)
    for number in range(2, MAX_ADDRESSES + 1):
        one.failed(host(number), START + 1)
    one.failed(host(1), START + 1)
    one.failed(host(9999), START + 1)
    assert len(one._records) == MAX_ADDRESSES
    # The one that failed least recently was forgotten, and the other not.
    assert [one.accept(host(0), START + 1.0) for _ in range(2)] == [True, True]
    assert [one.accept(host(1), START + 1.0) for _ in range(2)] == [True, False]


def test_nothing_is_left_of_those_that_are_gone() -> None:
    one = Admission(START, MOST)
    for number in range(100):
        one.accept(host(number), START)
        one.take_over(host(number))
    for number in range(100):
        one.leave(host(number), accepted=True)
        one.leave(host(number), accepted=False)
    assert one._waiting == {}
    assert (one._total, one._accepted) == (0, 0)


def test_take_overs_have_no_place_beyond_all() -> None:
    one = Admission(START, 4)
    for number in range(3):
        assert one.accept(host(number), START)
    assert one.delay(START) is None
    assert one.take_over(host(3))
    assert not one.take_over(host(4))
    one.leave(host(3), accepted=False)
    assert one.take_over(host(4))


def test_take_overs_fill_the_places_of_those_that_come_by_themselves() -> None:
    one = Admission(START, 4)
    for number in range(4):
        assert one.delay(START) == 0
        assert one.take_over(host(number))
    assert one.delay(START + 100) is None
    one.leave(host(0), accepted=False)
    assert one.delay(START + 100) == 0


def test_one_address_has_so_many_take_overs() -> None:
    one = Admission(START, MOST)
    for _ in range(MAX_PER_ADDRESS):
        assert one.take_over(host(1))
    assert not one.take_over(host(1))
    assert one.take_over(host(2))


def test_there_is_always_one_place() -> None:
    one = Admission(START, 1)
    assert one.delay(START) == 0
    assert one.accept(host(1), START)
    assert one.delay(START + 9) is None


def test_time_that_has_passed_counts_for_who_comes_next() -> None:
    one = Admission(START, MOST)
    for number in range(300):
        assert one.accept(host(number), START)
    assert one.accept(host(301), START + 1)
    assert one.delay(START + 1) == 0
    for number in range(400, 698):
        assert one.accept(host(number), START + 1)
    assert one.delay(START + 1) == 0
    assert one.accept(host(999), START + 1)
    assert one.delay(START + 1) == pytest.approx(1 / 300)


def test_a_first_failure_is_one_whenever_it_comes() -> None:
    for at in (0.0, START):
        one = Admission(at, MOST)
        one.failed(host(1), at)
        assert one._records[host(1)].failures == 1


def test_failures_are_forgotten_one_by_one() -> None:
    one = Admission(START, MOST)
    fail(one, host(1), 2, START)
    record = one._records[host(1)]
    assert record.level(START) == 2
    assert record.level(START + FORGIVE_EVERY) == 1
    assert record.level(START + 1.5 * FORGIVE_EVERY) == 0.5
    assert record.level(START + 100 * FORGIVE_EVERY) == 0
    # What was forgotten does not count for the next one.
    one.failed(host(1), START + 100 * FORGIVE_EVERY)
    assert record.failures == 1
    assert record.failed_at == START + 100 * FORGIVE_EVERY
    fail(one, host(1), 100, START + 100 * FORGIVE_EVERY)
    assert record.failures == MAX_FAILURES == 60


def test_the_numbers_are_those_of_the_documents() -> None:
    found = (MAX_PER_ADDRESS, ACCEPT_RATE, FREE_FAILURES, FORGIVE_EVERY, SLOW_EVERY, MAX_ADDRESSES)
    assert found == (256, 300.0, 20, 5.0, 1.0, 4096)
    one = Admission(START, MOST)
    for number in range(299):
        assert one.accept(host(number), START)
    fail(one, host(999), 100, START)
    assert one.accept(host(999), START)
    assert one.delay(START) == pytest.approx(1 / 300)
    assert not one.accept(host(999), START)
    assert one.delay(START) == pytest.approx(1.1 / 300)
