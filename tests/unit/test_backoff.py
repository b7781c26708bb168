from __future__ import annotations

from fastmtcp.client.pool.slot import FIRST_DELAY, MAX_DELAY, URGENT_DELAY, backoff


def test_the_first_attempt_is_made_at_once_and_later_ones_ever_later() -> None:
    assert backoff(0, urgent=False) == 0
    for attempts in range(1, 200):
        most = min(FIRST_DELAY * 2 ** (attempts - 1), MAX_DELAY)
        delays = {backoff(attempts, urgent=False) for _ in range(20)}
        assert all(most / 2 <= delay <= most for delay in delays)
        # Jitter: those who lost a server together do not come back together.
        assert len(delays) > 10
    assert (FIRST_DELAY, MAX_DELAY) == (0.2, 30.0)


def test_it_does_not_grow_beyond_a_second_while_streams_wait() -> None:
    assert max(backoff(attempts, urgent=True) for attempts in range(100)) <= URGENT_DELAY
