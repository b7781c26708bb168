from __future__ import annotations

from fastmtcp.client.pool.slot import FIRST_DELAY, MAX_DELAY, URGENT_DELAY, pause
from fastmtcp.io.backoff import Backoff


def test_each_pause_is_twice_as_long_up_to_the_longest() -> None:
    backoff = Backoff(0.5, 30.0)
    assert [backoff.next() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.failures == 8
    backoff.reset()
    assert backoff.failures == 0
    assert [backoff.next() for _ in range(2)] == [0.5, 1]


def test_no_number_of_failures_is_too_many() -> None:
    backoff = Backoff(0.5, 30.0)
    assert [backoff.next() for _ in range(5000)][-1] == 30


def test_the_first_failure_may_cost_nothing() -> None:
    backoff = Backoff(0.5, 30.0, at_once=True)
    for _ in range(2):
        assert [backoff.next() for _ in range(4)] == [0, 0.5, 1, 2]
        backoff.reset()


def slots() -> Backoff:
    """As a slot of the pool has it."""
    return Backoff(FIRST_DELAY, MAX_DELAY, at_once=True)


def test_a_slot_dials_at_once_and_later_ever_later() -> None:
    several = [slots() for _ in range(20)]
    assert {pause(one, urgent=False) for one in several} == {0}
    for failures in range(1, 200):
        most = min(FIRST_DELAY * 2 ** (failures - 1), MAX_DELAY)
        delays = {pause(one, urgent=False) for one in several}
        assert all(most / 2 <= delay <= most for delay in delays)
        # Jitter: those who lost a server together do not come back together.
        assert len(delays) > 10
    assert (FIRST_DELAY, MAX_DELAY) == (0.2, 30.0)


def test_it_does_not_grow_beyond_a_second_while_streams_wait() -> None:
    backoff = slots()
    assert max(pause(backoff, urgent=True) for _ in range(100)) <= URGENT_DELAY
