"""Rates and delays as users write them."""

from __future__ import annotations

import pytest
from fastmtcp.errors import ConfigError
from fastmtcp.units import (
    format_age,
    format_bytes,
    format_delay,
    format_rate,
    parse_delay,
    parse_rate,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20MB", 20_000_000),
        ("160mbit", 20_000_000),
        ("160Mbit/s", 20_000_000),
        ("1gbit", 125_000_000),
        ("1.5GiB/s", 1_610_612_736),
        ("100 kB", 100_000),
        ("64KiB", 65_536),
        ("500000", 500_000),
        ("9bit", 1),
        ("20m", 20_000_000),
    ],
)
def test_rates(text: str, expected: int) -> None:
    assert parse_rate(text) == expected


@pytest.mark.parametrize(
    "text", ["", "20Mb", "20mb", "MB", "-1MB", "0", "1e9", "20MB 5", "2000GB", "inf", "20 XB"]
)
def test_wrong_rates_name_the_remedy(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write it like 20MB|use 1B to 1000GB"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0.0), ("20ms", 0.02), ("0.2s", 0.2), (".5s", 0.5), ("10us", 1e-5)]
)
def test_delays(text: str, expected: float) -> None:
    assert parse_delay(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "20", "-1ms", "11s", "1m", "nans"])
def test_wrong_delays_name_the_remedy(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write it like 20ms|use 0 to 10s"):
        parse_delay(text)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (1000, "1.00 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (99949, "99.9 kB"),
        (99951, "100 kB"),
        (999_600, "1.00 MB"),
        (20_000_000, "20.0 MB"),
        (1.5e9, "1.50 GB"),
        (2e12, "2.00 TB"),
        (3e15, "3.00 PB"),
        (4e18, "4000 PB"),
    ],
)
def test_bytes_have_three_digits(count: float, expected: str) -> None:
    assert format_bytes(count) == expected
    assert format_rate(count) == f"{expected}/s"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.9, "0s"),
        (59.9, "59s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (86399, "23h59m"),
        (86400, "1d00h"),
        (31 * 86400 + 7200, "31d02h"),
    ],
)
def test_ages_have_two_units(seconds: float, expected: str) -> None:
    assert format_age(seconds) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.00 ms"),
        (0.00035, "0.35 ms"),
        (0.0123, "12.3 ms"),
        (0.24, "240 ms"),
        (0.9996, "1.00 s"),
        (1.5, "1.50 s"),
    ],
)
def test_delays_have_three_digits(seconds: float, expected: str) -> None:
    assert format_delay(seconds) == expected
