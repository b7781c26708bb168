"""The directory of a server: what `fastmtcp init server` makes and `fastmtcp client` changes."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path

from fastmtcp.config import settings
from fastmtcp.config.server import ServerConfig
from fastmtcp.endpoint import ANY_HOST, Endpoint
from fastmtcp.errors import ConfigError, FastmtcpError
from fastmtcp.security import clients, self_signed
from fastmtcp.security.certificates import fingerprint, read_certificate
from fastmtcp.security.identity import KEY_SIZE, NAME_FORM, Identity, is_name
from fastmtcp.security.keys import write_private
from fastmtcp.security.link import Link

CONFIG = "server.toml"
USUAL_NAME = "fastmtcp-server"
"""Of the directory."""

_CLIENTS = "clients"
_CERTIFICATE = "certificate.pem"
_KEY = "certificate.key"
_TEMPLATE = """\
# For: fastmtcp-server --config {config}
# `fastmtcp-server --help` tells of more settings.
listen = "{listen}"
target = "{target}"
public_address = "{public_address}"

# Who may connect: see `fastmtcp client --help`.
clients_file = "{clients}"

# false only if all that is forwarded is encrypted already, and links are made anew.
tls = true
certificate = "{certificate}"
certificate_key = "{key}"
"""


class ServerDir:
    """A server's directory that exists."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises ConfigError if it is none."""
        self.path = Path(path)
        config_file = self.path / CONFIG
        if not config_file.exists():
            raise ConfigError(
                f"{config_file} does not exist; name the server's directory with --dir, or make "
                "one with `fastmtcp init server`"
            )
        self.config = settings.load(ServerConfig, str(config_file), {})
        if self.config.clients_file is None:
            raise ConfigError(f"{config_file}: has no clients_file; add one, for example clients")
        self.clients_file = self.config.clients_file

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], public_address: Endpoint, target: Endpoint
    ) -> ServerDir:
        """Make a new directory with all that a server needs but clients.

        Raises:
            ConfigError: it exists, or an address is for listening only.
            FastmtcpError: it cannot be made.
        """
        folder = Path(path)
        listen = public_address
        if not public_address.is_loopback:
            listen = Endpoint(ANY_HOST, public_address.port)
        # Before anything is made.
        ServerConfig(
            listen=(listen,), target=target, public_address=public_address, key_file=CONFIG
        ).check()
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            raise ConfigError(
                f"{folder} already exists and is not overwritten; choose another --dir"
            ) from None
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "impossible name"
            raise FastmtcpError(f"{folder} cannot be made: {why}") from None
        try:
            os.chmod(folder, 0o700)  # whatever the umask
            self_signed.generate(public_address.host, folder / _CERTIFICATE, folder / _KEY)
            write_private(folder / _CLIENTS, "list of clients", clients.HEAD.encode())
            text = _TEMPLATE.format(
                config=CONFIG,
                listen=listen,
                target=target,
                public_address=public_address,
                clients=_CLIENTS,
                certificate=_CERTIFICATE,
                key=_KEY,
            )
            write_private(folder / CONFIG, "configuration", text.encode())
        except BaseException:
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
            raise
        return cls(folder)

    def add_client(self, name: str) -> Link:
        """A new client with a new key. Raises ConfigError."""
        check_client_name(name)
        config = self.config
        address = config.public_address
        if address is None:
            raise ConfigError(
                f"{self.path / CONFIG}: has no public_address, where clients reach this server; "
                'add it, for example public_address = "vps.example.com:7700"'
            )
        pinned = None
        if config.tls and config.certificate is not None:
            pinned = fingerprint(read_certificate(config.certificate))
        key = secrets.token_bytes(KEY_SIZE)
        clients.add(self.clients_file, Identity.from_key(name, key))
        return Link(name, key, address, pinned)

    def revoke_client(self, name: str) -> None:
        """Raises ConfigError if there is no such client."""
        clients.revoke(self.clients_file, name)

    def client_names(self) -> list[str]:
        """All clients. Raises ConfigError."""
        return list(clients.read(self.clients_file))


def check_client_name(name: str) -> None:
    """Raise ConfigError if a client cannot be called so."""
    if not is_name(name):
        raise ConfigError(f"{name[:80]!r} is no name of a client; {NAME_FORM}")
