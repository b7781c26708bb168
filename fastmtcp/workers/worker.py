"""A worker process: one loop, one service, one channel to the supervisor."""

from __future__ import annotations

import gc
import logging
import signal
import socket
from collections.abc import Callable

from fastmtcp import logs
from fastmtcp.config.common import Config
from fastmtcp.driver.service import Service
from fastmtcp.errors import FastmtcpError
from fastmtcp.io.loop import Loop
from fastmtcp.io.signals import Signals
from fastmtcp.workers.channel import (
    CannotStart,
    Channel,
    Drain,
    Heartbeat,
    Left,
    Message,
    Serving,
    StatusRequest,
)
from fastmtcp.workers.reporter import Reporter

log = logging.getLogger("fastmtcp.worker")

EXIT_CLEAN = 0
EXIT_CRASHED = 1
EXIT_CANNOT_START = 3

_BEAT = 1.0

ServiceFactory = Callable[[Loop, Channel], Service]


class Worker:
    """Runs a service until it has drained, or the supervisor is gone."""

    def __init__(
        self, name: str, config: Config, sock: socket.socket, make: ServiceFactory
    ) -> None:
        self._config = config
        self._loop = Loop()
        self._channel = Channel(self._loop, sock, self._on_message, self._on_supervisor_gone)
        self._name = name
        self._make = make
        self._service: Service | None = None
        self._reporter: Reporter | None = None

    def run(self) -> int:
        """Serve; returns the exit code of the process."""
        stop_logs = logs.start(self._name, self._config.log_level, self._config.log_format)
        try:
            # SIGTERM drains: a service manager sends it to every process of the service. All others
            # are the supervisor's to answer, also those that a terminal sends to all processes.
            Signals(self._loop, (signal.SIGTERM,), self._on_signal)
            try:
                self._service = self._make(self._loop, self._channel)
            except (FastmtcpError, OSError) as error:
                self._channel.send(CannotStart(str(error), getattr(error, "exit_code", 1)))
                return EXIT_CANNOT_START
            self._reporter = Reporter(self._loop, self._channel, self._service)
            # What exists now lives as long as the process: the collector need not look at it
            # again, and pages shared with the supervisor stay shared.
            gc.collect()
            gc.freeze()
            self._channel.send(Serving())
            self._beat()
            self._loop.run()
            return EXIT_CLEAN
        except Exception:
            log.exception("worker crashed")
            return EXIT_CRASHED
        finally:
            self._loop.lines.sum_up()
            stop_logs()

    def _beat(self) -> None:
        self._channel.send(Heartbeat())
        self._loop.call_later(_BEAT, self._beat)

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Drain):
            self._drain(message.timeout)
        elif isinstance(message, StatusRequest) and self._reporter is not None:
            self._reporter.on_request(message)
        elif isinstance(message, Left) and self._channel.on_left is not None:
            self._channel.on_left(message.sessions)

    def _on_supervisor_gone(self) -> None:
        """Nothing is left that would restart or stop this worker. Open streams are reset by the
        exit: their sockets have unread or unsent data, or the peer sees its session end."""
        log.error("the supervisor is gone; stopping")
        self._drain(0)

    def _drain(self, timeout: float) -> None:
        if self._service is None:
            self._loop.stop()
        else:
            self._service.drain(timeout, self._loop.stop)

    def _on_signal(self) -> None:
        self._drain(self._config.drain_timeout)
