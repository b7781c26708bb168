"""What goes wrong with a connection, as the exception that a user of sockets expects."""

from __future__ import annotations

import errno
import os
import socket

from fastmtcp.engine.wire.errors import ResetCode
from fastmtcp.errors import PeerError


class HandshakeError(PeerError, ConnectionError):
    """The server was reached and is not to be used: the keys differ, it refuses, or it is no
    fastmtcp-server. A ConnectionError, and so an OSError."""


def reset_error(code: ResetCode) -> OSError:
    """Why a stream could not be connected to its target."""
    text = code.explanation
    match code:
        case ResetCode.REFUSED | ResetCode.DRAINING:
            return ConnectionRefusedError(errno.ECONNREFUSED, text)
        case ResetCode.NOT_ALLOWED:
            return PermissionError(errno.EACCES, text)
        case ResetCode.UNREACHABLE:
            return OSError(errno.EHOSTUNREACH, text)
        case ResetCode.UNRESOLVED:
            return socket.gaierror(socket.EAI_NONAME, text)
        case ResetCode.OVERLOADED | ResetCode.LIMIT:
            return OSError(errno.ENOBUFS, text)
        case ResetCode.SESSION_LOST:
            return ConnectionResetError(errno.ECONNRESET, text)
        case _:
            return ConnectionAbortedError(errno.ECONNABORTED, text)


def server_error(error: PeerError, server: str) -> OSError:
    """Why the server cannot be used."""
    text = f"cannot use server {server}: {error}"
    cause = error.__cause__
    if isinstance(cause, socket.gaierror):
        return socket.gaierror(cause.errno, text)
    if isinstance(cause, OSError) and cause.errno is not None:
        return OSError(cause.errno, text)
    return HandshakeError(errno.ECONNABORTED, text)


def closed_error(what: str) -> OSError:
    """`what` was used after its close()."""
    return OSError(errno.EBADF, f"this {what} is closed")


def timeout_error(trouble: str = "") -> TimeoutError:
    text = os.strerror(errno.ETIMEDOUT)
    return TimeoutError(errno.ETIMEDOUT, f"{text}: {trouble}" if trouble else text)
