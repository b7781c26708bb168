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
import os
import shlex
import socket
import ssl
from collections.abc import Callable, Sequence

from fastmtcp.errors import ConfigError, PeerError
from fastmtcp.io.buffers import Buffer
from fastmtcp.security.link import show_fingerprint

_MAX_FILE = 1 << 20
_RECORD = 16 * 1024
_OUT = 64 * 1024
"""Bytes of ciphertext after which they are taken out of OpenSSL's memory, which never shrinks."""

_SMALL = 2048
"""Buffers below this go together into one record."""

_MAX_UNSENT = 64 * 1024
"""A peer that asks for new keys again and again makes us answer each time. The answers wait for
our next bytes, and may not become more than this."""


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
        self.is_up = False
        """The handshake of TLS is done."""

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
        socket had no more. `scratch` is for ciphertext on its way to OpenSSL.

        Raises:
            BlockingIOError: nothing there.
            OSError: the connection or its TLS is broken.
        """
        # With a buffer it returns a count.
        read: Callable[[int, memoryview], int] = self._object.read  # type: ignore[assignment]
        size = len(space)
        count = 0
        short = False
        while True:
            try:
                while count < size:
                    got = read(size - count, space[count:])
                    if not got:
                        return count  # an end said in TLS
                    count += got
                return count
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                raise OSError(errno.EPROTO, f"TLS: {reason(error)}") from None
            if self._outgoing.pending > _MAX_UNSENT:
                raise OSError(errno.EPROTO, "TLS: new keys without end")
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
            self._incoming.write(scratch[:got])
            short = got < len(scratch)

    def _write(self, buffer: Buffer, size: int, out: list[Buffer]) -> None:
        write = self._object.write
        done = write(buffer)
        if done < size:
            view = memoryview(buffer)
            while done < size:
                done += write(view[done : done + _RECORD])
        if self._outgoing.pending >= _OUT:
            out.append(self._outgoing.read())


class ServerTls:
    """A server's certificate and what it asks of clients, as they were when the files were read.

    Like ClientTls it is made by the supervisor and used by every worker that is forked from it. So
    neither holds anything that is written to: buffers are in the worker's BufferPool.
    """

    def __init__(
        self,
        certificate: str,
        key: str,
        client_ca_file: str | None = None,
    ) -> None:
        """Reads the files: not on a loop.

        Raises:
            ConfigError: one of them is missing, wrong, or readable by everybody.
        """
        context = _context(ssl.PROTOCOL_TLS_SERVER)
        # The client resumes nothing, so tickets would only be bytes.
        context.num_tickets = 0
        _load_certificate(context, certificate, key)
        if client_ca_file is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            _load_authorities(context, client_ca_file)
        self.fingerprint = fingerprint(read_certificate(certificate))
        self._context = context

    def accept(self) -> Tls:
        return Tls(self._context, server_side=True)


class ClientTls:
    """How a client knows its server: by the fingerprint of its certificate, by an authority and a
    name, or by both."""

    def __init__(
        self,
        fingerprints: tuple[bytes, ...] = (),
        ca_file: str | None = None,
        server_name: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
    ) -> None:
        """`ca_file` None means the authorities of the system, if there are no `fingerprints`. Reads
        the files: not on a loop.

        Raises:
            ConfigError: one of them is missing, wrong, or readable by everybody.
        """
        self._arguments = (fingerprints, ca_file, server_name, certificate, key)
        self.files = [name for name in (ca_file, certificate, key) if name is not None]
        self._fingerprints = fingerprints
        self._server_name = server_name
        self._context = context = _context(ssl.PROTOCOL_TLS_CLIENT)
        self._by_name = ca_file is not None or not fingerprints
        if not self._by_name:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif ca_file is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            _load_authorities(context, ca_file)
        if certificate is not None:
            _load_certificate(context, certificate, key or certificate)

    def again(self) -> ClientTls:
        """The same with its files read again. Not on a loop. Raises ConfigError."""
        return ClientTls(*self._arguments)

    def connect(self, host: str) -> Tls:
        """To the server called `host`, unless the settings know a better name."""
        name = self._server_name or host
        return Tls(self._context, server_name=name if self._by_name else None)

    def check(self, tls: Tls) -> bytes:
        """The fingerprint of the server's certificate.

        Raises:
            PeerError: it is another one than expected.
        """
        found = fingerprint(tls.peer_certificate())
        if self._fingerprints and found not in self._fingerprints:
            raise PeerError(
                f"TLS: the server's certificate has the fingerprint {show_fingerprint(found)}, "
                "which is not the one expected; this may be a false server"
            )
        return found


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    return context


def _load_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    try:
        # Everybody may not read it; a group may, as in Debian's ssl-cert.
        if os.stat(key).st_mode & 0o007:
            raise ConfigError(
                f"certificate key {key} is open to everybody; close it with "
                f"`chmod o= {shlex.quote(key)}`"
            )
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        raise ConfigError(
            f"certificate {certificate} with the key {key} cannot be used: {reason(error)}"
        ) from None
    except ConfigError:  # a ValueError, too
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(certificate, error) from None


def _no_password() -> str:
    raise ConfigError("the key of the certificate is encrypted; give one that is not")


def _load_authorities(context: ssl.SSLContext, name: str) -> None:
    try:
        context.load_verify_locations(name)
    except ssl.SSLError as error:
        raise ConfigError(f"authorities {name} cannot be used: {reason(error)}") from None
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from None


def read_certificate(name: str) -> bytes:
    """The first certificate of a PEM file, in DER. Raises ConfigError."""
    try:
        with open(name, encoding="ascii", errors="replace") as file:
            text = file.read(_MAX_FILE)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from None
    begin, end = text.find(ssl.PEM_HEADER), text.find(ssl.PEM_FOOTER)
    try:
        return ssl.PEM_cert_to_DER_cert(text[begin : end + len(ssl.PEM_FOOTER)])
    except ValueError:
        raise ConfigError(f"certificate {name} is no certificate in PEM") from None


def _unreadable(name: str, error: OSError | ValueError) -> ConfigError:
    why = error.strerror if isinstance(error, OSError) else "impossible name"
    # ssl does not tell which of its files it could not read.
    which = error.filename if isinstance(error, OSError) and error.filename else name
    return ConfigError(f"certificate {which} cannot be read: {why}")


def fingerprint(certificate: bytes) -> bytes:
    """SHA-256 of a certificate in DER."""
    return hashlib.sha256(certificate).digest()


def reason(error: ssl.SSLError) -> str:
    """An error of OpenSSL in words for a user."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {error.verify_message}"
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNSUPPORTED_PROTOCOL"):
        return "the other side does not speak TLS 1.3"
    return (error.reason or str(error) or type(error).__name__).lower().replace("_", " ")
