"""TLS KeyUpdate messages without end (RFC 8446, section 4.6.3), which no library offers to send.

Each costs its receiver a new key, and its sender 27 bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from fastmtcp.security.tls import Tls

_KEY_UPDATE = b"\x18\0\0\1\0"
_HANDSHAKE = b"\x16"
_DATA = b"\x17"
_HEAD = b"\x17\3\3"


class KeyUpdater:
    """A client's TLS whose next records are KeyUpdates. Shake hands with `tls`, and send nothing
    else through it."""

    def __init__(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with tempfile.TemporaryDirectory() as folder:
            self._log = Path(folder) / "keys"
            context.keylog_filename = str(self._log)
            self.tls = Tls(context)
            self._keys = open(self._log)  # noqa: SIM115

    def records(self, count: int, content: bytes = b"") -> Iterator[bytes]:
        """The next `count`, once the handshake of TLS is over, each behind a record with `content`
        if there is any."""
        lines = (line.split() for line in self._keys)
        secret = next(bytes.fromhex(it[2]) for it in lines if it[0] == "CLIENT_TRAFFIC_SECRET_0")
        self._keys.close()
        for _ in range(count):
            key = _expand(secret, "key", 16 if len(secret) == 32 else 32)
            first = int.from_bytes(_expand(secret, "iv", 12))
            said = [content + _DATA] if content else []
            out = b""
            for number, plain in enumerate((*said, _KEY_UPDATE + _HANDSHAKE)):
                head = _HEAD + (len(plain) + 16).to_bytes(2)
                out += head + AESGCM(key).encrypt((first ^ number).to_bytes(12), plain, head)
            yield out
            secret = _expand(secret, "traffic upd", len(secret))


def _expand(secret: bytes, label: str, size: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446, section 7.1) of up to one block, without a context."""
    name = f"tls13 {label}".encode()
    info = size.to_bytes(2) + bytes([len(name)]) + name + b"\0\1"
    digest = hashlib.sha256 if len(secret) == 32 else hashlib.sha384
    return hmac.new(secret, info, digest).digest()[:size]
