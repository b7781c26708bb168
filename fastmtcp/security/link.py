"""A link: all that a client needs to know of a server, in one line.

    fastmtcp://NAME:KEY@HOST:PORT#FINGERPRINT

KEY are 64 hexadecimal digits, FINGERPRINT is the SHA-256 of the server's certificate, also in
hexadecimal; without it there is no TLS. A link holds a key, so it is never part of an error or a
log line.
"""

from __future__ import annotations

import re

import msgspec

from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import ConfigError
from fastmtcp.security.identity import is_name

_SCHEME = "fastmtcp://"
_LINK = re.compile(
    rf"\s*{_SCHEME}([^:@/\s]+):([0-9a-fA-F]{{64}})@([^@#/\s]+)/?(?:#([0-9a-fA-F]{{64}}))?\s*"
)
_FINGERPRINT = re.compile(r"[0-9a-fA-F]{64}")


class Link(msgspec.Struct, frozen=True):
    """`fingerprint` is None for a server without TLS."""

    name: str
    key: bytes
    endpoint: Endpoint
    fingerprint: bytes | None = None

    @classmethod
    def parse(cls, text: str) -> Link:
        """Raises ConfigError, in which nothing of `text` is repeated."""
        match = _LINK.fullmatch(text)
        if match is None or not is_name(match[1]):
            raise ConfigError("is no link; a link is fastmtcp://NAME:KEY@HOST:PORT#FINGERPRINT")
        try:
            endpoint = Endpoint.parse(match[3])
        except ConfigError:
            endpoint = None
        if endpoint is None or endpoint.port == 0 or endpoint.is_wildcard:
            raise ConfigError("is a link without a valid HOST:PORT behind its @")
        fingerprint = bytes.fromhex(match[4]) if match[4] else None
        return cls(match[1], bytes.fromhex(match[2]), endpoint, fingerprint)

    def text(self) -> str:
        """The link itself, which holds the key."""
        end = f"#{self.fingerprint.hex()}" if self.fingerprint is not None else ""
        return f"{_SCHEME}{self.name}:{self.key.hex()}@{self.endpoint}{end}"

    def __repr__(self) -> str:
        return f"Link({self.name!r}, {str(self.endpoint)!r})"


def parse_fingerprint(text: str) -> bytes:
    """SHA-256 as `A1:B2:...` or as 64 hexadecimal digits. Raises ConfigError."""
    digits = text.strip().replace(":", "")
    if not _FINGERPRINT.fullmatch(digits):
        raise ConfigError("is no fingerprint; write the SHA-256 of the certificate as A1:B2:...")
    return bytes.fromhex(digits)


def show_fingerprint(value: bytes) -> str:
    """As openssl-x509(1) prints it: `A1:B2:...`."""
    return value.hex(":").upper()
