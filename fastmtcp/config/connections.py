"""How many TCP connections a path has: `4`, or by itself within `2-16`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Self

import msgspec

from fastmtcp.errors import FormError

MAX_CONNECTIONS = 64
"""Connections of one path."""

_TEXT = re.compile(r"([0-9]{1,4})(?:\s*-\s*([0-9]{1,4}))?")


class Connections(msgspec.Struct, frozen=True):
    """From `least` to `most` connections, 1 to MAX_CONNECTIONS; if both are the same, so many."""

    FORM: ClassVar[str] = f"a whole number from 1 to {MAX_CONNECTIONS}, or a range such as 2-16"

    least: int
    most: int

    @classmethod
    def read(cls, value: object) -> Self:
        """Read `4`, `"4"` or `"2-16"`. Raises FormError."""
        if type(value) is int:
            return cls._checked(value, value)
        match = _TEXT.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise FormError(cls.FORM)
        return cls._checked(int(match[1]), int(match[2] or match[1]))

    @classmethod
    def _checked(cls, least: int, most: int) -> Self:
        if not 1 <= least <= most <= MAX_CONNECTIONS:
            raise FormError(cls.FORM)
        return cls(least, most)

    @property
    def is_fixed(self) -> bool:
        return self.least == self.most

    def __str__(self) -> str:
        return str(self.least) if self.is_fixed else f"{self.least}-{self.most}"


def fit(ranges: Sequence[Connections], limit: int) -> list[Connections]:
    """Lower the upper ends of `ranges`, the highest first, until they come to `limit` or less.

    What cannot be lowered any more, because the lower ends alone are above it, stays.
    """
    cap = MAX_CONNECTIONS
    while cap > 1 and sum(max(r.least, min(r.most, cap)) for r in ranges) > limit:
        cap -= 1
    return [Connections(r.least, max(r.least, min(r.most, cap))) for r in ranges]
