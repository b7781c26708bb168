"""The arguments of the library, read and checked like the options of the commands."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from fastmtcp.config import credentials, settings
from fastmtcp.config.client import ClientConfig
from fastmtcp.config.common import Config
from fastmtcp.config.credentials import Credentials
from fastmtcp.config.path import PathSpec
from fastmtcp.config.server import ServerConfig
from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import ConfigError
from fastmtcp.security import clients as security_clients
from fastmtcp.security.identity import KEY_SIZE, UNNAMED, Clients, Identity, unnamed
from fastmtcp.security.link import Link

Address = tuple[str, int]
Paths = str | PathSpec | Address | Sequence[str | PathSpec | Address]
"""Servers: HOST:PORT with the options of a path behind it, (host, port), or several of these."""
Key = bytes | str
File = str | os.PathLike[str]
C = TypeVar("C", bound=Config)

_KEY_TEXT = re.compile(r"[0-9a-fA-F]{64}")
_GIVEN = "given"
"""Stands for the name of a key file where the key itself is given."""


class Ready(msgspec.Struct, frozen=True):
    """Checked arguments. The key is not part of what is shown."""

    config: Any
    credentials: Any
    """Of a client its Credentials, of a server the Clients that may connect."""
    certificates: Any = None
    """Of a server its ServerTls."""
    own: bytes | None = None
    """The key that a server was given."""

    def __repr__(self) -> str:
        return f"Ready({self.config!r})"


def client(
    server: Paths | None,
    key: Key | None,
    key_file: File | None,
    link: str | None,
    link_file: File | None,
    source_address: Address | None,
    **values: object,
) -> Ready:
    """Check the arguments of a Client. Reads the key or link file.

    Raises:
        ConfigError: one line that names the argument and the remedy.
    """
    if sum(one is not None for one in (key, key_file, link, link_file)) > 1:
        raise ConfigError("key, key_file, link and link_file exclude one another; give one of them")
    if link_file is not None:
        values["link_file"] = os.fspath(link_file)
    elif link is not None:
        try:
            Link.parse(link)
        except ConfigError as error:
            raise ConfigError(f"link: {error}") from None
    elif server is None:
        raise ConfigError("server: is missing; give HOST:PORT, or a link")
    paths = [_path(one) for one in _list(server)] if server is not None else None
    if paths is not None and not paths:
        raise ConfigError("server: names no server; give at least one HOST:PORT")
    if source_address is not None:
        if paths is None:
            raise ConfigError("source_address: needs server as well")
        paths = [_from(path, source_address) for path in paths]
    config, own = _ready(ClientConfig, key, key_file, {"server": paths, **values})
    if own is not None:
        return Ready(config, Credentials(Identity.from_key(UNNAMED, own)))
    # What is in the environment is for the commands.
    environment = {} if link is None else {credentials.LINK_VARIABLE: link}
    return Ready(*credentials.of_client(config, environment))


def server(
    listen: str | Address | Sequence[str | Address],
    key: Key | None,
    key_file: File | None,
    target: str | Address | None,
    **values: object,
) -> Ready:
    """Check the arguments of a Server. Reads the key file.

    Raises:
        ConfigError: one line that names the argument and the remedy.
    """
    values["listen"] = [_endpoint("listen", one) for one in _list(listen)]
    if target is not None:
        values["target"] = _endpoint("target", target)
    config, own = _ready(ServerConfig, key, key_file, values)
    return Ready(config, clients(config, own), credentials.read_certificate(config), own)


def clients(config: ServerConfig, own: bytes | None) -> Clients:
    """All that a Server lets in; `own` is the key that it was given. Reads files. Raises
    ConfigError."""
    if own is None:
        return credentials.read_clients(config)
    listed = config.clients_file
    return dict(unnamed(own)) | (security_clients.read(listed) if listed is not None else {})


def target_text(address: Address | None) -> str:
    """What a stream is to name as its target; empty for the server's own.

    Raises:
        ConfigError: it is no host and port to connect to.
    """
    if address is None:
        return ""
    if isinstance(address, str):
        raise ConfigError("address: must be (host, port)")
    endpoint = _endpoint("address", address)
    if endpoint.port == 0 or endpoint.is_wildcard:
        raise ConfigError(f"address: {endpoint} is for listening only; name a host and a port")
    return str(endpoint)


def _ready(
    config_type: type[C],
    key: Key | None,
    key_file: File | None,
    values: dict[str, Any],
) -> tuple[C, bytes | None]:
    if key is not None and key_file is not None:
        raise ConfigError("key and key_file exclude one another; give one of them")
    values["key_file"] = _GIVEN if key is not None else key_file and os.fspath(key_file)
    config = settings.load(config_type, None, values, named=str)
    return config, _key(key) if key is not None else None


def _key(key: Key) -> bytes:
    if isinstance(key, bytes | bytearray) and len(key) == KEY_SIZE:
        return bytes(key)
    if isinstance(key, str) and _KEY_TEXT.fullmatch(key):
        return bytes.fromhex(key)
    raise ConfigError(f"key: must be {KEY_SIZE} bytes or 64 hexadecimal digits")


def _list(value: Any) -> list[Any]:
    if isinstance(value, str | PathSpec) or _is_address(value):
        return [value]
    return list(value)


def _is_address(value: object) -> bool:
    return isinstance(value, tuple) and len(value) >= 2 and isinstance(value[1], int)


def _endpoint(name: str, value: object) -> Endpoint:
    try:
        if isinstance(value, str):
            return Endpoint.parse(value)
        match value:
            case (str(host), int(port), *_):
                return Endpoint.of(host, port)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    raise ConfigError(f"{name}: must be (host, port)")


def _path(value: object) -> PathSpec:
    if isinstance(value, PathSpec):
        return value
    if isinstance(value, str):
        try:
            return PathSpec.parse(value)
        except ConfigError as error:
            raise ConfigError(f"server: {error}") from None
    return PathSpec(_endpoint("server", value))


def _from(path: PathSpec, source: Address) -> PathSpec:
    host, port = source[:2]
    if port:
        raise ConfigError(
            "source_address: the connections of a path cannot share a port; give port 0"
        )
    if path.bind is not None or not host:
        return path
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except OSError:
        raise ConfigError("source_address: must be an IP address of this machine") from None
    return msgspec.structs.replace(path, bind=host)
