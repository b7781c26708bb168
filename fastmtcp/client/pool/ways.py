"""The way to a server: out of which interface, by which gateway, from which address."""

from __future__ import annotations

from collections.abc import Mapping, Set

from fastmtcp.config.path import PathSpec
from fastmtcp.io.netlink import Route, route_to

_FAR_AWAY = ("192.0.2.1", "2001:db8::1")
"""Addresses for documents (RFC 5737, 3849), which nobody has a route for but the default ones."""

_MAX_HOSTS = 16
"""Addresses of one name whose ways are compared."""


class Ways:
    """The ways to one server's addresses, to be compared when routes have changed: those of
    others (containers, a full table) come and go all day, and are no reason to do anything.

    Until an address of a name is known, the default routes stand for the way to it.
    """

    def __init__(self, spec: PathSpec | None = None) -> None:
        """Without `spec` for the default routes alone."""
        self._bind = spec.bind if spec is not None else None
        self._device = spec.dev if spec is not None else None
        self._is_guess = spec is None or not spec.first_hop.is_numeric
        hosts = _FAR_AWAY if spec is None or self._is_guess else (spec.first_hop.host,)
        self._known: dict[str, Route | None] = {}
        self._known = {host: self._look(host, self._known) for host in hosts}

    def note(self, host: str) -> None:
        """The server has been reached at this address."""
        if host in self._known:
            return
        if self._is_guess:
            self._is_guess = False
            self._known.clear()
        elif len(self._known) >= _MAX_HOSTS:
            self._known.pop(next(iter(self._known)))
        self._known[host] = self._look(host, self._known)

    def have_changed(self, devices: Set[int] = frozenset()) -> bool:
        """Whether one is another than when this was asked last, or goes out of an interface of
        `devices`: the routes may stay when a cable is drawn, and come back with nothing new."""
        before = self._known
        self._known = {host: self._look(host, before) for host in before}
        return self._known != before or any(
            route is not None and route.device in devices for route in self._known.values()
        )

    def _look(self, host: str, before: Mapping[str, Route | None]) -> Route | None:
        try:
            return route_to(host, self._bind, self._device)
        except OSError:
            # Nobody can be asked: that is no other way.
            return before.get(host)
