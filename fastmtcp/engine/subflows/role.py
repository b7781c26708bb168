"""What a subflow is for. Both sides know it from the handshake."""

from __future__ import annotations

import enum


class Role(enum.IntFlag):
    """Flags of a subflow, as they stand in the HELLO (docs/SPEC.md)."""

    UP = 1
    """The client may send data on it."""
    DOWN = 2
    """The server may send data on it."""
    BACKUP = 4
    """Carries data only while no other subflow can."""
    EXPRESS = 8
    """Carries small streams and control frames; bulk data never makes them wait here."""

    BOTH = UP | DOWN

    @classmethod
    def from_wire(cls, value: int) -> Role:
        """Flags of a newer peer are ignored; a subflow for no direction is one for both."""
        role = cls(value & 15)
        return role if role & cls.BOTH else role | cls.BOTH

    def carries(self, *, client: bool) -> bool:
        """True if that side may send data on the subflow; control frames go on any."""
        return bool(self & (Role.UP if client else Role.DOWN))
