"""Checks of settings that a type cannot express. All raise SettingError."""

from __future__ import annotations

import itertools

from fastmtcp.config.ingress import Place, WayIn
from fastmtcp.config.path import PathSpec
from fastmtcp.config.settings import SettingError
from fastmtcp.endpoint import Endpoint
from fastmtcp.engine.limits import Limits


def check_listen(endpoints: tuple[Endpoint, ...]) -> None:
    if not endpoints:
        raise SettingError("listen", "names no address; write at least one HOST:PORT")
    for index, endpoint in enumerate(endpoints):
        # Twice the same would work by SO_REUSEPORT and hide the mistake.
        if endpoint.port != 0 and endpoint in endpoints[:index]:
            raise SettingError("listen", f"{endpoint} is there twice; remove one of them")


def check_places(ways: tuple[WayIn, ...]) -> None:
    places: set[Place] = set()
    for way in ways:
        is_any = isinstance(way.place, Endpoint) and way.place.port == 0
        if way.place in places and not is_any:
            raise SettingError(way.kind, f"{way.place} is there twice; choose another place")
        places.add(way.place)


def check_limits(limits: Limits) -> None:
    rising = ("floor_window", "start_window", "max_window", "worker_memory")
    pairs = (
        *itertools.pairwise(rising),
        ("send_buffer", "worker_memory"),
        ("ping_interval", "subflow_timeout"),
    )
    for small, large in pairs:
        low, high = getattr(limits, small), getattr(limits, large)
        if low > high or (low == high and small == "ping_interval"):
            raise SettingError(
                "limits",
                f"{small} = {low:.10g} is too much beside {large} = {high:.10g}; lower the one or "
                "raise the other",
            )


def check_destination(key: str, endpoint: Endpoint) -> None:
    if endpoint.port == 0:
        raise SettingError(key, f"{endpoint} has port 0, which is for listening only; write a port")
    if endpoint.is_wildcard:
        remedy = f"write the host, as in 127.0.0.1:{endpoint.port}"
        raise SettingError(key, f"{endpoint} is for listening only; {remedy}")


def check_paths(paths: tuple[PathSpec, ...]) -> None:
    if not paths:
        raise SettingError("server", "names no server; write at least one HOST:PORT")
    for index, path in enumerate(paths):
        check_destination("server", path.endpoint)
        if path in paths[:index]:
            raise SettingError(
                "server", f"{path} is there twice; for more connections write connections=N"
            )
        hop = path.first_hop
        if path.bind is None or not hop.is_numeric:
            continue
        if (":" in path.bind) != (":" in hop.host):
            kinds = "an IPv6 and an IPv4" if ":" in path.bind else "an IPv4 and an IPv6"
            raise SettingError(
                "server",
                f"bind={path.bind} and {hop} are {kinds} address; write two of one kind",
            )
    for direction, words in (("up", "to the server"), ("down", "from the server")):
        if not any(path.direction in ("both", direction) for path in paths):
            raise SettingError(
                "server",
                f"no path carries data {words}; add one with direction={direction} or without",
            )
