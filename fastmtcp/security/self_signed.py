"""Makes a self-signed certificate: with the package cryptography, else with the command openssl."""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fastmtcp.errors import StartError
from fastmtcp.security.keys import write_private

_DAYS = 36500
"""Clients know the certificate by its fingerprint, so there is no use in its running out."""


def generate(host: str, certificate: Path, key: Path) -> None:
    """Write a new certificate for `host`, a name or an address, and its private key in PEM.

    Both files are new and only their owner can read them.

    Raises:
        StartError: neither cryptography nor openssl is here.
        ConfigError: a file is there already.
        FastmtcpError: a file cannot be written.
    """
    made = _by_cryptography(host) or _by_openssl(host)
    if made is None:
        raise StartError(
            "no certificate can be made here; run `pip install 'fastmtcp[tls]'`, or install the "
            "command openssl"
        )
    write_private(certificate, "certificate", made[0])
    write_private(key, "certificate key", made[1])


def _by_cryptography(host: str) -> tuple[bytes, bytes] | None:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError:
        return None
    key = ec.generate_private_key(ec.SECP256R1())
    # A common name has at most 64 characters (RFC 5280, ub-common-name); nobody looks at it.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fastmtcp")])
    address = _address(host)
    known_as = x509.DNSName(host) if address is None else x509.IPAddress(address)
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Not from now on: clocks differ.
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName([known_as]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return certificate.public_bytes(pem), key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _by_openssl(host: str) -> tuple[bytes, bytes] | None:
    """See openssl-req(1)."""
    program = shutil.which("openssl")
    if program is None:
        return None
    kind = "DNS" if _address(host) is None else "IP"
    request = (
        *(program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-sha256", "-days", str(_DAYS), "-subj", "/CN=fastmtcp"),
        *("-addext", f"subjectAltName={kind}:{host}"),
        *("-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "-", "-out", "-"),
    )
    try:
        done = subprocess.run(request, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        raise StartError(
            "openssl could not make a certificate; run `pip install 'fastmtcp[tls]'`"
        ) from None
    key, begin, certificate = done.stdout.partition(b"-----BEGIN CERTIFICATE-----")
    return begin + certificate, key


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
