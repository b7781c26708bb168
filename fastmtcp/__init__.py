"""fastmtcp: one TCP stream, as fast as N connections.

create_connection() gives a connected socket, Client a pool for many, Server accepts; the asyncio
pair is open_connection() and start_server(). README.md, "From Python", begins with examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastmtcp._version import __version__
    from fastmtcp.api.aio import AsyncServer, open_connection, start_server
    from fastmtcp.api.client import Client, create_connection
    from fastmtcp.api.errors import HandshakeError
    from fastmtcp.api.info import Info, info
    from fastmtcp.api.server import Server
    from fastmtcp.api.thread import ForkedError
    from fastmtcp.errors import ConfigError, FastmtcpError

__all__ = [
    "AsyncServer",
    "Client",
    "ConfigError",
    "FastmtcpError",
    "ForkedError",
    "HandshakeError",
    "Info",
    "Server",
    "__version__",
    "create_connection",
    "info",
    "open_connection",
    "start_server",
]

# Imported when they are first used: `import fastmtcp` alone costs next to nothing.
_HOMES = {
    "AsyncServer": "fastmtcp.api.aio",
    "Client": "fastmtcp.api.client",
    "ConfigError": "fastmtcp.errors",
    "FastmtcpError": "fastmtcp.errors",
    "ForkedError": "fastmtcp.api.thread",
    "HandshakeError": "fastmtcp.api.errors",
    "Info": "fastmtcp.api.info",
    "Server": "fastmtcp.api.server",
    "__version__": "fastmtcp._version",
    "create_connection": "fastmtcp.api.client",
    "info": "fastmtcp.api.info",
    "open_connection": "fastmtcp.api.aio",
    "start_server": "fastmtcp.api.aio",
}


def __getattr__(name: str) -> object:
    """Import what is asked for (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
