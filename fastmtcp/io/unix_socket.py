"""Listening on a unix socket: its file is made, found stale, and removed here (unix(7))."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from fastmtcp.errors import StartError


class UnixListener:
    """A listening unix socket that its owner can connect to, and the members of its group if it is
    made for them.

    Its file is removed by close(), unless it is another one by then.
    """

    def __init__(self, path: str, *, for_group: bool = False) -> None:
        """Raises StartError: somebody listens there, it is no socket, no permission."""
        self.path = path
        _remove_stale(path)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The mode is that of the file from its first moment: chmod() would be too late.
            umask = os.umask(0o117 if for_group else 0o177)
            try:
                self.sock.bind(path)
            finally:
                os.umask(umask)
            self._file = _identity(path)
        except OSError as error:
            self.sock.close()
            raise _cannot_listen(path, error) from None
        self.sock.setblocking(False)
        # It is shared by all workers, and one of them may be the first to look at it.
        self.sock.listen(4096)

    def close(self) -> None:
        """Stop listening and remove the file. Copies in other processes are theirs to close."""
        if self.sock.fileno() >= 0:
            self.sock.close()
            with contextlib.suppress(OSError):
                if _identity(self.path) == self._file:
                    os.unlink(self.path)


def _remove_stale(path: str) -> None:
    """Remove the socket of a program that was killed: nobody listens to it."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise StartError(
                f"cannot listen on unix:{path}: the file is there and no socket; choose another"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            code = probe.connect_ex(path)
        if code == errno.ECONNREFUSED:
            os.unlink(path)
        elif code in (0, errno.EAGAIN):
            raise StartError(f"cannot listen on unix:{path}: it is in use; choose another")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _cannot_listen(path, error) from None


def _cannot_listen(path: str, error: OSError) -> StartError:
    remedy = ""
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = "; it must be in a folder where the user that this runs as may make and remove it"
    return StartError(f"cannot listen on unix:{path}: {error.strerror}{remedy}")


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
