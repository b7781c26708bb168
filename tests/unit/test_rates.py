from __future__ import annotations

from fastmtcp.engine.subflows.subflow import Subflow
from fastmtcp.status.rates import Rates


def test_a_rate_is_measured_over_one_to_two_samples() -> None:
    rates, subflow = Rates(), Subflow(0, 100.0)
    for second in range(5):
        rates.sample([subflow], 100.0 + second)
        subflow.bytes_sent += 1000
        subflow.bytes_received += 10
    # Sampled at 103 with 3000 and at 104 with 4000.
    assert rates.of(subflow, 104.0) == (2000, 20)
    assert rates.of(subflow, 105.0) == (1000, 10)


def test_a_burst_long_ago_is_no_rate() -> None:
    rates, subflow = Rates(), Subflow(0, 100.0)
    subflow.bytes_sent = 1 << 30
    for second in (101.0, 102.0):
        rates.sample([subflow], second)
    assert rates.of(subflow, 102.5) == (0, 0)


def test_a_new_subflow_is_measured_since_it_is_there() -> None:
    rates, subflow = Rates(), Subflow(0, 100.0)
    subflow.bytes_sent = 500
    assert rates.of(subflow, 100.5) == (1000, 0)
    # Over no time at all any byte would be an endless rate.
    assert rates.of(subflow, 100.0) == (2500, 0)


def test_subflows_that_are_gone_are_forgotten() -> None:
    rates, subflow = Rates(), Subflow(0, 100.0)
    for second in (101.0, 102.0):
        rates.sample([subflow], second)
    for second in (103.0, 104.0):
        rates.sample([], second)
    assert not rates._older
    assert not rates._newer
