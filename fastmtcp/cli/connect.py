"""`fastmtcp connect`: standard input and output over a stream."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import threading
from types import FrameType

import click

from fastmtcp import logs
from fastmtcp.api import arguments
from fastmtcp.api.client import Client
from fastmtcp.api.errors import reset_error
from fastmtcp.cli.options import settings_command
from fastmtcp.config import credentials, settings
from fastmtcp.config.client import ClientConfig
from fastmtcp.endpoint import Endpoint
from fastmtcp.engine.wire.errors import ResetCode
from fastmtcp.errors import FastmtcpError, StartError
from fastmtcp.io.signals import ENDING
from fastmtcp.io.tcp import abort

_STDIN = 0
_STDOUT = 1
_BLOCK = 1 << 18
_PIPE_SIZE = 1 << 20
_SET_PIPE_SIZE = getattr(fcntl, "F_SETPIPE_SZ", 1031)


def _serve(config: ClientConfig, address: str | None) -> int:
    for fd, name in ((_STDIN, "input"), (_STDOUT, "output")):
        try:
            os.fstat(fd)
        except OSError:
            # Our own connections would get its number.
            raise StartError(f"standard {name} is closed; use /dev/null instead") from None
    target = None
    if address is not None:
        endpoint = Endpoint.parse(address)
        target = (endpoint.host, endpoint.port)
        arguments.target_text(target)
    config, own = credentials.of_client(config)
    # Standard error is that of ssh or a pipe: only what the user should act on.
    level = "warning" if config.log_level == "info" else config.log_level
    stop_logs = logs.start("connect", level, config.log_format)
    # What is cut short must be reset, and not look complete.
    for number in ENDING:
        signal.signal(number, _interrupt)
    signal.signal(signal.SIGHUP, _hang_up)
    try:
        with Client.from_config(config, own) as client:
            sock, connection = client._connect(target, None, wait=True)
            try:
                _copy(sock)
            except BaseException:
                abort(sock)
                raise
            sock.close()
        code = connection.stream.reset_code
        if code is None and not connection.is_complete:
            code = ResetCode.SESSION_LOST
        if code is not None:
            raise _lost(code.explanation)
    finally:
        stop_logs()
    return 0


def _copy(sock: socket.socket) -> None:
    """Both directions, until both have ended."""
    sending = _Sending(sock)
    try:
        sending.start()
    except RuntimeError as error:
        raise StartError(str(error)) from None
    try:
        _receive(sock)
        if sending.error is None:
            _wait_for_end(sock)
    except ConnectionError as error:
        raise sending.error or _lost(error.strerror) from None
    sending.join()
    if sending.error is not None:
        raise sending.error


class _Sending(threading.Thread):
    """Standard input to the stream; its end is passed on as a half-close."""

    def __init__(self, sock: socket.socket) -> None:
        # A daemon: a terminal may say nothing for ever while the stream is gone.
        super().__init__(name="stdin", daemon=True)
        self._sock = sock
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._send()
        except ConnectionError:
            pass  # the other direction sees it too
        except OSError as error:
            self.error = FastmtcpError(f"standard input: {error.strerror}")
            # Wake the other direction, which then resets the stream.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RD)

    def _send(self) -> None:
        with contextlib.suppress(OSError):  # no pipe, or more than this user may have
            fcntl.fcntl(_STDIN, _SET_PIPE_SIZE, _PIPE_SIZE)
        block = memoryview(bytearray(_BLOCK))
        while count := _read(block):
            self._sock.sendall(block[:count])
        self._sock.shutdown(socket.SHUT_WR)


def _read(block: memoryview) -> int:
    while True:
        try:
            return os.readv(_STDIN, [block])
        except BlockingIOError:
            # Another process that shares the terminal or pipe has made it non-blocking.
            _wait(_STDIN, select.POLLIN)


def _receive(sock: socket.socket) -> None:
    """The stream to standard output, which is closed at its end: others wait for that."""
    block = memoryview(bytearray(_BLOCK))
    try:
        while count := sock.recv_into(block):
            view = block[:count]
            while view:
                view = view[_write(view) :]
        # Not closed but replaced: Python still believes that it is there.
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), _STDOUT)
    except ConnectionError:
        raise
    except OSError as error:
        raise FastmtcpError(f"standard output: {error.strerror}") from None


def _write(view: memoryview) -> int:
    while True:
        try:
            return os.write(_STDOUT, view)
        except BlockingIOError:
            _wait(_STDOUT, select.POLLOUT)
        except BrokenPipeError as error:
            raise OSError(errno.EIO, error.strerror) from None


def _wait_for_end(sock: socket.socket) -> None:
    """After the peer's end, wait for ours, or for a reset."""
    _wait(sock.fileno(), 0)
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise ConnectionResetError(code, os.strerror(code))


def _wait(fd: int, events: int) -> None:
    poller = select.poll()
    poller.register(fd, events)
    poller.poll()


def _lost(reason: str | None) -> FastmtcpError:
    return FastmtcpError(f"the stream was cut short: {reason or reset_error(ResetCode.CANCELLED)}")


def _hang_up(_number: int, _frame: FrameType | None) -> None:
    """How ssh ends its ProxyCommand: nothing to complain about."""
    raise SystemExit(1)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


_NOT_USED = (
    *("target", "proxy_login_file", "workers", "control"),
    *(f.name for f in settings.fields(ClientConfig) if f.setting.group == settings.LISTENING),
)

connect = settings_command(
    ClientConfig,
    _serve,
    name="connect",
    without=_NOT_USED,
    arguments=[click.Argument(["address"], metavar="[HOST:PORT]", required=False)],
    help="Send standard input to HOST:PORT, or to the server's own target, and what comes back to "
    "standard output, over many TCP connections. Ends when both directions have ended; 1 if the "
    "stream was refused or cut short.",
    epilog="""\b
Examples:
  fastmtcp connect --server example.com:7700 --key-file fastmtcp.key
  ssh -o ProxyCommand='fastmtcp connect --server example.com:7700' you@example.com
  tar c folder | fastmtcp connect --server example.com:7700""",
)
