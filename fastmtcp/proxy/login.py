"""The user name and password that the proxy wants, from a file that only its owner can read."""

from __future__ import annotations

import hashlib
import hmac
import os

import msgspec

from fastmtcp.errors import ConfigError
from fastmtcp.security import keys
from fastmtcp.security.redaction import redact

_MAX = 255
"""Bytes of a user name or password (RFC 1929)."""
_MAX_FILE = 4096


class Login(msgspec.Struct, frozen=True):
    """A user name and a password, neither of which is ever shown."""

    user: bytes
    password: bytes

    def __repr__(self) -> str:
        return "Login(hidden)"

    def matches(self, user: bytes, password: bytes) -> bool:
        """Compare in a time that tells nothing of where they differ."""
        same_user = hmac.compare_digest(_digest(self.user), _digest(user))
        return hmac.compare_digest(_digest(self.password), _digest(password)) and same_user


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def load(path: str | os.PathLike[str]) -> Login:
    """Read a file with USER:PASSWORD in one line. Raises ConfigError as
    fastmtcp.security.keys.load, or if there is something else in it; nothing of it is repeated."""
    content = keys.read_private(path, "login file", _MAX_FILE, "write USER:PASSWORD to it")
    user, colon, password = content.removesuffix(b"\n").removesuffix(b"\r").partition(b":")
    name = f"login file {redact(str(path))}"
    text = user + password
    if not colon or not user or not password or any(byte < 32 or byte == 127 for byte in text):
        raise ConfigError(f"{name} does not hold USER:PASSWORD in one line and nothing else")
    if max(len(user), len(password)) > _MAX:
        raise ConfigError(f"{name} has a user name or password of more than {_MAX} bytes")
    return Login(user, password)
