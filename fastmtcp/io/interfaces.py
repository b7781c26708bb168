"""Which network interfaces are up."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Iterable

import psutil

_GET_FLAGS = 0x8913
_RUNNING = 0x40
_REQUEST = struct.Struct("16sH22x")
"""struct ifreq: the name, then the flags."""


def states(devices: Iterable[str]) -> dict[str, bool]:
    """For each of `devices` whether it is up and runs; one that has just gone is not.

    Raises:
        OSError: the system does not tell, as no descriptor is left.
    """
    try:
        known = psutil.net_if_stats()
    except OSError:
        # There is no /proc/net in some sandboxes, or no /proc at all: ask for one after the other.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            return {device: _runs(sock, device) for device in devices}
    return {device: device in known and known[device].isup for device in devices}


def _runs(sock: socket.socket, device: str) -> bool:
    """By its flags (netdevice(7))."""
    # An alias such as eth0:1 has the flags of its interface.
    request = _REQUEST.pack(device.encode(errors="surrogateescape")[:15], 0)
    try:
        answer = fcntl.ioctl(sock, _GET_FLAGS, request)
    except OSError:
        return False
    _, flags = _REQUEST.unpack(answer)
    return bool(flags & _RUNNING)
