"""Which targets a client may choose: the rules of `allow`. Sans-IO: no look-up is made here.

Nothing is allowed that no rule lists. Names, and `*`, stand for public addresses only; all others
(loopback, private, link-local, metadata services, ...) need a rule with the address itself or a
network of such addresses, also when they are what a listed name resolves to. What is checked is the
address that is then connected to, so a name that changes meanwhile (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import ClassVar, NoReturn, Self

import msgspec

from fastmtcp.endpoint import ANY_HOST, Endpoint, ascii_name, unicode_name
from fastmtcp.errors import ConfigError, text_value
from fastmtcp.security.identity import NAME_FORM, is_name

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

ALL_PORTS = ((1, 65535),)

_METADATA = (
    # Where machines in a cloud are told their passwords, by provider.
    "169.254.169.254/32",  # most of them
    "169.254.170.2/32",  # Amazon, containers
    "169.254.170.23/32",
    "168.63.129.16/32",  # Azure; a public address by its number
    "100.100.100.200/32",  # Alibaba
    "192.0.0.192/32",  # Oracle
)
_NO_PUBLIC_IPV4 = (
    # https://www.iana.org/assignments/iana-ipv4-special-registry
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    *_METADATA,
)
_NO_PUBLIC_IPV6 = (
    # https://www.iana.org/assignments/iana-ipv6-special-registry, and what is out of use.
    "::/96",  # IPv4-compatible
    "::/128",
    "::1/128",
    "64:ff9b:1::/48",  # translated to IPv4 within a network (RFC 8215)
    "100::/64",
    "2001::/23",  # with Teredo
    "2001:db8::/32",
    "2002::/16",  # 6to4: holds an IPv4 address
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "fd00:ec2::254/128",  # metadata: Amazon
    "fd00:ec2::23/128",
    "fd20:ce::254/128",  # metadata: Google
)
_NAT64 = "64:ff9b::"
"""A gateway translates it and the IPv4 address behind it to that address (RFC 6052)."""


def _translated(network: ipaddress.IPv4Network) -> ipaddress.IPv6Network:
    start = int(ipaddress.IPv6Address(_NAT64)) + int(network.network_address)
    return ipaddress.IPv6Network((start, 96 + network.prefixlen))


_IPV4 = tuple(map(ipaddress.IPv4Network, _NO_PUBLIC_IPV4))
_IPV6 = (*map(ipaddress.IPv6Network, _NO_PUBLIC_IPV6), *map(_translated, _IPV4))

_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


class Rule(msgspec.Struct, frozen=True):
    """One entry of `allow`: a host and its ports.

    `host` is a name, `*.` and a name for all names below it, `*` for everything public, or empty
    where `network` is set: an address or a network. `ports` are ranges, both ends included. With a
    `client` it is for the client of this name only.
    """

    FORM: ClassVar[str] = "HOST:PORTS"

    host: str
    network: IpNetwork | None
    ports: tuple[tuple[int, int], ...]
    client: str = ""

    @classmethod
    def read(cls, value: object) -> Self:
        """A setting's value. Raises ConfigError."""
        return cls.parse(text_value(value, cls.FORM))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `git.example.com:22`, `*.example.com:80,443`, `10.1.0.0/16:8000-8099`,
        `[2001:db8::/32]:*` or `*:443`, each also behind `CLIENT@`. Raises ConfigError."""
        text = text.strip()
        client, at, target = text.rpartition("@")
        if at and not is_name(client):
            _refuse(text, f"has no name of a client before the @; {NAME_FORM}")
        return msgspec.structs.replace(cls._target(target, text), client=client)

    @classmethod
    def _target(cls, target: str, text: str) -> Self:
        host, colon, ports = target.rpartition(":")
        if not colon or not host or host.startswith("[") != host.endswith("]"):
            _refuse(text, "must be HOST:PORTS, for example git.example.com:22 or 10.1.0.0/16:*")
        if host == ANY_HOST:
            return cls(host, None, _ports(ports, text))
        if ":" in host and not host.startswith("["):
            _refuse(text, "needs brackets around the IPv6 address, as in [2001:db8::/32]:443")
        bare = host.removeprefix("[").removesuffix("]")
        if host.startswith("[") or "/" in host or _address(host) is not None:
            return cls("", _network(bare, host != bare, text), _ports(ports, text))
        return cls(_name(host, text), None, _ports(ports, text))

    def __str__(self) -> str:
        ports = ",".join(str(low) if low == high else f"{low}-{high}" for low, high in self.ports)
        host = self.host
        if self.network is not None:
            host = str(self.network)
            if self.network.prefixlen == self.network.max_prefixlen:
                host = str(self.network.network_address)
            if self.network.version == 6:
                host = f"[{host}]"
        whose = f"{self.client}@" if self.client else ""
        return f"{whose}{host}:{'*' if self.ports == ALL_PORTS else ports}"

    def is_for(self, client: str) -> bool:
        """True if it lists a target for the client of this name."""
        return self.client in ("", client)

    def has_port(self, port: int) -> bool:
        return any(low <= port <= high for low, high in self.ports)

    def names(self, host: str) -> bool:
        """True if it lists what a client wrote as its target's host."""
        if self.host == ANY_HOST:
            return True
        host = host.removesuffix(".")
        # Only the rule is read in both its forms: the client's name is compared as it is looked up.
        for form in (self.host, ascii_name(self.host), unicode_name(self.host)):
            if form is None:
                continue
            if host.endswith(form[1:]) if form.startswith("*.") else host == form:
                return True
        return False

    def covers(self, address: IpAddress) -> bool:
        """True if it lists this address by number. A network that holds public addresses and
        others covers the public ones only: nobody means loopback who writes 0.0.0.0/0."""
        network = self.network
        if network is None or address.version != network.version or address not in network:
            return False
        return all(_within(network, reserved) for reserved in _reserved(address))


def is_possible(rules: Iterable[Rule], target: Endpoint) -> bool:
    """False if no address whatever could make `target` an allowed one: it need not be looked up."""
    address = _address(target.host)
    if address is not None:
        return is_allowed(rules, target, target.host)
    return any(
        rule.has_port(target.port) and (rule.network is not None or rule.names(target.host))
        for rule in rules
    )


def is_allowed(rules: Iterable[Rule], target: Endpoint, address: str) -> bool:
    """True if a client may be connected to `address`, which is what `target` resolves to."""
    numeric = _address(address)
    if numeric is None or not 0 < target.port <= 65535:
        return False
    by_name = is_public(numeric)
    return any(
        rule.has_port(target.port)
        and (rule.covers(numeric) or (by_name and rule.network is None and rule.names(target.host)))
        for rule in rules
    )


def is_public(address: IpAddress) -> bool:
    """True if the address belongs to the internet, not to a machine, a network or a cloud."""
    return not _reserved(address)


def _reserved(address: IpAddress) -> list[IpNetwork]:
    networks: tuple[IpNetwork, ...] = _IPV4 if address.version == 4 else _IPV6
    return [network for network in networks if address in network]


def _within(inner: IpNetwork, outer: IpNetwork) -> bool:
    return inner.prefixlen >= outer.prefixlen and inner.network_address in outer


def _address(text: str) -> IpAddress | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # To the kernel ::ffff:127.0.0.1 is 127.0.0.1.
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _name(host: str, text: str) -> str:
    stars = "*." if host.startswith("*.") else ""
    endpoint = Endpoint.parse(f"{host.removeprefix('*.')}:1")
    name = endpoint.host.removesuffix(".")
    if endpoint.is_numeric or ANY_HOST in name:
        _refuse(text, "has * before something that is no name; write for example *.example.com:443")
    if name == "localhost" or name.endswith(".localhost"):
        _refuse(text, "is not allowed by name; write the address, as in 127.0.0.1:22 or [::1]:22")
    return stars + name


def _network(bare: str, brackets: bool, text: str) -> IpNetwork:
    try:
        network = ipaddress.ip_network(bare, strict=False)
        address = ipaddress.ip_address(bare.partition("/")[0])
    except ValueError:
        _refuse(text, "has no valid address or network; write for example 10.1.0.0/16:443")
    if (network.version == 6) != brackets:
        _refuse(text, "has brackets that only IPv6 has; write for example 10.1.0.0/16:443")
    if "%" in bare:
        _refuse(text, "has a zone; write the address without % and what follows")
    if address != network.network_address:
        _refuse(text, f"is no network of this size; write {network} or {address}")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        _refuse(text, f"is an IPv4 address in disguise; write {address.ipv4_mapped}")
    return network


def _ports(text: str, rule: str) -> tuple[tuple[int, int], ...]:
    if text == "*":
        return ALL_PORTS
    found = []
    for part in text.split(","):
        match = _PORTS.fullmatch(part.strip())
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 0 < low <= high <= 65535:
            _refuse(rule, "has no valid ports; write for example 443 or 80,443 or 8000-8099 or *")
        found.append((low, high))
    return tuple(found)


def _refuse(text: str, problem: str) -> NoReturn:
    shown = text if len(text) <= 100 else text[:97] + "..."
    raise ConfigError(f"{shown!r} {problem}") from None
