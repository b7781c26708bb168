"""Finds the running programs by their control sockets, and asks them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time

import msgspec

from fastmtcp.errors import FastmtcpError
from fastmtcp.status.control_name import (
    LISTED,
    REQUEST,
    ControlName,
    parse_listed,
    peer_uid,
    sort_names,
)
from fastmtcp.status.document import InstanceStatus
from fastmtcp.status.socket_diag import listening_names

TIMEOUT = 5.0
"""Seconds for one answer. A program gives its workers two."""

MAX_ANSWER = 64 << 20


class NoAnswerError(FastmtcpError):
    """A control socket is not there, not ours to ask, or does not answer as it should."""


class NotRunningError(NoAnswerError):
    """Nobody listens at that name."""


class _Refusal(msgspec.Struct):
    error: str


def running() -> list[ControlName]:
    """The control sockets of this user in this network namespace; root gets those of all users.

    Raises FastmtcpError if the system does not tell.
    """
    uid = os.geteuid()
    return [name for name in _listed() if uid in (0, name.uid)]


def _listed() -> list[ControlName]:
    try:
        with open(LISTED, encoding="utf-8", errors="replace") as file:
            return parse_listed(file.read())
    except OSError as error:
        problem = f"cannot list control sockets: {LISTED}: {error.strerror}"
    try:
        texts = [name.decode(errors="replace") for name in listening_names()]
    except OSError:
        raise FastmtcpError(f"{problem}; name one with --socket") from None
    return sort_names(texts)


def ask(name: ControlName, timeout: float = TIMEOUT) -> InstanceStatus:
    """The status of the program at `name`, within `timeout` seconds.

    Raises NotRunningError or NoAnswerError.
    """
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.settimeout(timeout)
            sock.connect(name.address)
            owner = peer_uid(sock)
            # Any user may bind any name; root must not show one's numbers as another's.
            if owner != name.uid:
                raise NoAnswerError(f"{name} is not of user {name.uid} but of user {owner}")
            # A refusal does not wait for the request, and closing with that unread is a reset.
            with contextlib.suppress(BrokenPipeError):
                sock.sendall(REQUEST)
            answer = _read(sock, deadline)
        except TimeoutError:
            raise NoAnswerError(f"{name} does not answer") from None
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                raise NotRunningError(f"nothing runs under the name {name}") from None
            raise NoAnswerError(f"{name}: {error.strerror or error}") from None
    return _decode(name, answer)


def _read(sock: socket.socket, deadline: float) -> bytes:
    """All up to the end. Raises OSError, TimeoutError among them."""
    answer = bytearray()
    while len(answer) <= MAX_ANSWER:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        try:
            part = sock.recv(1 << 18)
        except ConnectionResetError:
            part = b""
        if not part:
            break
        answer += part
    return bytes(answer)


def _decode(name: ControlName, answer: bytes) -> InstanceStatus:
    try:
        return msgspec.json.decode(answer, type=InstanceStatus)
    except msgspec.MsgspecError:
        pass
    try:
        refusal = msgspec.json.decode(answer, type=_Refusal)
    except msgspec.MsgspecError:
        raise NoAnswerError(
            f"{name} does not answer as this version does; use the `fastmtcp` that belongs to it"
        ) from None
    raise NoAnswerError(f"{name}: {refusal.error}")
