"""The local addresses of this machine, and the paths that `--egress auto` makes of them."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import psutil

from fastmtcp.config.path import PathSpec
from fastmtcp.io import interfaces
from fastmtcp.io.backoff import Backoff
from fastmtcp.io.dialer import may_bind_to_device
from fastmtcp.io.loop import Loop, Timer
from fastmtcp.io.resolver import Address, Resolver

log = logging.getLogger("fastmtcp.paths")

_FIRST_DELAY = 1.0
_MAX_DELAY = 30.0
_MAX_QUESTIONS = 2
"""About one name at a time."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class LocalAddress(msgspec.Struct, frozen=True):
    """An address on an interface that is up."""

    device: str
    address: str
    index: int = 0
    """Of the interface: one that is made anew has the old name and another number."""

    @property
    def is_usable(self) -> bool:
        """It can reach other machines beyond the next switch."""
        ip = ipaddress.ip_address(self.address)
        return not (ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast)

    @property
    def version(self) -> int:
        return ipaddress.ip_address(self.address).version


def local_addresses() -> tuple[LocalAddress, ...] | None:
    """Every address of an interface that is up, loopback included, in a fixed order. None if the
    system does not tell right now: no descriptor may be left."""
    try:
        devices = psutil.net_if_addrs()
        is_up = interfaces.states(devices)
        indexes = {name: index for index, name in socket.if_nameindex()}
    except OSError as error:
        log.debug("cannot look at the interfaces: %s", error.strerror)
        return None
    found = set()
    for device, addresses in devices.items():
        for entry in addresses if is_up[device] else ():
            if entry.family in (socket.AF_INET, socket.AF_INET6):
                address = entry.address.partition("%")[0]
                found.add(LocalAddress(device, address, indexes.get(device, 0)))
    return tuple(sorted(found, key=lambda local: (local.version, local.device, local.address)))


class Egress:
    """Makes the paths of the servers that are configured: with `auto` one for each of them and
    each usable local address of the right family, else just as they are.

    refresh() may be called at any time; `on_paths` hears of the paths when they are first known
    and when they have changed.
    """

    def __init__(
        self,
        loop: Loop,
        resolver: Resolver,
        servers: Sequence[PathSpec],
        auto: bool,
        on_paths: Callable[[tuple[PathSpec, ...]], None],
    ) -> None:
        self.paths: tuple[PathSpec, ...] | None = None
        """None until they are first known."""
        self._loop = loop
        self._resolver = resolver
        self._servers = servers
        self._auto = auto
        self._on_paths = on_paths
        self._with_device = auto and may_bind_to_device()
        self._locals: tuple[LocalAddress, ...] = ()
        # What each name was looked up to; None if that is not known yet.
        self._families: dict[str, frozenset[int] | None] = {}
        # Questions under way for each name, and those names that are to be asked for once more.
        self._asked: Counter[str] = Counter()
        self._again: set[str] = set()
        self._closed = False
        self._backoff = Backoff(_FIRST_DELAY, _MAX_DELAY)
        self._retry: Timer | None = None

    def refresh(self, local: tuple[LocalAddress, ...]) -> None:
        """The local addresses are these now: make the paths anew."""
        self._locals = local
        self._backoff.reset()
        if self._auto:
            self._look_up()
        self._publish()

    def close(self) -> None:
        self._closed = True
        self._rest()

    def _rest(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _look_up(self) -> None:
        self._rest()
        for host in dict.fromkeys(s.first_hop.host for s in self._servers if _is_spread(s)):
            self._families.setdefault(host, None)
            self._ask(host)

    def _ask(self, host: str) -> None:
        """One question beside another, which may have gone to where nobody answers any more; but
        each may be answered, however often the network changes meanwhile."""
        if self._asked[host] >= _MAX_QUESTIONS:
            self._again.add(host)
            return
        self._asked[host] += 1
        self._resolver.resolve(host, 0, partial(self._on_answer, host), host)

    def _on_answer(self, host: str, result: list[Address] | OSError) -> None:
        self._asked[host] -= 1
        if self._closed:
            return
        if host in self._again:
            self._again.discard(host)
            self._ask(host)
        if not isinstance(result, OSError):
            self._families[host] = frozenset(
                6 if family == socket.AF_INET6 else 4 for family, _ in result
            )
            self._publish()
        elif self._families[host] is None and self._retry is None and not self._asked[host]:
            log.warning("cannot look up %s: %s; trying again", host, result.strerror)
            self._retry = self._loop.call_later(self._backoff.next(), self._look_up)

    def _publish(self) -> None:
        paths: list[PathSpec] = []
        for server in self._servers:
            if self._auto and _is_spread(server):
                families = self._families.get(server.first_hop.host)
                if families is not None:
                    paths += self._spread(server, families)
            else:
                paths.append(server)
        if not paths and any(families is None for families in self._families.values()):
            return
        if tuple(paths) != self.paths:
            self.paths = tuple(paths)
            self._on_paths(self.paths)

    def _spread(self, server: PathSpec, families: frozenset[int]) -> list[PathSpec]:
        return [
            msgspec.structs.replace(
                server,
                bind=local.address,
                # The address alone does not choose the line: without rules for it the routes
                # send all there is out on one (ip-rule(8)).
                dev=local.device if self._with_device else None,
            )
            for local in self._locals
            if local.is_usable and local.version in families
        ]


def _is_spread(server: PathSpec) -> bool:
    """A server on this machine, or one with a way out of its own, is left as it is."""
    return server.bind is None and server.dev is None and not server.first_hop.is_loopback
