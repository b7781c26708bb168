"""TLS 1.3 (RFC 8446) of one connection, between its socket and its plaintext.

Through memory (ssl.MemoryBIO) and not ssl.SSLSocket: that reads and writes one record of 16 KiB a
call, and keeps bytes that no poller knows of. Here the ciphertext of a whole chunk goes out with
one system call, what the kernel does not take stays with the caller like any other bytes, and
recv_into() ends as on a plain socket: full, or with nothing left anywhere. Both are equally fast
(perf/README.md).
"""

from __future__ import annotations

import errno
import hashlib
import socket
import ssl
from collections.abc import Callable, Sequence

from fastmtcp.errors import PeerError
from fastmtcp.io.buffers import Buffer

_RECORD = 16 * 1024
"""Bytes that one record takes at most, and after which ciphertext is taken out of OpenSSL's memory:
that never shrinks, and would hold a whole chunk for each connection for good."""

_SMALL = 2048
"""Buffers below this go together into one record."""

_OVERHEAD = 22
"""Bytes of a record that are no plaintext, unless it is padded (RFC 8446, section 5.2)."""

MAX_EMPTY = 32 * 1024
"""Bytes of ciphertext of one connection that may bring no plaintext: a record that is not whole
yet, of up to 16.3 KiB, and keys that are changed. A peer that changes its keys without end makes us
do the same, and that costs as much for 27 bytes as to decipher 16 KiB."""

_MAX_RECORDS = 64
"""Records for one read: full ones fill any buffer, and those of one byte must not keep the loop."""

MAX_BYTES = 256 << 30
"""Bytes in one direction of a connection, after which it is replaced: one key of AES-GCM is good
for 2^24.5 records of 16 KiB (RFC 8446, section 5.5), and ssl offers no way to change it."""


class Tls:
    """The state of one connection. Bytes to send come from start(), feed() and seal(), in order."""

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_name: str | None = None,
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name
        )
        self._sent = 0
        self._received = 0
        self._empty = 0
        self.is_up = False
        """The handshake of TLS is done."""
        self.has_more = False
        """The last recv_into() has left something in here, of which no poller knows."""

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take ciphertext while nobody reads by recv_into() yet. Returns all plaintext there is,
        and bytes to send. A client begins with no `data`.

        Raises:
            PeerError: no TLS, or not to our liking.
        """
        plain = bytearray()
        try:
            if data:
                self._incoming.write(data)
            if not self.is_up:
                self._object.do_handshake()
                self.is_up = True
            while piece := self._object.read(_RECORD):
                plain += piece
            if not plain:
                raise PeerError("the peer closed the connection during the handshake")
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise PeerError(f"TLS: {reason(error)}") from None
        return bytes(plain), self._outgoing.read()

    def parting_words(self) -> bytes:
        """The alert that tells the peer why feed() has failed."""
        return self._outgoing.read()

    @property
    def is_worn_out(self) -> bool:
        """A key has been used for as much as it is good for."""
        return max(self._sent, self._received) > MAX_BYTES

    def peer_certificate(self) -> bytes:
        """In DER; empty if it has none."""
        return self._object.getpeercert(binary_form=True) or b""

    def binding(self) -> bytes:
        """32 bytes that both ends of this connection have and no other connection: the SHA-256 of
        the client's Finished, which is a MAC over the whole handshake of TLS (RFC 8446, 4.4.4).

        `tls-unique` is not defined for TLS 1.3, as it is not safe in older versions, and the
        exporter that RFC 9266 defines instead is not to be had in Python. Here there is no older
        version, no resumption and no second handshake, and the transcript that the MAC covers has
        the random values and key shares of both sides, so it is as good.

        Raises:
            PeerError: the TLS library of this Python does not tell it. There is no weaker proof to
                fall back to: somebody in the middle could bring that about.
        """
        finished = self._finished()
        if not finished:
            raise PeerError(
                f"TLS: {ssl.OPENSSL_VERSION} does not tell connections of TLS 1.3 apart; use a "
                "Python with OpenSSL, or no TLS"
            )
        return hashlib.sha256(finished).digest()

    def seal(self, buffers: Sequence[Buffer]) -> tuple[list[Buffer], int]:
        """The ciphertext of `buffers`, to be sent whole and in this order, and its size."""
        out: list[Buffer] = []
        small: list[Buffer] = []
        waiting = 0
        for buffer in buffers:
            size = len(buffer)
            if size < _SMALL and waiting + size <= _RECORD:
                small.append(buffer)
                waiting += size
                continue
            if small:
                self._write(b"".join(small), waiting, out)
                small, waiting = [], 0
            self._write(buffer, size, out)
        if small:
            self._write(b"".join(small), waiting, out)
        if self._outgoing.pending:
            out.append(self._outgoing.read())
        total = sum(map(len, out))
        self._sent += total
        return out, total

    def recv_into(self, sock: socket.socket, space: memoryview, scratch: memoryview) -> int:
        """Like sock.recv_into(space), with plaintext: less than `space` holds means that the
        socket had no more, unless `has_more`. `scratch` is for ciphertext on its way to OpenSSL.

        Raises:
            BlockingIOError: nothing there.
            OSError: the connection or its TLS is broken.
        """
        # With a buffer it returns a count.
        read: Callable[[int, memoryview], int] = self._object.read  # type: ignore[assignment]
        size = len(space)
        count = records = 0
        dry = short = self.has_more = False
        while True:
            opened = -count - records * _OVERHEAD
            try:
                while count < size and records < _MAX_RECORDS:
                    got = read(size - count, space[count:])
                    if not got:
                        return count  # an end said in TLS
                    count += got
                    records += 1
            except ssl.SSLWantReadError:
                dry = True
            except ssl.SSLError as error:
                raise OSError(errno.EPROTO, f"TLS: {reason(error)}") from None
            opened += count + records * _OVERHEAD
            # Not below 0: a record of which a part has no room is counted twice.
            self._empty = max(0, self._empty - opened)
            if not dry:
                self.has_more = count < size
                return count
            if self._empty > MAX_EMPTY:
                raise OSError(errno.EPROTO, "TLS: records without content")
            if short and count:
                return count
            try:
                got = sock.recv_into(scratch)
            except BlockingIOError:
                if count:
                    return count
                raise
            if not got:
                return count
            self._received += got
            self._empty += got
            self._incoming.write(scratch[:got])
            short = got < len(scratch)
            dry = False

    def _finished(self) -> bytes | None:
        """The client's; None where the library does not tell it, and before it was sent."""
        return self._object.get_channel_binding("tls-unique") if self.is_up else None

    def _write(self, buffer: Buffer, size: int, out: list[Buffer]) -> None:
        write = self._object.write
        outgoing = self._outgoing
        view = buffer if size <= _RECORD else memoryview(buffer)
        for start in range(0, size, _RECORD):
            write(view[start : start + _RECORD])
            if outgoing.pending >= _RECORD:
                out.append(outgoing.read())


def reason(error: ssl.SSLError) -> str:
    """An error of OpenSSL in words for a user."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {error.verify_message}"
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNSUPPORTED_PROTOCOL"):
        return "the other side does not speak TLS 1.3"
    return (error.reason or str(error) or type(error).__name__).lower().replace("_", " ")
