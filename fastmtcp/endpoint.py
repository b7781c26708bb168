"""A TCP address as users write it: `HOST:PORT`."""

from __future__ import annotations

import ipaddress
import re
from typing import ClassVar, NoReturn, Self

import msgspec

from fastmtcp.errors import ConfigError, text_value

ANY_HOST = "*"

# What a look-up takes is a name: RFC 1123 knows none of `a+b`, `_x`, `-x` and `x-`, but machines
# have such names. Refused is only what stands around names in our own texts: HOST:PORT,
# CLIENT@HOST:PORTS, the options of a path, links, zones, lines.
_SEPARATOR = re.compile(r"[\s\x00-\x1f\x7f-\x9f:/\[\]@,%#]")
# Look-ups read `127.1` or `0x7f.1` as addresses in old notations.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
ZONE = re.compile(r"[^\s%/\[\]]{1,15}")
"""The interface behind a % in an IPv6 address."""
_MAX_NAME = 253
_MAX_LABEL = 63
# RFC 5894, 7.2: sharp s, final sigma, the two joiners.
_DEVIATION = re.compile("[\u00df\u03c2\u200c\u200d]")


class Endpoint(msgspec.Struct, frozen=True, order=True):
    """A host and a port.

    `host` is a lower-case name as it is looked up (perhaps not in ASCII), an address in its
    canonical form (IPv6 without brackets), or `*` for all addresses of the machine, IPv4 and IPv6.
    `port` is 0 to 65535; 0 lets the kernel choose and makes sense for listening only.
    """

    FORM: ClassVar[str] = "HOST:PORT"

    host: str
    port: int

    @classmethod
    def read(cls, value: object) -> Self:
        """A setting's value. Raises ConfigError."""
        return cls.parse(text_value(value, cls.FORM))

    @classmethod
    def parse(cls, text: str, *, default_port: int | None = None) -> Self:
        """Read `name:80`, `1.2.3.4:80`, `[::1]:80`, or `*:80` and `:80` for all addresses.

        The port may be left out where `default_port` is given. An IPv6 address always needs its
        brackets, because `::1:80` is an address as well. Raises ConfigError.
        """
        text = text.strip()
        if not text:
            raise ConfigError("the address is empty; write HOST:PORT")
        if "://" in text or "/" in text:
            _refuse(text, "is not an address; write HOST:PORT and nothing around it")
        if text.startswith("["):
            inner, bracket, rest = text[1:].rpartition("]")
            if not bracket or (rest and not rest.startswith(":")):
                _refuse(text, "has an unclosed bracket; write an IPv6 address as [::1]:7700")
            host, port_text = _ipv6(inner, text), rest[1:] if rest else None
        else:
            if text.count(":") > 1:
                _refuse_bare_ipv6(text)
            name, colon, rest = text.partition(":")
            if not colon and text.isdigit():
                _refuse(text, f"has no host; write 127.0.0.1:{text}")
            host, port_text = _name_or_ipv4(name, text), rest if colon else None
        if port_text is None and default_port is not None:
            return cls(host, default_port)
        if not port_text:
            _refuse(text, f"has no port; write HOST:PORT, for example {cls(host, 7700)}")
        return cls(host, _port(port_text, text))

    @classmethod
    def of(cls, host: str, port: int) -> Self:
        """What a program names as host and port: an IPv6 address with or without its brackets.

        Raises ConfigError.
        """
        bare_ipv6 = ":" in host and not host.startswith("[")
        return cls.parse(f"[{host}]:{port}" if bare_ipv6 else f"{host}:{port}")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_numeric(self) -> bool:
        """The host is an IP address, so no name look-up is needed. False for `*`."""
        return _address(self.host) is not None

    @property
    def is_wildcard(self) -> bool:
        """The host stands for all addresses: `*`, `0.0.0.0` or `::`."""
        address = _address(self.host)
        return self.host == ANY_HOST or (address is not None and address.is_unspecified)

    @property
    def is_loopback(self) -> bool:
        """Only this machine can reach it. Of the names only `localhost` counts."""
        address = _address(self.host)
        return self.host == "localhost" or (address is not None and address.is_loopback)


def host_of(address: str) -> str:
    """The host of HOST:PORT as the kernel tells it, an IPv6 address without its brackets; empty for
    what has no port."""
    return address.rpartition(":")[0].strip("[]")


def ascii_name(host: str) -> str | None:
    """The form of a name that the DNS has (xn--); None if it has none.

    Where the older rules (RFC 3490), which Python knows, would make another name of it than the
    newer ones (RFC 5891), it has none either: that would be another machine.
    """
    if host.isascii():
        return host
    if _DEVIATION.search(host):
        return None
    try:
        return host.encode("idna").decode("ascii").lower()
    except (UnicodeError, LookupError):  # LookupError: a Python whose files cannot be read
        return None


def unicode_name(host: str) -> str | None:
    """What ascii_name() would make `host` of; None if nothing."""
    if "xn--" not in host:
        return None
    try:
        name = host.encode("ascii").decode("idna").lower()
    except (UnicodeError, LookupError):
        return None
    return name if ascii_name(name) == host else None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    # The kernel treats ::ffff:127.0.0.1 as 127.0.0.1, and so must the loopback check.
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _ipv6(inner: str, text: str) -> str:
    try:
        address = ipaddress.IPv6Address(inner)
    except ValueError:
        _refuse(text, "has no IPv6 address in its brackets; write for example [::1]:7700")
    if address.scope_id is not None and not ZONE.fullmatch(address.scope_id):
        _refuse(text, "has a wrong zone; write the interface, for example [fe80::1%eth0]:7700")
    return str(address)


def _name_or_ipv4(name: str, text: str) -> str:
    if name in ("", ANY_HOST):
        return ANY_HOST
    host = name.lower()
    labels = host.removesuffix(".").split(".")
    if all(_NUMBER.fullmatch(label) for label in labels):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            _refuse(text, "has no valid IPv4 address; write four numbers from 0 to 255")
    if not _is_name(host, labels):
        _refuse(text, "has no valid host name; write HOST:PORT, for example example.com:7700")
    return host


def _is_name(host: str, labels: list[str]) -> bool:
    """Look-ups know no empty and no longer labels; of others than ASCII the xn-- form counts, which
    may be shorter."""
    try:
        size = len(host.removesuffix(".").encode())
    except UnicodeEncodeError:  # what was not UTF-8 cannot be sent
        return False
    return (
        size <= _MAX_NAME
        and not _SEPARATOR.search(host)
        and all(label and not (label.isascii() and len(label) > _MAX_LABEL) for label in labels)
    )


def _port(port_text: str, text: str) -> int:
    # isdigit alone would let other scripts' digits and their look-alikes through.
    digits = port_text.isascii() and port_text.isdigit() and len(port_text) <= 5
    if not digits or int(port_text) > 65535:
        _refuse(text, "has no valid port; write a number from 0 to 65535 behind the colon")
    return int(port_text)


def _refuse_bare_ipv6(text: str) -> NoReturn:
    head, _, tail = text.rpartition(":")
    for address, port in ((head, tail), (text, "7700")):
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            continue
        _refuse(text, f"needs brackets around the IPv6 address; write [{address}]:{port}")
    _refuse(text, "has too many colons; write HOST:PORT, or [IPV6]:PORT")


def _refuse(text: str, problem: str) -> NoReturn:
    shown = text if len(text) <= 300 else text[:297] + "..."
    raise ConfigError(f"{shown!r} {problem}") from None
