"""Rates and delays as users write them (`20MB`, `160mbit`, `20ms`), and as they read them."""

from __future__ import annotations

import re

from fastmtcp.errors import ConfigError

_NUMBER = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*"
_RATE = re.compile(_NUMBER + r"([kKmMgG]i?)?(B|(?i:bit))?(?:/s)?")
_DELAY = re.compile(_NUMBER + r"(us|ms|s)")
_TIMES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_PREFIXES = ("", "k", "M", "G", "T", "P")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def parse_rate(text: str) -> int:
    """Read a rate such as `20MB`, `160mbit`, `1.5GiB/s` or `500000`; return bytes per second.

    A number alone is bytes per second. `B` is bytes and `bit` is bits; `k`, `M` and `G` are
    powers of 1000 and `Ki`, `Mi`, `Gi` of 1024. `20Mb` is refused, as people read it both ways.
    Raises ConfigError for anything else and for less than 1 B/s or more than 1000 GB/s.
    """
    found = _RATE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"rate {text!r} is not understood; write it like 20MB or 160mbit")
    number, prefix, kind = found.groups()
    bits = kind is not None and kind != "B"
    value = float(number) * _TIMES[(prefix or "").lower()] / (8 if bits else 1)
    if not 1 <= value <= 1e12:
        raise ConfigError(f"rate {text!r} is out of range; use 1B to 1000GB")
    return round(value)


def parse_delay(text: str) -> float:
    """Read a delay such as `20ms`, `0.2s` or `0`; return seconds, 0 to 10. Raises ConfigError."""
    if text.strip() == "0":
        return 0.0
    found = _DELAY.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"delay {text!r} is not understood; write it like 20ms or 0.2s")
    value = float(found.group(1)) * _SECONDS[found.group(2)]
    if value > 10:
        raise ConfigError(f"delay {text!r} is out of range; use 0 to 10s")
    return value


def format_bytes(count: float) -> str:
    """`0 B`, `999 B`, `1.23 kB`, `45.6 MB`: three digits, powers of 1000."""
    if count < 999.5:
        return f"{count:.0f} B"
    power = 0
    while count >= 999.5 and power < len(_PREFIXES) - 1:
        count /= 1000
        power += 1
    digits = 2 if count < 9.995 else 1 if count < 99.95 else 0
    return f"{count:.{digits}f} {_PREFIXES[power]}B"


def format_rate(rate: float) -> str:
    """Bytes per second as `12.3 MB/s`."""
    return f"{format_bytes(rate)}/s"


def format_age(seconds: float) -> str:
    """`5s`, `2m05s`, `3h07m`, `12d03h`: the two largest units."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole // 60 % 60:02}m"
    return f"{whole // 86400}d{whole // 3600 % 24:02}h"


def format_delay(seconds: float) -> str:
    """`0.35 ms`, `12.3 ms`, `240 ms`, `1.50 s`."""
    if seconds >= 0.9995:
        return f"{seconds:.2f} s"
    millis = seconds * 1000
    digits = 2 if millis < 9.995 else 1 if millis < 99.95 else 0
    return f"{millis:.{digits}f} ms"
