"""Where a client accepts applications, and what becomes of them there."""

from __future__ import annotations

import os
import re
from typing import ClassVar, Literal, NoReturn, Self

import msgspec

from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import ConfigError, text_value

MAX_PATH = 107
"""Bytes of a unix socket's name (unix(7))."""

_UNIX = "unix:"
# From the end: a path may hold colons, a host and a port do not.
_TARGET = re.compile(r"(.*):((?:\[[^\[\]]*\]|[^:\[\]]*):\d+)", re.DOTALL)
_BIND = re.compile(r"(?:(\[[^\[\]]*\]|[^:\[\]]*):)?(\d+)")
_REMEDY = "must be [BIND:]PORT:HOST:PORT or unix:/PATH:HOST:PORT"


class UnixPath(msgspec.Struct, frozen=True):
    """The name of a unix socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"{_UNIX}{self.path}"


Place = Endpoint | UnixPath
"""Where a program can listen."""


class Forward(msgspec.Struct, frozen=True):
    """A place whose connections all go to one target."""

    FORM: ClassVar[str] = "[BIND:]PORT:HOST:PORT"

    place: Place
    target: Endpoint

    @classmethod
    def read(cls, value: object) -> Self:
        """A setting's value. Raises ConfigError."""
        return cls.parse(text_value(value, cls.FORM))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `8080:web:80`, `*:8080:web:80`, `[::1]:8080:[2001:db8::1]:80` or
        `unix:/run/web.sock:web:80`. Without an address it is 127.0.0.1. Raises ConfigError."""
        text = text.strip()
        match = _TARGET.fullmatch(text)
        if match is None:
            _refuse(text, _REMEDY)
        where, target = match[1], Endpoint.parse(match[2])
        if target.port == 0 or target.is_wildcard:
            _refuse(text, "names no host and port to forward to")
        if where.startswith(_UNIX):
            return cls(UnixPath(_path(where.removeprefix(_UNIX), text)), target)
        bind = _BIND.fullmatch(where)
        if bind is None:
            _refuse(text, _REMEDY)
        host = "127.0.0.1" if bind[1] is None else bind[1]
        return cls(Endpoint.parse(f"{host}:{bind[2]}"), target)

    def __str__(self) -> str:
        return f"{self.place}:{self.target}"


class WayIn(msgspec.Struct, frozen=True):
    """A place where applications connect. `target` is where they go, empty for the server's own;
    a `proxy` is told by the application."""

    place: Place
    kind: Literal["forward", "proxy"] = "forward"
    target: str = ""


def _path(path: str, text: str) -> str:
    if not path.startswith("/") or path.endswith("/") or not path.isprintable():
        _refuse(text, "needs the whole path of the socket, as in unix:/run/user/1000/web.sock")
    if len(os.fsencode(path)) > MAX_PATH:
        _refuse(text, f"has a path of more than {MAX_PATH} bytes, the limit of unix sockets")
    return path


def _refuse(text: str, problem: str) -> NoReturn:
    shown = text if len(text) <= 100 else text[:97] + "..."
    raise ConfigError(f"{shown!r} {problem}") from None
