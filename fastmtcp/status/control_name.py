"""Names of control sockets: where `fastmtcp status` finds the running programs.

They are in Linux' abstract namespace (unix(7)): the name goes with the process, even after
SIGKILL, and no file is ever left. Such a name has no owner and no mode, everybody in the network
namespace may bind or connect to it. So both ends ask the kernel who the other one is.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterable

MAX_NAME = 40
"""Characters. A key has more: everybody can read the names, so it must not become one."""

_PREFIX = "fastmtcp"
_NAME = rf"[A-Za-z0-9._-]{{1,{MAX_NAME}}}"
_ADDRESS = re.compile(rf"@?(?:{_PREFIX}/([0-9]{{1,10}})/)?({_NAME})")
_PEERCRED = getattr(socket, "SO_PEERCRED", 17)
_UCRED = struct.Struct("iII")

REQUEST = b"status\n"
"""What is sent to a control socket. The answer is one JSON document, then the end."""

LISTED = "/proc/net/unix"


def is_name(text: str) -> bool:
    """True for what `--control` takes."""
    return re.fullmatch(_NAME, text) is not None


class ControlName:
    """The name of an instance's control socket and the user it belongs to."""

    __slots__ = ("name", "uid")

    def __init__(self, name: str, uid: int | None = None) -> None:
        self.name = name
        self.uid = os.geteuid() if uid is None else uid

    @classmethod
    def parse(cls, text: str) -> ControlName | None:
        """Read `client-7701` (of this user) or `fastmtcp/1000/client-7701`; None if it is none."""
        found = _ADDRESS.fullmatch(text)
        if found is None:
            return None
        return cls(found[2], None if found[1] is None else int(found[1]))

    @property
    def address(self) -> str:
        """For bind() and connect()."""
        return f"\0{self}"

    def __str__(self) -> str:
        return f"{_PREFIX}/{self.uid}/{self.name}"


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end of a unix socket; of a listener, the one who called listen()."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, _PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(credentials)[1]
    return uid


def parse_listed(text: str) -> list[ControlName]:
    """The control sockets among those listed in /proc/net/unix (proc_net(5)), sorted by name.

    Whoever wants to may bind any name: this tells what is claimed, not whose it is.
    """
    lines = [line.split(maxsplit=7) for line in text.splitlines()]
    # A listening socket has the flag __SO_ACCEPTCON.
    listening = [fields[7] for fields in lines if len(fields) == 8 and fields[3] == "00010000"]
    return sort_names([name[1:] for name in listening if name.startswith("@")])


def sort_names(texts: Iterable[str]) -> list[ControlName]:
    """The control sockets among names in the abstract namespace, each once."""
    found = {}
    for text in texts:
        name = ControlName.parse(text) if text.startswith(f"{_PREFIX}/") else None
        if name is not None:
            found[str(name)] = name
    return [found[key] for key in sorted(found)]
