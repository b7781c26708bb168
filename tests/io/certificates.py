"""Certificates for tests, as `fastmtcp init server` makes them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fastmtcp.security import self_signed
from fastmtcp.security.certificates import ServerTls, fingerprint, read_certificate


class Files(NamedTuple):
    """Of a certificate and its key."""

    certificate: str
    key: str

    @property
    def fingerprint(self) -> bytes:
        return fingerprint(read_certificate(self.certificate))

    def server(self, client_ca_file: str | None = None) -> ServerTls:
        return ServerTls(self.certificate, self.key, client_ca_file)


def make(folder: Path, name: str = "server", host: str = "127.0.0.1") -> Files:
    """A new one in `folder`, which replaces the last of that `name`."""
    found = Files(str(folder / f"{name}.pem"), str(folder / f"{name}.key"))
    for path in found:
        Path(path).unlink(missing_ok=True)
    self_signed.generate(host, Path(found.certificate), Path(found.key))
    return found
