"""Who a client is: its name and key, and what a server keeps of them (docs/SPEC.md, section 3.2).

As in SCRAM (RFC 5802, section 3), but without salt and iterations: those slow down the guessing of
passwords, and a key has 256 random bits. A server keeps what it needs to check a proof, and that is
not enough to make one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping

import msgspec

KEY_SIZE = 32
UNNAMED = ""
"""The client that a server's key file describes."""

NO_KEY = bytes(KEY_SIZE)
"""Stands for the key where there is none; such a server listens on loopback only."""

MAX_NAME = 64
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{MAX_NAME - 1}}}")

NAME_FORM = f"write up to {MAX_NAME} letters, digits, dots, underscores and hyphens"


def is_name(text: str) -> bool:
    """Whether a client may be called so: letters, digits, dots, underscores and hyphens."""
    return _NAME.fullmatch(text) is not None


class Verifier(msgspec.Struct, frozen=True):
    """What a server keeps of a client: 32 bytes each."""

    stored_key: bytes
    server_key: bytes

    def __repr__(self) -> str:
        return "Verifier()"


Clients = Mapping[str, Verifier]
"""All clients that a server lets in, by name."""


class Identity(msgspec.Struct, frozen=True):
    """A client's name and what it makes its proofs with."""

    name: str
    client_key: bytes
    server_key: bytes

    @classmethod
    def from_key(cls, name: str, key: bytes) -> Identity:
        """Of a `key` of KEY_SIZE bytes."""
        client_key = hmac.digest(key, b"Client Key", "sha256")
        return cls(name, client_key, hmac.digest(key, b"Server Key", "sha256"))

    @property
    def verifier(self) -> Verifier:
        return Verifier(hashlib.sha256(self.client_key).digest(), self.server_key)

    def __repr__(self) -> str:
        return f"Identity(name={self.name!r})"


def unnamed(key: bytes) -> Clients:
    """The clients of a server that has one key for everybody."""
    return {UNNAMED: Identity.from_key(UNNAMED, key).verifier}
