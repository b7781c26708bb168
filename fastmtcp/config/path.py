"""A path to the server as users write it: `HOST:PORT[,bind=ADDR][,dev=IFNAME]...`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NoReturn, Self, cast, get_args
from urllib.parse import quote, unquote

import msgspec

from fastmtcp.config.connections import Connections
from fastmtcp.endpoint import ZONE, Endpoint
from fastmtcp.errors import ConfigError, text_value

ProxyKind = Literal["socks5", "http"]
Direction = Literal["both", "up", "down"]

KEYS = ("bind", "dev", "connections", "direction", "backup", "via")

# As the kernel's dev_valid_name(), and without what separates options.
_DEVICE = re.compile(r"[^\s/:,]{1,15}")
_WORD = re.compile(r"[A-Za-z_-]{1,20}")
_PROXY = re.compile(r"(\w+)://(?:(.*)@)?([^@/]+)/?", re.DOTALL)
_PROXY_FORM = (
    "must be socks5://[USER:PASSWORD@]HOST:PORT or http://[USER:PASSWORD@]HOST:PORT; in a user "
    "name or password write , as %2C, : as %3A and % as %25"
)


class Proxy(msgspec.Struct, frozen=True):
    """A proxy between this machine and the server. Its password is never shown."""

    kind: ProxyKind
    endpoint: Endpoint
    user: str = ""
    password: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `socks5://[USER:PASSWORD@]HOST:PORT` or the same with `http`.

        Raises ConfigError, in which nothing of `text` is repeated: it may be a password.
        """
        match = _PROXY.fullmatch(text.strip())
        if match is None:
            _refuse_proxy(_PROXY_FORM)
        scheme, login, address = match.groups()
        kind = "socks5" if scheme == "socks5h" else scheme
        if kind not in get_args(ProxyKind):
            _refuse_proxy(_PROXY_FORM)
        try:
            endpoint = Endpoint.parse(address)
            user, password = _login(login)
        except (ConfigError, UnicodeError):
            _refuse_proxy(_PROXY_FORM)
        if endpoint.port == 0 or endpoint.is_wildcard:
            _refuse_proxy("names no host and port to connect to")
        if kind == "http" and ":" in user:
            _refuse_proxy("has a user name with a colon, which HTTP has no place for (RFC 7617)")
        # RFC 1929, section 2.
        if kind == "socks5" and max(len(user.encode()), len(password.encode())) > 255:
            _refuse_proxy("has a user name or password of more than 255 bytes")
        return cls(cast(ProxyKind, kind), endpoint, user, password)

    def __str__(self) -> str:
        login = f"{quote(self.user, safe='')}@" if self.user else ""
        return f"{self.kind}://{login}{self.endpoint}"

    def __repr__(self) -> str:
        return f"Proxy({self})"


class PathSpec(msgspec.Struct, frozen=True):
    """One way to the server.

    `bind` is a local IP address, `dev` a network interface; `connections` is None for the general
    setting. `direction` says whether bytes to the server (`up`), from it (`down`) or both travel
    here; a `backup` is used while no other path works.
    """

    FORM: ClassVar[str] = "HOST:PORT"

    endpoint: Endpoint
    bind: str | None = None
    dev: str | None = None
    connections: Connections | None = None
    direction: Direction = "both"
    backup: bool = False
    via: Proxy | None = None

    @classmethod
    def read(cls, value: object) -> Self:
        """A setting's value: a text, or a table of a configuration file. Raises ConfigError without
        passwords."""
        if isinstance(value, dict):
            return cls._from_table(value)
        return cls.parse(text_value(value, cls.FORM))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `HOST:PORT` and the options behind it. Raises ConfigError without passwords."""
        address, *options = text.split(",")
        endpoint = _endpoint(address)
        values: dict[str, object] = {}
        for option in options:
            key, equals, value = (part.strip() for part in option.partition("="))
            if key not in KEYS:
                # Behind a proxy this may be the rest of a password with a comma in it.
                _refuse_key(endpoint, "" if "via" in values else key)
            if key in values:
                _refuse(endpoint, f"{key}= is there twice; remove one of them")
            if key == "backup" and not equals:
                values[key] = True
            elif key == "backup" and value in ("true", "false"):
                values[key] = value == "true"
            else:
                values[key] = value
        return cls(endpoint, **_checked(endpoint, values))

    @classmethod
    def _from_table(cls, table: Mapping[str, object]) -> Self:
        """Read a table of a configuration file: `address` and the options as its keys.

        Raises ConfigError without passwords.
        """
        values = dict(table)
        address = values.pop("address", None)
        if not isinstance(address, str):
            raise ConfigError('the table needs its address, as in address = "example.com:7700"')
        endpoint = _endpoint(address)
        for key in values:
            if key not in KEYS:
                _refuse_key(endpoint, key, "; other settings stand above the first [[server]]")
        return cls(endpoint, **_checked(endpoint, values))

    def __str__(self) -> str:
        """As it was written, without the password of a proxy."""
        parts = [str(self.endpoint)]
        for key in ("bind", "dev", "connections"):
            value = getattr(self, key)
            if value is not None:
                parts.append(f"{key}={value}")
        if self.direction != "both":
            parts.append(f"direction={self.direction}")
        if self.backup:
            parts.append("backup")
        if self.via is not None:
            parts.append(f"via={self.via}")
        return ",".join(parts)

    @property
    def label(self) -> str:
        """The path in the words of a log line."""
        text = str(self.endpoint)
        if self.dev is not None:
            text += f" via {self.dev}"
        if self.bind is not None:
            text += f" from {self.bind}"
        if self.via is not None:
            text += f" through {self.via.kind} proxy {self.via.endpoint}"
        if self.direction != "both":
            text += f" ({self.direction})"
        if self.backup:
            text += " (backup)"
        return text

    @property
    def first_hop(self) -> Endpoint:
        """Where the TCP connection goes: the proxy if there is one, else the server."""
        return self.endpoint if self.via is None else self.via.endpoint


def _endpoint(address: str) -> Endpoint:
    if "@" in address:
        # Not repeated: what stands before an @ is often a password.
        raise ConfigError(
            "a server's address has no @; write HOST:PORT, and a proxy as "
            "HOST:PORT,via=socks5://USER:PASSWORD@HOST:PORT"
        )
    return Endpoint.parse(address)


def _checked(endpoint: Endpoint, values: Mapping[str, object]) -> dict[str, Any]:
    checked: dict[str, object] = {}
    # The proxy first: if it is wrong, what follows may be a part of its password.
    for key in sorted(values, key=lambda key: key != "via"):
        value = values[key]
        try:
            checked[key] = _READERS[key](value)
        except _WrongError as wrong:
            _refuse(endpoint, f"{key}={_shown(key, value)} {wrong}")
    return checked


class _WrongError(Exception):
    """What is wrong with the value of an option."""


def _bind(value: object) -> str:
    text = value.removeprefix("[").removesuffix("]") if isinstance(value, str) else ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise _WrongError("must be an IP address of this machine") from None
    zone = getattr(address, "scope_id", None)
    if zone is not None and not ZONE.fullmatch(zone):
        raise _WrongError("has a wrong zone; write the interface behind its %")
    if address.is_unspecified or address.is_multicast:
        raise _WrongError("must be an IP address of this machine, or left out")
    return str(address)


def _device(value: object) -> str:
    if not isinstance(value, str) or not _DEVICE.fullmatch(value) or value in (".", ".."):
        raise _WrongError("must be the name of a network interface, for example eth0")
    return value


def _connections(value: object) -> Connections:
    try:
        return Connections.read(value)
    except ConfigError as error:
        raise _WrongError(str(error)) from None


def _direction(value: object) -> str:
    if value not in get_args(Direction):
        raise _WrongError(f"must be one of {', '.join(get_args(Direction))}")
    return cast(str, value)


def _backup(value: object) -> bool:
    if not isinstance(value, bool):
        raise _WrongError("must be true or false")
    return value


def _via(value: object) -> Proxy:
    if not isinstance(value, str):
        raise _WrongError(_PROXY_FORM)
    try:
        return Proxy.parse(value)
    except ConfigError as error:
        raise _WrongError(str(error)) from None


_READERS = {
    "bind": _bind,
    "dev": _device,
    "connections": _connections,
    "direction": _direction,
    "backup": _backup,
    "via": _via,
}


def _login(login: str | None) -> tuple[str, str]:
    if login is None:
        return "", ""
    user, colon, password = login.partition(":")
    if not user or not colon:
        raise ConfigError("half a login")
    # What is not UTF-8 on a command line is in the text as lone surrogates, and cannot be sent.
    login.encode()
    return unquote(user, errors="strict"), unquote(password, errors="strict")


def _shown(key: str, value: object) -> str:
    if key == "via":
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _refuse_proxy(problem: str) -> NoReturn:
    raise ConfigError(problem) from None


def _refuse_key(endpoint: Endpoint, key: str, more: str = "") -> NoReturn:
    word = f"{key!r}" if _WORD.fullmatch(key) else "something"
    _refuse(endpoint, f"{word} is not an option of a path; they are {', '.join(KEYS)}{more}")


def _refuse(endpoint: Endpoint, problem: str) -> NoReturn:
    raise ConfigError(f"{endpoint}: {problem}") from None
