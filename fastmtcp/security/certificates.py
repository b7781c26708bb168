"""Certificates from their files: a server's own, and how a client knows its server by one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl

from fastmtcp.endpoint import ascii_name
from fastmtcp.errors import ConfigError, PeerError, StartError
from fastmtcp.security.keys import check_closed
from fastmtcp.security.link import show_fingerprint
from fastmtcp.security.tls import Tls, reason

_MAX_FILE = 1 << 20


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
            ConfigError: one of them is missing, wrong, or a key that others can read.
            StartError: the TLS library of this Python cannot do what a proof needs.
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
        _check_binding(context)

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
            ConfigError: one of them is missing, wrong, or a key that others can read.
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
        name = self._server_name or ascii_name(host) or _NOBODY
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


_NOBODY = "name.invalid"
"""No certificate is for it (RFC 6761, 6.4), as none is for a name that has no form in ASCII."""


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    return context


def _check_binding(context: ssl.SSLContext) -> None:
    """Find out at the start whether Tls.binding() works here, by a handshake in memory. Raises
    StartError."""
    peer = _context(ssl.PROTOCOL_TLS_CLIENT)
    peer.check_hostname = False
    peer.verify_mode = ssl.CERT_NONE
    client, server = Tls(peer), Tls(context, server_side=True)
    # What else is wrong with a certificate, clients will say.
    with contextlib.suppress(PeerError):
        client.feed(server.feed(client.feed(b"")[1])[1])
    if client.is_up:
        try:
            client.binding()
        except PeerError as error:
            raise StartError(str(error)) from None


def _load_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    try:
        check_closed(key, os.stat(key).st_mode, f"certificate key {key}")
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
