"""The listening addresses of a program, bound once for all its workers."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Sequence

from fastmtcp.config.ingress import Place, UnixPath
from fastmtcp.endpoint import Endpoint
from fastmtcp.errors import StartError
from fastmtcp.io.listener import bind, bind_those_here
from fastmtcp.io.resolver import Address
from fastmtcp.io.unix_socket import UnixListener


class Ports:
    """Binds a socket for each worker and address, before the first worker starts and before the
    program becomes another user, who could not (ports below 1024; and all sockets of a port must
    be of one user, SO_REUSEPORT in socket(7)). Unix sockets are made after that: their files
    belong to the user then, who must be able to remove them. A worker listens on its own; its
    successor does so on the same ones.

    With SO_REUSEPORT a second program of the same user could bind the same port and silently get
    a share of the connections. So each address is first bound without it, which fails if anybody
    listens there.
    """

    def __init__(self, places: Sequence[Place], workers: int) -> None:
        """The unix sockets among `places`, the last of them, are made by bind_files(). Raises
        StartError: in use, not ours, no such address, no permission."""
        self.names: list[str] = []
        self.owners: list[int] = []
        """For each socket of a worker the index of its place."""
        self.first_port = 0
        self.left_out: list[str] = []
        """What is to be said of addresses that this machine does not have."""
        self._sockets: list[list[socket.socket]] = [[] for _ in range(workers)]
        self._unix: list[UnixListener] = []
        self._files = [
            (number, place) for number, place in enumerate(places) if isinstance(place, UnixPath)
        ]
        try:
            for number, place in enumerate(places):
                if not isinstance(place, UnixPath):
                    self._bind(place)
                    self.owners += [number] * (len(self.names) - len(self.owners))
        except BaseException:
            self.close()
            raise

    def bind_files(self, *, for_group: bool = False) -> None:
        """Make the unix sockets. Their user may connect, and with `for_group` the members of the
        group of this process. Raises StartError: in use, no socket, no permission."""
        try:
            for number, place in self._files:
                self._unix.append(UnixListener(place.path, for_group=for_group))
                self.names.append(str(place))
                self.owners.append(number)
        except BaseException:
            self.close()
            raise

    def of(self, index: int) -> list[socket.socket]:
        """The sockets of one worker; unix sockets are the same for all."""
        return self._sockets[index] + [listener.sock for listener in self._unix]

    def close(self) -> None:
        """Listen no more, and remove the files of unix sockets: a successor may have all of them.
        A worker that hangs does not keep a port either, as its socket is the same one as ours."""
        for listener in self._unix:
            listener.close()
        for index, sockets in enumerate(self._sockets):
            self.silence(index)
            for sock in sockets:
                sock.close()
            sockets.clear()

    def keep_only(self, index: int) -> None:
        """In the worker's process: close what belongs to the others."""
        for other, sockets in enumerate(self._sockets):
            if other != index:
                for sock in sockets:
                    sock.close()

    def silence(self, index: int) -> None:
        """The worker is gone: the kernel shall give its share of the connections to the others.
        The sockets stay bound, and its successor can listen again (shutdown(2) takes a TCP
        listener back to where it was before listen(2))."""
        for sock in self._sockets[index]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _bind(self, endpoint: Endpoint) -> None:
        try:
            self.left_out += bind_those_here(endpoint, self._claim)
        except OSError as error:
            raise _cannot_listen(str(endpoint), error) from None

    def _claim(self, address: Address) -> None:
        family, where = address
        with bind(address, shared=False) as probe:
            # bind(2) alone would miss another program's socket that does not listen yet.
            probe.listen(1)
            where = (where[0], probe.getsockname()[1], *where[2:])
        for sockets in self._sockets:
            sockets.append(bind((family, where), shared=True))
        self.names.append(str(Endpoint(where[0], where[1])))
        self.first_port = self.first_port or where[1]


def _cannot_listen(where: str, error: OSError) -> StartError:
    if error.errno == errno.EADDRINUSE:
        return StartError(f"cannot listen on {where}: the port is in use; choose another --listen")
    if error.errno == errno.EACCES:
        return StartError(f"cannot listen on {where}: ports below 1024 need root")
    return StartError(f"cannot listen on {where}: {error.strerror}")
